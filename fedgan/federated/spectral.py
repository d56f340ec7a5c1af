"""Spectral-norm vectors found anew for an averaged weight (Miyato et al. 2018, arXiv:1802.05957, alg. 1)."""

import torch
from torch import Tensor

LONGEST = 2000
"""Power iterations at most. The estimate errs by the square of the vectors' error, so few weights need a hundred."""

SETTLED = 1e-7
"""Relative growth of the estimate in ten iterations below which it is believed."""


def as_matrix(weight: Tensor, axis: int) -> Tensor:
    """Return ``weight`` as the matrix whose largest singular value the norm divides by: ``axis`` against the rest."""
    return weight.movedim(axis, 0).flatten(1)


def leading_vectors(weight: Tensor, axis: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and right singular vectors of the largest singular value, in the type of ``start``.

    Power iteration in float64 from ``start``, the left vector of the weight before. As that may happen to be at right
    angles to what is sought, a little of every direction is added first.
    """
    matrix = as_matrix(weight, axis).double()
    even = torch.linspace(1.0, 2.0, len(start), dtype=torch.float64)
    left = start.double() + 0.01 * even / even.norm()
    right = _unit(matrix.T @ left)
    reached = 0.0
    for iteration in range(1, LONGEST + 1):
        left = _unit(matrix @ right)
        right = _unit(matrix.T @ left)
        if iteration % 10 == 0:
            before, reached = reached, float(left @ matrix @ right)
            if reached - before <= SETTLED * reached:
                break
    return left.to(start.dtype), right.to(start.dtype)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp_min(1e-12)
    return unit
