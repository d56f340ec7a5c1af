"""TagGAN (Nawaz et al. 2025, arXiv:2502.17836): the disease is what must be subtracted to make a scan normal.

From the paper: a forward generator M takes a scan and its disease label and draws a signed map; scan minus map is the
normal counterpart; a backward generator puts the disease back. The layers, the terms' weights and the recipe are not
public; ours follow its lineage (CX-GAN, arXiv:2301.08939; VA-GAN, arXiv:1711.08998). Ours, too: the label is the *set*
of diseases to take out, a classifier that the counterpart must convince, restoration of pasted pseudo-lesions, and a
moving average of the forward generator, which draws the maps.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgan.gan import losses
from fedgan.gan.augmentation import jitter
from fedgan.gan.networks import DifferenceGenerator, DiseaseClassifier, PatchDiscriminator
from fedgan.gan.pseudo_lesions import paste_pseudo_lesions
from fedgan.records import Batch
from fedgan.settings import TagGAN as TagGANSettings


@dataclass(frozen=True, slots=True)
class Scene:
    """What both players look at in one step.

    Shapes: scans and differences (N, 1, H, W), N of each class; ``asked`` and ``put_in`` (N, K) in {0, 1}.
    """

    batch: Batch
    asked: Tensor
    """Diseases to take out of each abnormal scan: its own, and at times others."""
    put_in: Tensor
    """Diseases to put into each normal scan."""
    abnormal_difference: Tensor
    normal_difference: Tensor
    pasted: Tensor
    """Normal scans with pseudo-lesions."""
    pasted_difference: Tensor
    returned: Tensor
    """Counterparts with their diseases put back by the backward generator."""
    diseased: Tensor
    """Normal scans with diseases put in by the backward generator."""

    @property
    def counterpart(self) -> Tensor:
        """Return the abnormal scans without their diseases."""
        return self.batch.abnormal - self.abnormal_difference


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

    def __init__(self, settings: TagGANSettings, *, num_diseases: int) -> None:
        """Build untrained networks; the initial weights come from PyTorch's global stream."""
        super().__init__()
        self.weights = settings.weights
        self.game = losses.GAMES[settings.adversarial]
        self.brighter = settings.brighter
        self.ema_decay = settings.ema_decay
        self.num_diseases = num_diseases
        shape = {"num_diseases": num_diseases, "width": settings.width, "patch": settings.patch}
        self.forward_generator = DifferenceGenerator(**shape)
        self.backward_generator = DifferenceGenerator(**shape)
        self.forward_average = copy.deepcopy(self.forward_generator).requires_grad_(False)
        self.normal_discriminator = PatchDiscriminator(width=settings.critic_width)
        self.abnormal_discriminator = PatchDiscriminator(width=settings.critic_width)
        self.classifier = DiseaseClassifier(num_diseases=num_diseases, width=settings.critic_width)

    def generators(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the forward and the backward generator."""
        return [*self.forward_generator.parameters(), *self.backward_generator.parameters()]

    def critics(self) -> Iterable[nn.Parameter]:
        """Return the parameters of both discriminators and of the classifier."""
        networks = (self.normal_discriminator, self.abnormal_discriminator, self.classifier)
        return [parameter for network in networks for parameter in network.parameters()]

    def imagine(self, batch: Batch, rng: torch.Generator) -> Scene:
        """Run each generator once, over all scans that it is to see."""
        asked = torch.maximum(batch.diseases, ask_for(batch.diseases, rng))
        put_in = ask_for(batch.diseases.new_empty(len(batch.normal), self.num_diseases), rng)
        pasted = paste_pseudo_lesions(batch.normal, brighter=self.brighter, rng=rng)
        abnormal, normal, restored = self.forward_generator(
            torch.cat([batch.abnormal, batch.normal, pasted]), torch.cat([asked, put_in, put_in])
        ).split([len(batch.abnormal), len(batch.normal), len(pasted)])
        counterpart = batch.abnormal - abnormal
        put_back, lesion = torch.zeros_like(abnormal), torch.zeros_like(normal)
        if self.weights.cycle:
            put_back, lesion = self.backward_generator(
                torch.cat([counterpart, batch.normal]), torch.cat([batch.diseases, put_in])
            ).split([len(counterpart), len(batch.normal)])
        return Scene(
            batch, asked, put_in, abnormal, normal, pasted, restored, counterpart + put_back, batch.normal + lesion
        )

    def critic_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the critics descend; a critic learns nothing at a site that lacks one of its sides."""
        abnormal, normal = scene.batch.abnormal, scene.batch.normal
        both = len(abnormal) and len(normal)
        terms = {}
        if self.weights.adversarial and both:
            terms["normal_discriminator"] = self._tell(self.normal_discriminator, normal, scene.counterpart, rng)
            if self.weights.cycle:
                terms["abnormal_discriminator"] = self._tell(self.abnormal_discriminator, abnormal, scene.diseased, rng)
        if self.weights.classifier and both:
            none = scene.batch.diseases.new_zeros(len(normal), self.num_diseases)
            logits = self.classifier(jitter(torch.cat([abnormal, normal]), rng))
            terms["classifier"] = losses.disease_evidence(logits, torch.cat([scene.batch.diseases, none]))
        return terms

    def _tell(self, discriminator: PatchDiscriminator, real: Tensor, fake: Tensor, rng: torch.Generator) -> Tensor:
        """Return the loss of ``discriminator`` for telling real from generated scans."""
        fake = fake.detach()
        real_scores, fake_scores = discriminator(torch.cat([real, fake])).split([len(real), len(fake)])
        loss = self.game.discriminator(real_scores, fake_scores)
        if self.game.penalty:
            loss = loss + self.game.penalty * losses.gradient_penalty(discriminator, real, fake, rng)
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
            ("sparsity", weights.sparsity, scene.abnormal_difference, losses.sparsity),
            ("classifier", weights.classifier, scene.counterpart, lambda healed: self._persuade(scene, healed, rng)),
            (
                "restoration",
                weights.restoration,
                scene.pasted_difference,
                lambda found: losses.restoration(found, scene.pasted - batch.normal),
            ),
        ]
        return {name: weight * term(scans) for name, weight, scans, term in terms if weight and len(scans)}

    def _convince(self, discriminator: PatchDiscriminator) -> Callable[[Tensor], Tensor]:
        return lambda fake: self.game.generator(discriminator(fake))

    def _cycle_normal(self, scene: Scene, diseased: Tensor) -> Tensor:
        """Return how far a normal scan is from itself after a disease was put in and taken out again."""
        return losses.cycle(scene.batch.normal, diseased - self.forward_generator(diseased, scene.put_in))

    def _persuade(self, scene: Scene, counterpart: Tensor, rng: torch.Generator) -> Tensor:
        """Return how much disease the classifier still sees in the counterpart."""
        none = torch.zeros_like(scene.batch.diseases)
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
