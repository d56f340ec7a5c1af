"""Baselines without an adversary: one network, one loss, one way to draw; what they are scored by is elsewhere."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, l1_loss, mse_loss, relu

from fedgan.cohort.cohort import UNLABELLED, Cohort
from fedgan.errors import CohortError
from fedgan.gan.augmentation import jitter
from fedgan.gan.disease_map import NOTABLE
from fedgan.gan.losses import disease_evidence
from fedgan.gan.pseudo_lesions import tissue_of
from fedgan.records import Batch

Loss = Callable[[nn.Module, Batch, torch.Generator], Tensor]
Draw = Callable[[nn.Module, Tensor], Tensor]
"""From the averaged network and scans (N, 1, H, W) to a difference or evidence of the same shape."""


class Alone(nn.Module):
    """One network that plays against nobody: a ``fedgan.gan.method.Method``, so the package trains and draws it."""

    unit: Tensor

    def __init__(self, network: nn.Module, *, loss: Loss, draw: Draw, ema_decay: float) -> None:
        """Take a new network; its moving average draws the maps, as ours does."""
        super().__init__()
        self.network = network
        self.average = copy.deepcopy(network).requires_grad_(False)
        self.register_buffer("unit", torch.ones(()))
        self.loss, self.draw, self.ema_decay = loss, draw, ema_decay

    def generators(self) -> Iterable[nn.Parameter]:
        """Return the network's parameters."""
        return self.network.parameters()

    def critics(self) -> Iterable[nn.Parameter]:
        """Return the same: an optimiser must hold something, and without critic terms it moves nothing."""
        return self.network.parameters()

    def imagine(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Return the batch as it is."""
        return batch

    def critic_terms(self, scene: Batch, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return nothing: there is no critic."""
        return {}

    def generator_terms(self, scene: Batch, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the one loss."""
        return {"loss": self.loss(self.network, scene, rng)}

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average one step."""
        for average, parameter in zip(self.average.parameters(), self.network.parameters(), strict=True):
            average.lerp_(parameter, 1 - self.ema_decay)

    def difference(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return what the averaged network draws, in units of its own; no disease can be asked for.

        Shapes: ``images`` and result (N, 1, H, W).
        """
        return self.draw(self.average, images) / self.unit

    def measure_by(self, images: Tensor, *, quantile: float) -> None:
        """Let the ``quantile`` of all pixels drawn on ``images`` be a notable difference, for scores without a scale.

        It is one number for all scans. To stretch each scan by its own extremes, as class activation maps are often
        shown, would give every normal scan a pixel of evidence 1, and no threshold could hold for two scans.
        """
        self.unit.fill_(1.0)
        drawn = torch.cat(
            [self.draw(self.average, part).flatten().cpu() for part in torch.split(images.to(self.unit), 64)]
        )
        largest = drawn.kthvalue(1 + round(quantile * (len(drawn) - 1))).values.clamp_min(1e-12)
        self.unit.copy_(largest / NOTABLE)


class Autoencoder(nn.Module):
    """The small autoencoder of MedIAnomaly (Cai et al. 2025, arXiv:2404.04518): 16 numbers tell a whole scan.

    Group norms instead of batch norms, and 256 instead of 1024 hidden units, for about half a million parameters.
    """

    def __init__(self, *, size: int, width: int, hidden: int = 256, latent: int = 16) -> None:
        """Build for scans of ``size`` x ``size`` pixels, a multiple of 16."""
        super().__init__()
        widths = (1, width, 2 * width, 4 * width, 4 * width)
        deepest = (widths[-1], size // 16, size // 16)
        features = deepest[0] * deepest[1] * deepest[2]
        encoder = [_resize(nn.Conv2d, before, after) for before, after in pairwise(widths)]
        decoder = [_resize(nn.ConvTranspose2d, before, after) for before, after in pairwise(widths[:0:-1])]
        self.layers = nn.Sequential(
            *encoder,
            nn.Flatten(),
            nn.Sequential(nn.Linear(features, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, latent)),
            nn.Sequential(nn.Linear(latent, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, features), nn.LeakyReLU(0.2)),
            nn.Unflatten(1, deepest),
            *decoder,
            nn.ConvTranspose2d(width, 1, 4, 2, padding=1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return what is left of each scan: (N, 1, H, W) in [-1, 1]."""
        restored: Tensor = self.layers(images)
        return restored.float()


class PooledClassifier(nn.Module):
    """Diseases of a scan by the mean of its features, as classifiers have it whose class activation maps are shown.

    Its last features have a quarter of the scan's resolution: at 64 x 64 pixels, the usual 1/32 would be two cells. It
    has no norms: with group norms, which tell every place of the whole scan, its maps find nothing (0.03 instead of
    0.40 after 400 steps on LGG). Our own classifier, which is to be convinced by one small place, pools by the largest
    and has maps that show nothing.
    """

    def __init__(self, *, num_diseases: int, width: int) -> None:
        """Build for ``num_diseases`` labels with ``width`` channels at the first of four levels."""
        super().__init__()
        widths, strides = (1, width, 2 * width, 4 * width, 8 * width), (2, 2, 1, 1)
        self.features = nn.Sequential(
            *(
                nn.Sequential(*_convolution(before, after, 1), *_convolution(after, after, stride))
                for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True)
            )
        )
        self.out = nn.Linear(widths[-1], num_diseases)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logit of each disease: (N, K)."""
        return self.judge(self.features(images))

    def judge(self, features: Tensor) -> Tensor:
        """Return the logit of each disease, from the last features (N, C, H / 4, W / 4)."""
        logits: Tensor = self.out(features.mean((2, 3)))
        return logits.float()


def _convolution(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU()


def _resize(convolution: Callable[..., nn.Module], before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        convolution(before, after, 4, 2, padding=1), nn.GroupNorm(max(1, after // 8), after), nn.LeakyReLU(0.2)
    )


def subtract(network: nn.Module, images: Tensor) -> Tensor:
    """Return the scans minus the difference that a U-Net without labels draws of them."""
    restored: Tensor = images - network(images, images.new_zeros(len(images), 0))
    return restored


def autoencoding(network: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Return how far normal scans are from what 16 numbers tell of them, in L1."""
    return l1_loss(network(batch.normal), batch.normal)


def denoising(network: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Return how far normal scans with coarse noise are from themselves once denoised.

    Kascenas et al. 2022 (MIDL, PMLR 172:653-664): Gaussian noise of 16 x 16 cells, enlarged, shifted at random and kept
    to the foreground; its standard deviation of 0.2 of the grey range is 0.4 in [-1, 1].
    """
    normal = batch.normal
    coarse = 0.4 * torch.randn(len(normal), 1, 16, 16, generator=rng)
    noise = interpolate(coarse, size=normal.shape[2:], mode="bilinear")
    shift = torch.randint(normal.shape[-1], (2,), generator=rng).tolist()
    noisy = normal + noise.roll(shift, dims=(2, 3)).to(normal.device) * tissue_of(normal)
    return mse_loss(subtract(network, noisy), normal)


def what_is_lost(network: nn.Module, images: Tensor) -> Tensor:
    """Return scans minus what the autoencoder leaves of them, with the sign, which its authors leave out.

    So smoothing cancels the light and dark borders of blurred edges; without the sign it finds less.
    """
    lost: Tensor = images - network(images)
    return lost


def what_is_noise(network: nn.Module, images: Tensor) -> Tensor:
    """Return how far scans are from themselves once denoised, whatever the sign, as the DAE's authors do."""
    return (images - subtract(network, images)).abs()


def classifying(network: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Return how wrong a classifier of the image label is, on scans jittered as for our own classifier."""
    truth = torch.cat([batch.diseases, batch.diseases.new_zeros(len(batch.normal), batch.diseases.shape[1])])
    return disease_evidence(network(jitter(torch.cat([batch.abnormal, batch.normal]), rng)), truth)


def grad_cam(network: nn.Module, images: Tensor) -> Tensor:
    """Return Grad-CAM of any disease (Selvaraju et al. 2017, arXiv:1610.02391, eq. 1 and 2), at the last features."""
    features: Tensor = cast("PooledClassifier", network).features(images).detach().requires_grad_()
    with torch.enable_grad():
        evidence = cast("PooledClassifier", network).judge(features).logsumexp(1).sum()
    (slopes,) = torch.autograd.grad(evidence, features)
    cam = relu((slopes.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True))
    return interpolate(cam, size=images.shape[2:], mode="bilinear", align_corners=False)


def segmenting(network: nn.Module, batch: Batch, rng: torch.Generator) -> Tensor:
    """Return how wrong a U-Net is about each pixel; the scans carry their masks as a second channel."""
    images, masks = torch.split(torch.cat([batch.abnormal, batch.normal]), 1, dim=1)
    return binary_cross_entropy_with_logits(_lesion_logits(network, images), masks)


def lesion_probability(network: nn.Module, images: Tensor) -> Tensor:
    """Return the supervised U-Net's probability of each pixel."""
    return _lesion_logits(network, images).sigmoid()


def _lesion_logits(network: nn.Module, images: Tensor) -> Tensor:
    logits: Tensor = 10 * network(images, images.new_zeros(len(images), 0))  # its output lies in [-1, 1]
    return logits


def with_masks(cohort: Cohort) -> Cohort:
    """Return the scans whose lesions are known, each with its mask as a second channel, so that both flip together.

    Raises:
        CohortError: no scan shows a lesion.
    """
    known = cohort.take((cohort.has_mask & (cohort.status != UNLABELLED)).nonzero().flatten().tolist())
    if not bool(known.masks.any()):
        raise CohortError(", ".join(sorted(set(cohort.sites))), ["no training scan shows a lesion to learn from"])
    return replace(known, images=torch.cat([known.images, known.masks[:, None].float()], dim=1))
