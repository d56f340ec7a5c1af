"""Scan to disease map: the evidence of disease in [0, 1] made from the signed difference."""

from dataclasses import dataclass

import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fedgan.errors import Diverged
from fedgan.gan.method import Method
from fedgan.gan.pseudo_lesions import tissue_of

NOTABLE = 0.25
"""A difference of this size, an eighth of the grey range [-1, 1], is evidence of 1 - 1/e = 0.63."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How differences become disease maps."""

    smoothing: float
    """Standard deviation of the Gaussian, in pixels of a 64 x 64 scan; 0 leaves it out."""
    flip: bool = False
    """Average with the difference of the mirrored scan, mirrored back."""
    tissue: bool = False
    """No evidence where most of a pixel's neighbourhood is air."""


@dataclass(frozen=True, slots=True)
class DiseaseMaps:
    """Maps of a stack of scans, on the CPU.

    Shapes: ``normal`` (N, H, W), the normal counterparts in [-1, 1]; ``evidence`` (N, H, W) in [0, 1];
    ``scores`` (N,) in [0, 1], each map's mean.
    """

    normal: Tensor
    evidence: Tensor
    scores: Tensor


def evidence_of(difference: Tensor, *, smoothing: float) -> Tensor:
    r"""Return :math:`1 - \exp(-|G_\sigma * M| / 0.25)`, which keeps the order of the differences' sizes.

    Args:
        difference: signed differences M.
        smoothing: standard deviation of the Gaussian in pixels of a 64 x 64 scan; 0 leaves it out.

    Shapes: ``difference`` (N, H, W); result (N, H, W) in [0, 1].
    """
    sigma = smoothing * difference.shape[-1] / 64
    smooth = torch.from_numpy(gaussian_filter(difference.numpy(), (0, sigma, sigma))) if sigma else difference
    return 1 - torch.exp(-smooth.abs() / NOTABLE)


@torch.no_grad()
def draw_maps(
    method: Method, images: Tensor, diseases: Tensor, *, drawing: Drawing, batch_size: int = 64
) -> DiseaseMaps:
    """Draw the map of each scan for the diseases asked of it.

    Shapes: ``images`` (N, 1, H, W) in [-1, 1]; ``diseases`` (N, K) in {0, 1}, on the method's device or the CPU.

    Raises:
        Diverged: the networks draw something that is not a finite number.
    """
    if not len(images):
        empty = images[:, 0].cpu()
        return DiseaseMaps(normal=empty, evidence=empty, scores=empty.mean(dim=(1, 2)))
    device = next(iter(method.generators())).device
    differences = torch.cat(
        [
            _difference(method, images[rows].to(device), diseases[rows].to(device), flip=drawing.flip).cpu()
            for rows in (slice(first, first + batch_size) for first in range(0, len(images), batch_size))
        ]
    )
    if not bool(torch.isfinite(differences).all()):
        raise Diverged("the networks draw maps that are not finite numbers; their training has diverged")
    evidence = evidence_of(differences[:, 0], smoothing=drawing.smoothing)
    if drawing.tissue:
        evidence = evidence * tissue_of(images.cpu())[:, 0]
    normal = (images.cpu() - differences)[:, 0].clamp(-1, 1)
    return DiseaseMaps(normal=normal, evidence=evidence, scores=evidence.mean(dim=(1, 2)))


def _difference(method: Method, images: Tensor, diseases: Tensor, *, flip: bool) -> Tensor:
    difference = method.difference(images, diseases)
    if not flip:
        return difference
    return (difference + method.difference(images.flip(-1), diseases).flip(-1)) / 2
