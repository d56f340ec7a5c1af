"""Small random changes to a scan before a critic sees it, so that no pattern of single pixels can convince it."""

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


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
    rows = [scale * turn.cos(), -scale * turn.sin(), shift[:, 0], scale * turn.sin(), scale * turn.cos(), shift[:, 1]]
    grid = affine_grid(torch.stack(rows, dim=1).view(count, 2, 3), list(images.shape), align_corners=False)
    moved = grid_sample(images + 1, grid.to(images.device), align_corners=False)
    return moved * brightness.to(images.device) - 1 + noise.to(images.device)
