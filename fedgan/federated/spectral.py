"""Spectral-norm vectors found anew for an averaged weight (Miyato et al. 2018, arXiv:1802.05957, sec. 2.1)."""

import torch
from torch import Tensor


def as_matrix(weight: Tensor, axis: int) -> Tensor:
    """Return ``weight`` as the matrix whose largest singular value the norm divides by: ``axis`` against the rest."""
    return weight.movedim(axis, 0).flatten(1)


def leading_vectors(weight: Tensor, axis: int, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the left and right singular vectors of the largest singular value, in the type of ``start``.

    From all eigenvectors of the smaller of :math:`W W^T` and :math:`W^T W`, in float64. Power iteration from ``start``,
    the left vector of the weight before, would do unless that is near another singular vector of the weight now; of
    the two possible signs, it has the one nearer to ``start``.
    """
    matrix = as_matrix(weight, axis).double()
    wide = matrix.shape[0] <= matrix.shape[1]
    found = torch.linalg.eigh(matrix @ matrix.T if wide else matrix.T @ matrix).eigenvectors[:, -1]
    left, right = (found, _unit(matrix.T @ found)) if wide else (_unit(matrix @ found), found)
    sign = 1.0 if left @ start.double() >= 0 else -1.0
    return (sign * left).to(start.dtype), (sign * right).to(start.dtype)


def _unit(vector: Tensor) -> Tensor:
    unit: Tensor = vector / vector.norm().clamp_min(1e-12)
    return unit
