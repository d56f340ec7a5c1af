"""Small random changes to scans, so that few patients teach more and no pattern of single pixels convinces a critic."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from fedgan.records import Batch


def jitter(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return scans turned, scaled, shifted, rescaled in brightness and noised a little, differentiably.

    Differentiable augmentation of what critics see: Zhao et al. 2020 (arXiv:2006.10738). Turns have a standard
    deviation of 9 degrees, scales of 10 %, shifts of 4 % of the width, brightness of 10 %, noise of 0.05.

    Shapes: ``images`` and result (N, 1, H, W), -1 is background.
    """
    count = len(images)
    turn, scale = 0.15 * torch.randn(count, generator=rng), 1 + 0.1 * torch.randn(count, generator=rng)
    shift = 0.08 * torch.randn(count, 2, generator=rng)
    brightness = 1 + 0.1 * torch.randn(count, 1, 1, 1, generator=rng)
    noise = 0.05 * torch.randn(images.shape, generator=rng)
    moved = _moved(images, turn, scale, scale, shift)
    return moved * brightness.to(images.device) - 1 + noise.to(images.device)


def vary(batch: Batch, rng: torch.Generator) -> Batch:
    """Return the batch with every scan turned, scaled, stretched, shifted and changed in contrast a little.

    Turns have a standard deviation of 7 degrees, scales of 8 %, stretches of 5 %, shifts of 3 % of the width,
    brightness of 6 %, the exponent of contrast of 12 %.
    """
    return Batch(
        abnormal=_varied(batch.abnormal, rng),
        normal=_varied(batch.normal, rng),
        diseases=batch.diseases,
        unlabelled=_varied(batch.unlabelled, rng),
    )


def _varied(images: Tensor, rng: torch.Generator) -> Tensor:
    if not len(images):
        return images
    turn, size, stretch = torch.randn(3, len(images), generator=rng)
    shift = 0.06 * torch.randn(len(images), 2, generator=rng)
    height = 1 + 0.08 * size
    moved = _moved(images, 0.12 * turn, height * torch.exp(0.05 * stretch), height, shift)
    exponent, brightness = torch.randn(2, len(images), 1, 1, 1, generator=rng)
    contrasted = (moved / 2).clamp(0, 1).pow(torch.exp(0.12 * exponent))
    varied: Tensor = 2 * (1 + 0.06 * brightness) * contrasted - 1
    return varied.clamp(-1, 1)


def _moved(images: Tensor, turn: Tensor, width: Tensor, height: Tensor, shift: Tensor) -> Tensor:
    """Return ``images + 1``, so that background is 0, with each scan moved; turns in radians, shifts in half widths."""
    rows = [width * turn.cos(), -height * turn.sin(), shift[:, 0], width * turn.sin(), height * turn.cos(), shift[:, 1]]
    moves = torch.stack(rows, dim=1).view(len(images), 2, 3).mT
    places = affine_grid(torch.eye(2, 3)[None], [1, 1, *images.shape[2:]], align_corners=False).flatten(1, 2)
    grid = (places @ moves[:, :2] + moves[:, 2:]).view(len(images), *images.shape[2:], 2)
    moved: Tensor = grid_sample(images + 1, grid.to(images.device), align_corners=False)
    return moved
