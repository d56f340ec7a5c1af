"""TagGAN (Nawaz et al. 2025, arXiv:2502.17836): the disease is what must be subtracted to make a scan normal.

From the paper: a forward generator M takes a scan and its disease label and draws a signed map; scan minus map is the
normal counterpart; a backward generator puts the disease back. The layers, the terms' weights and the recipe are not
public; ours follow its lineage (CX-GAN, arXiv:2301.08939; VA-GAN, arXiv:1711.08998). Ours, too: the label is the *set*
of diseases to take out, a classifier that the counterpart must convince, restoration of pasted pseudo-lesions, and a
moving average of the forward generator, which draws the maps.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from fedgan.gan import losses
from fedgan.gan.augmentation import jitter
from fedgan.gan.networks import DifferenceGenerator, DiseaseClassifier, PatchDiscriminator
from fedgan.gan.pseudo_lesions import Lesions, paste_pseudo_lesions, transplant
from fedgan.records import Batch, ScanCounts
from fedgan.settings import TagGAN as TagGANSettings

NOTICEABLE = 0.06
"""A pseudo-lesion is where it changes a pixel by more than this, in units of [-1, 1]."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What both players look at in one step.

    Shapes: scans and differences (N, 1, H, W), N of each kind; ``asked`` and ``put_in`` (N, K) in {0, 1}.
    """

    batch: Batch
    asked: Tensor
    """Diseases to take out: of an abnormal scan its own and at times others, of an unlabelled one all."""
    put_in: Tensor
    """Diseases to put into each normal scan."""
    difference: Tensor
    """Of the abnormal scans, then of the unlabelled ones."""
    counterpart: Tensor
    """The abnormal scans, then the unlabelled ones, without their diseases: whatever they are, it must be normal."""
    normal_difference: Tensor
    pasted: Tensor
    """Normal scans with pseudo-lesions."""
    pasted_difference: Tensor
    normal_where: Tensor
    """Logit of where the generator sees disease in each normal scan; (N, 0, H, W) without attention."""
    pasted_where: Tensor
    returned: Tensor
    """Counterparts of the abnormal scans with their diseases put back by the backward generator."""
    diseased: Tensor
    """Normal scans with diseases put in by the backward generator."""


def ask_for(diseases: Tensor, rng: torch.Generator) -> Tensor:
    """Draw a set of diseases for each scan: half the time all there are, else one of them.

    Shapes: ``diseases`` and result (N, K) in {0, 1}; only the shape of ``diseases`` matters.
    """
    count, kinds = diseases.shape
    everything = torch.rand(count, 1, generator=rng) < 0.5
    one = torch.eye(kinds)[torch.randint(kinds, (count,), generator=rng)]
    return torch.where(everything, torch.ones_like(one), one).to(diseases)


class TagGAN(nn.Module):
    """The networks of one model and the game they play."""

    def __init__(self, settings: TagGANSettings, *, num_diseases: int, one_patient: bool = False) -> None:
        """Build untrained networks; the initial weights come from PyTorch's global stream.

        With ``one_patient`` a batch is one patient's scans: critics also learn of those who have one of the two sides.
        """
        super().__init__()
        self.one_patient = one_patient
        self.weights = settings.weights
        self.game = losses.GAMES[settings.adversarial]
        self.lesions = Lesions(settings.brighter, dark=settings.dark, radius=settings.radius)
        self.transplants = settings.transplants
        self.ema_decay = settings.ema_decay
        self.num_diseases = num_diseases
        generator = partial(DifferenceGenerator, num_diseases=num_diseases, width=settings.width, patch=settings.patch)
        self.forward_generator = generator(attention=settings.weights.attention > 0)
        self.backward_generator = generator()
        self.forward_average = copy.deepcopy(self.forward_generator).requires_grad_(False)
        self.normal_discriminator = PatchDiscriminator(width=settings.critic_width, spectral=settings.spectral_norm)
        self.abnormal_discriminator = PatchDiscriminator(width=settings.critic_width, spectral=settings.spectral_norm)
        self.classifier = DiseaseClassifier(num_diseases=num_diseases, width=settings.critic_width)

    def generators(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the forward and the backward generator."""
        return [*self.forward_generator.parameters(), *self.backward_generator.parameters()]

    def critics(self) -> Iterable[nn.Parameter]:
        """Return the parameters of both discriminators and of the classifier."""
        networks = (self.normal_discriminator, self.abnormal_discriminator, self.classifier)
        return [parameter for network in networks for parameter in network.parameters()]

    def averages(self) -> Mapping[str, str]:
        """Return which network follows which."""
        return {"forward_average": "forward_generator"}

    def driven_by(self, counts: ScanCounts) -> Mapping[str, tuple[int, ...]]:
        """Return what drives each network: the generators' two kinds of scans, and the critics' real ones."""
        weights, suspects = self.weights, counts.abnormal + counts.unlabelled
        play = weights.adversarial and counts.normal and suspects
        circle = weights.cycle and counts.normal and counts.abnormal
        judge = weights.classifier and counts.normal and counts.abnormal
        return {
            "forward_generator": (suspects, counts.normal),
            "forward_average": (suspects, counts.normal),
            "backward_generator": (counts.abnormal, counts.normal) if weights.cycle else (0, 0),
            "normal_discriminator": (counts.normal if play else 0,),
            "abnormal_discriminator": (counts.abnormal if weights.adversarial and circle else 0,),
            "classifier": (counts.labelled if judge else 0,),
        }

    def by_disease(self) -> Collection[str]:
        """Return the classifier's head: one row for each disease."""
        return "classifier.out.weight", "classifier.out.bias"

    def imagine(self, batch: Batch, rng: torch.Generator, *, for_critics: bool = False) -> Scene:
        """Run each generator once, over all scans that it is to see, or over those alone whose result critics see."""
        suspects = torch.cat([batch.abnormal, batch.unlabelled])
        everything = batch.diseases.new_ones(len(batch.unlabelled), self.num_diseases)
        asked = torch.cat([torch.maximum(batch.diseases, ask_for(batch.diseases, rng)), everything])
        put_in = ask_for(batch.diseases.new_empty(len(batch.normal), self.num_diseases), rng)
        healthy = batch.normal[:0] if for_critics else batch.normal
        pasted = healthy if for_critics else self._paste(batch, rng)
        kinds = [len(suspects), len(healthy), len(pasted)]
        shown = torch.cat([suspects, healthy, pasted])
        asked_of_all = torch.cat([asked, put_in[: len(healthy)], put_in[: len(pasted)]])
        differences, where = self.forward_generator.look(shown, asked_of_all) if len(shown) else (shown, shown[:, :0])
        suspected, normal, restored = torch.split(differences, kinds)
        _, normal_where, pasted_where = torch.split(where, kinds)
        counterpart = suspects - suspected
        returned, diseased = counterpart[: len(batch.abnormal)], batch.normal
        if self.weights.cycle and len(returned) + len(diseased):
            put_back, lesion = self.backward_generator(
                torch.cat([returned, diseased]), torch.cat([batch.diseases, put_in])
            ).split([len(returned), len(diseased)])
            returned, diseased = returned + put_back, diseased + lesion
        return Scene(
            batch=batch,
            asked=asked,
            put_in=put_in,
            difference=suspected,
            counterpart=counterpart,
            normal_difference=normal,
            pasted=pasted,
            pasted_difference=restored,
            normal_where=normal_where,
            pasted_where=pasted_where,
            returned=returned,
            diseased=diseased,
        )

    def _paste(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return the normal scans with pseudo-lesions, made up or found in the abnormal ones."""
        pasted = paste_pseudo_lesions(batch.normal, lesions=self.lesions, rng=rng)
        if not (self.transplants and len(batch.abnormal) and len(batch.normal)):
            return pasted
        with torch.no_grad():
            found = self.difference(batch.abnormal, torch.ones_like(batch.diseases))
        moved = transplant(batch.normal, found, rng=rng)
        chosen = torch.rand(len(pasted), 1, 1, 1, generator=rng) < self.transplants
        return torch.where(chosen.to(pasted.device), moved, pasted)

    def critic_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the critics descend; a critic learns nothing at a site that lacks one of its sides."""
        abnormal, normal = scene.batch.abnormal, scene.batch.normal
        both = self._are_there(abnormal, normal)
        terms = {}
        if self.weights.adversarial and self._are_there(normal, scene.counterpart):
            terms["normal_discriminator"] = self._tell(self.normal_discriminator, normal, scene.counterpart, rng)
        if self.weights.adversarial and self.weights.cycle and both:
            terms["abnormal_discriminator"] = self._tell(self.abnormal_discriminator, abnormal, scene.diseased, rng)
        if self.weights.classifier and both:
            none = scene.batch.diseases.new_zeros(len(normal), self.num_diseases)
            logits = self.classifier(jitter(torch.cat([abnormal, normal]), rng))
            terms["classifier"] = losses.disease_evidence(logits, torch.cat([scene.batch.diseases, none]))
        return terms

    def _are_there(self, *sides: Tensor) -> bool:
        return (any if self.one_patient else all)(len(side) > 0 for side in sides)

    def _tell(self, discriminator: PatchDiscriminator, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss of ``discriminator`` for telling real from generated scans."""
        fake = fake.detach()
        real_scores, fake_scores = discriminator(torch.cat([real, fake])).split([len(real), len(fake)])
        loss = self.game.discriminator(real_scores, fake_scores)
        if self.game.penalty:
            loss = loss + self.game.penalty * losses.penalty_between(discriminator, real, fake, rng)
        return loss

    def generator_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the generators descend, weighted; a term without weight or without scans is not computed."""
        weights, batch = self.weights, scene.batch
        terms: list[tuple[str, float, Tensor, Callable[[Tensor], Tensor]]] = [
            ("adversarial_normal", weights.adversarial, scene.counterpart, self._convince(self.normal_discriminator)),
            (
                "adversarial_abnormal",
                weights.cycle and weights.adversarial,
                scene.diseased,
                self._convince(self.abnormal_discriminator),
            ),
            ("cycle_abnormal", weights.cycle, scene.returned, lambda back: losses.cycle(batch.abnormal, back)),
            ("cycle_normal", weights.cycle, scene.diseased, lambda ill: self._cycle_normal(scene, ill)),
            ("identity", weights.identity, scene.normal_difference, losses.identity),
            ("sparsity", weights.sparsity, scene.difference, losses.sparsity),
            ("classifier", weights.classifier, scene.counterpart, lambda healed: self._persuade(scene, healed, rng)),
            (
                "restoration",
                weights.restoration,
                scene.pasted_difference,
                lambda found: losses.restoration(found, scene.pasted - batch.normal),
            ),
            ("attention", weights.attention, scene.pasted_where, lambda where: self._attend(scene, where)),
        ]
        return {name: weight * term(scans) for name, weight, scans, term in terms if weight and len(scans)}

    def _convince(self, discriminator: PatchDiscriminator) -> Callable[[Tensor], Tensor]:
        return lambda fake: self.game.generator(discriminator(fake))

    def _cycle_normal(self, scene: Scene, diseased: Tensor) -> Tensor:
        """Return how far a normal scan is from itself after a disease was put in and taken out again."""
        return losses.cycle(scene.batch.normal, diseased - self.forward_generator(diseased, scene.put_in))

    def _attend(self, scene: Scene, pasted_where: Tensor) -> Tensor:
        """Return how wrongly the generator says where pseudo-lesions are, and that a normal scan has none."""
        truth = (scene.pasted - scene.batch.normal).abs() > NOTICEABLE
        return losses.attention(
            torch.cat([pasted_where, scene.normal_where]), torch.cat([truth, torch.zeros_like(truth)])
        )

    def _persuade(self, scene: Scene, counterpart: Tensor, rng: torch.Generator) -> Tensor:
        """Return how much disease the classifier still sees in the counterpart."""
        none = counterpart.new_zeros(len(counterpart), self.num_diseases)
        return losses.disease_evidence(self.classifier(jitter(counterpart, rng)), none)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average of the forward generator one step (Yazici et al. 2019, arXiv:1806.04498)."""
        pairs = zip(self.forward_average.parameters(), self.forward_generator.parameters(), strict=True)
        for average, parameter in pairs:
            average.lerp_(parameter, 1 - self.ema_decay)

    def difference(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return the signed difference that ``diseases`` make, by the averaged forward generator.

        Shapes: ``images`` and result (N, 1, H, W); ``diseases`` (N, K) in {0, 1}.
        """
        result: Tensor = self.forward_average(images, diseases)
        return result
