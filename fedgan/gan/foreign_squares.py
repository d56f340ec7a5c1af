"""Pseudo-lesions as SAGAN was released with: squares of another scan, blended in."""

import torch
from torch import Tensor


def paste_squares(normal: Tensor, *, rng: torch.Generator) -> Tensor:
    r"""Return each scan with one square of the scan before it: :math:`(1 - \alpha) x + \alpha x'`.

    Foreign patch interpolation (Tan et al. 2020, arXiv:2011.04197) with the numbers of SAGAN's code: half the width
    is 5 % to 20 % of the scan's (3 to 12 pixels at 64 x 64), the centre in the central 60 %, alpha uniform in [0, 1].
    A scan that is alone gets one of its own mirror image.

    Shapes: ``normal`` and result (N, 1, H, W), H = W.
    """
    count, size = len(normal), normal.shape[-1]

    def draw(low: float, high: float) -> Tensor:
        return torch.randint(round(low), round(high), (count, 1, 1), generator=rng)

    down, right, half = draw(0.2 * size, 0.8 * size), draw(0.2 * size, 0.8 * size), draw(0.05 * size, 0.2 * size)
    row, column = torch.arange(size)[:, None], torch.arange(size)
    inside = (row >= down - half) & (row < down + half) & (column >= right - half) & (column < right + half)
    alpha = (torch.rand(count, 1, 1, generator=rng) * inside)[:, None].to(normal.device)
    return torch.lerp(normal, normal.roll(1, dims=0) if count > 1 else normal.flip(-1), alpha)
