"""SAGAN (Zhang et al. 2024, arXiv:2405.12872): what the generator would change in a scan is its disease.

One generator is to make unlabelled scans look normal and to leave normal ones as they are; a critic compares with
scans known to be normal, and pasted pseudo-lesions must be taken out again. Nothing is asked by name of a disease, so
labels of abnormal scans are not used: they count as unlabelled. ``model=sagan_released`` does what the authors' code
does, defects included, and ``model=sagan`` repairs it; the settings say how they differ. Theirs, and not ours: one
Adam over the whole training, where ours begins anew each round.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from fedgan.gan import losses
from fedgan.gan.foreign_squares import paste_squares
from fedgan.gan.networks import PatchDiscriminator
from fedgan.gan.patch_networks import NORMS, Layers, ScanCritic, TileGenerator
from fedgan.gan.pseudo_lesions import Lesions, paste_pseudo_lesions
from fedgan.records import Batch, ScanCounts
from fedgan.settings import SAGAN as SAGANSettings
from fedgan.streams import generator_for

MASKED = 0.05
"""Share of pixels where the generator's change is replaced by the scan itself, as in the released code."""

OUTPUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "tanh_of_sum": lambda images, change: torch.tanh(images + change),
    "sum": torch.add,
}
CRITICS: dict[str, Callable[..., nn.Module]] = {"global": ScanCritic, "patch": PatchDiscriminator}
RESTORATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l1": l1_loss, "mse": mse_loss}


@dataclass(frozen=True, slots=True)
class Scene:
    """What both players look at in one step.

    Shapes: scans (N, 1, H, W), of ``suspects`` and ``counterpart`` the same N.
    """

    normal: Tensor
    suspects: Tensor
    """Unlabelled and abnormal scans."""
    counterpart: Tensor
    """What the generator makes of the suspects scans."""


class SAGAN(nn.Module):
    """The networks of one model and the game they play."""

    def __init__(self, settings: SAGANSettings, *, one_patient: bool = False) -> None:
        """Build untrained networks; the initial weights come from PyTorch's global stream.

        With ``one_patient`` a batch is one patient's scans: the critic also learns of those who have one of its sides.
        """
        super().__init__()
        self.one_patient = one_patient
        self.weights = settings.weights
        self.game = losses.GAMES[settings.adversarial]
        self.output = OUTPUTS[settings.output]
        self.restoration = RESTORATIONS[settings.restoration]
        self.masked = settings.masked
        self.pseudo_lesions = settings.pseudo_lesions
        self.lesions = Lesions(settings.brighter, dark=settings.dark, radius=settings.radius)
        self.ema_decay = settings.ema_decay
        self.generator = TileGenerator(
            width=settings.width,
            blocks=settings.blocks,
            layers=Layers(NORMS[settings.norm]),
            position=settings.position,
            grid=settings.grid,
            context=settings.context,
        )
        if settings.output == "sum":  # start near "no change", which is right for most pixels
            with torch.no_grad():
                self.generator.out.weight.mul_(0.1)
        self.average = copy.deepcopy(self.generator).requires_grad_(False) if settings.ema_decay else None
        self.critic = CRITICS[settings.critic](width=settings.critic_width)

    def generators(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the generator."""
        return self.generator.parameters()

    def critics(self) -> Iterable[nn.Parameter]:
        """Return the parameters of the critic."""
        return self.critic.parameters()

    def averages(self) -> Mapping[str, str]:
        """Return which network follows which."""
        return {"average": "generator"} if self.average is not None else {}

    def driven_by(self, counts: ScanCounts) -> Mapping[str, tuple[int, ...]]:
        """Return what drives each network: what the generator heals and keeps, and the critic's normal scans."""
        suspects = counts.abnormal + counts.unlabelled
        healed_and_kept = (suspects if self.weights.adversarial else 0, counts.normal)
        real = counts.normal if self.weights.adversarial and suspects else 0
        return {"generator": healed_and_kept, "average": healed_and_kept, "critic": (real,)}

    def by_disease(self) -> Collection[str]:
        """Return nothing: no disease is told from another."""
        return ()

    def imagine(self, batch: Batch, rng: torch.Generator, *, for_critics: bool = False) -> Scene:
        """Run the generator over every scan that may show disease, which is all that either player looks at."""
        suspects = torch.cat([batch.unlabelled, batch.abnormal])
        return Scene(batch.normal, suspects, self.heal(suspects, rng) if len(suspects) else suspects)

    def heal(self, images: Tensor, rng: torch.Generator) -> Tensor:
        """Return what the generator makes of each scan in training; both (N, 1, H, W)."""
        change = self.generator(images)
        if self.masked != "never":
            change = torch.where(_mask(images.shape, rng).to(images.device), images, change)
        return self.output(images, change)

    def critic_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the critic descends; it learns nothing at a site that lacks one of its sides."""
        normal, fake = scene.normal, scene.counterpart.detach()
        sides = any if self.one_patient else all
        if not (self.weights.adversarial and sides(len(side) > 0 for side in (normal, fake))):
            return {}
        scores = self.critic(torch.cat([normal, fake]))
        loss = self.game.discriminator(scores[: len(normal)], scores[len(normal) :])
        if self.game.penalty:
            loss = loss + self.game.penalty * losses.penalty_between(self.critic, normal, fake, rng)
        return {"discriminator": loss}

    def generator_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return what the generator descends, weighted; terms without scans or without weight are left out."""
        weights, normal = self.weights, scene.normal
        terms = {}
        if weights.adversarial and len(scene.counterpart):
            terms["adversarial"] = weights.adversarial * self.game.generator(self.critic(scene.counterpart))
        if len(normal):
            pasted = self._paste(normal, rng)
            kept, restored = self.heal(torch.cat([normal, pasted]), rng).chunk(2)
            terms["identity"] = weights.identity * losses.identity(normal - kept)
            terms["restoration"] = weights.restoration * self.restoration(restored, normal)
        return terms

    def _paste(self, normal: Tensor, rng: torch.Generator) -> Tensor:
        if self.pseudo_lesions == "squares":
            return paste_squares(normal, rng=rng)
        return paste_pseudo_lesions(normal, lesions=self.lesions, rng=rng)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average of the generator one step (Yazici et al. 2019, arXiv:1806.04498), if there is one."""
        if self.average is not None:
            for average, parameter in zip(self.average.parameters(), self.generator.parameters(), strict=True):
                average.lerp_(parameter, 1 - self.ema_decay)

    def difference(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return the signed difference from the normal counterpart; ``diseases`` are not looked at.

        The released code hides pixels in maps as well, others each time; ours hides the same pixels of every scan, so
        that a map can be drawn again.

        Shapes: ``images`` and result (N, 1, H, W).
        """
        change: Tensor = (self.generator if self.average is None else self.average)(images)
        if self.masked == "always":
            change = torch.where(
                _mask((1, *images.shape[1:]), generator_for(0, "mask")).to(images.device), images, change
            )
        return images - self.output(images, change).clamp(-1, 1)


def _mask(shape: Iterable[int], rng: torch.Generator) -> Tensor:
    return torch.rand(tuple(shape), generator=rng) < MASKED
