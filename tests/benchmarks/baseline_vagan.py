"""VA-GAN (Baumgartner et al. 2018, arXiv:1711.08998): the map that makes abnormal scans look normal to a critic."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedgan.gan import losses
from fedgan.gan.networks import DifferenceGenerator, PatchDiscriminator
from fedgan.records import Batch


@dataclass(frozen=True, slots=True)
class Scene:
    """What both players look at in one step; all (N, 1, H, W)."""

    normal: Tensor
    difference: Tensor
    counterpart: Tensor
    """The abnormal scans minus their difference."""


class VAGAN(nn.Module):
    """A map generator and a Wasserstein critic with gradient penalty; a ``fedgan.gan.method.Method``.

    The released critic, too, is the mean over places and takes 5 steps to the generator's one. Its first 25 rounds of
    100 steps are left out: every method here takes the same number of steps.
    """

    def __init__(self, unet: DifferenceGenerator, *, critic_width: int, sparsity: float, ema_decay: float) -> None:
        """Take a U-Net without labels as the map generator; ``sparsity`` is the weight of the map's L1."""
        super().__init__()
        self.generator = unet
        self.average = copy.deepcopy(self.generator).requires_grad_(False)
        self.critic = PatchDiscriminator(width=critic_width)
        self.sparsity, self.ema_decay = sparsity, ema_decay

    def generators(self) -> Iterable[nn.Parameter]:
        """Return the map generator's parameters."""
        return self.generator.parameters()

    def critics(self) -> Iterable[nn.Parameter]:
        """Return the critic's parameters."""
        return self.critic.parameters()

    def imagine(self, batch: Batch, rng: torch.Generator) -> Scene:
        """Draw the map of each abnormal scan."""
        difference = self.generator(batch.abnormal, batch.diseases[:, :0])
        return Scene(batch.normal, difference, batch.abnormal - difference)

    def critic_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the Wasserstein loss (eq. 3) and 10 times the gradient penalty."""
        game, fake = losses.GAMES["wgan_gp"], scene.counterpart.detach()
        penalty = losses.gradient_penalty(self._realness, scene.normal, fake, rng)
        distance = game.discriminator(self._realness(scene.normal), self._realness(fake))
        return {"distance": distance, "penalty": game.penalty * penalty}

    def generator_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the adversarial term and the map's L1 (eq. 4)."""
        return {
            "adversarial": losses.raise_score(self._realness(scene.counterpart)),
            "sparsity": self.sparsity * losses.sparsity(scene.difference),
        }

    def _realness(self, images: Tensor) -> Tensor:
        scores: Tensor = self.critic(images).mean((1, 2, 3))
        return scores

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average one step."""
        for average, parameter in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            average.lerp_(parameter, 1 - self.ema_decay)

    def difference(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return the averaged generator's map; no disease can be asked for. Shapes: (N, 1, H, W)."""
        result: Tensor = self.average(images, diseases[:, :0])
        return result
