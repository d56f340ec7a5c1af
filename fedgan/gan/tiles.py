"""Scans to overlapping square tiles and back, blended so that no seam shows."""

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad


def side_of(size: int, *, grid: int, context: int) -> int:
    """Return the height and width of a tile: its share of the scan and ``context`` pixels of its surroundings.

    >>> side_of(64, grid=2, context=8), side_of(64, grid=1, context=8)
    (40, 64)
    """
    return min(size, size // grid + context)


@cache
def corners(size: int, grid: int, side: int) -> tuple[tuple[int, int], ...]:
    """Return the upper left pixel (row, column) of each tile, row by row; the outer ones touch the scan's border.

    >>> corners(64, 2, 40)
    ((0, 0), (0, 24), (24, 0), (24, 24))
    """
    starts = [round(place * (size - side) / max(1, grid - 1)) for place in range(grid)]
    return tuple((row, column) for row in starts for column in starts)


@cache
def shares(size: int, grid: int, side: int) -> Tensor:
    """Return how much each tile has to say at its pixels: 1 where it is alone, and fading towards its border.

    Shapes: result (grid * grid, 1, side, side) in (0, 1]; over all tiles, each pixel's shares sum to 1.
    """
    ramp = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).float()
    window = (ramp[:, None] * ramp) ** 3  # a tile knows least of what surrounds its outermost pixels
    at = corners(size, grid, side)
    total = torch.stack([_place(window, row, column, size) for row, column in at]).sum(dim=0)
    return torch.stack([window / total[row : row + side, column : column + side] for row, column in at])[:, None]


def cut(scans: Tensor, *, grid: int, side: int) -> Tensor:
    """Return the tiles of each scan, one scan after the other.

    Shapes: ``scans`` (N, C, H, W), H = W; result (N * grid * grid, C, side, side).
    """
    at = corners(scans.shape[-1], grid, side)
    tiles = [scans[..., row : row + side, column : column + side] for row, column in at]
    return torch.stack(tiles, dim=1).flatten(0, 1)


def join(tiles: Tensor, *, size: int, grid: int) -> Tensor:
    """Return the scans of which ``tiles`` are: the weighted mean where tiles overlap.

    Shapes: ``tiles`` (N * grid * grid, C, side, side) as ``cut`` orders them; result (N, C, size, size).
    """
    side = tiles.shape[-1]
    weighted = tiles.reshape(-1, grid * grid, *tiles.shape[1:]) * shares(size, grid, side).to(tiles.device)
    placed = zip(weighted.unbind(dim=1), corners(size, grid, side), strict=True)
    return torch.stack([_place(tile, row, column, size) for tile, (row, column) in placed]).sum(dim=0)


def _place(tile: Tensor, row: int, column: int, size: int) -> Tensor:
    side = tile.shape[-1]
    return pad(tile, (column, size - column - side, row, size - row - side))
