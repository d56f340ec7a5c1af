"""What several sites' numbers agree on: means that trust every site, and others that a few sites cannot move far."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

Rule = Callable[[Sequence[Tensor], Sequence[float]], Tensor]
"""From the same part of several deltas, each (M,), and their shares to what they agree on: (M,) in float64."""


def weighted_mean(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    r"""Return :math:`\sum_k s_k \Delta_k`, summed in float64 (McMahan et al. 2017, arXiv:1602.05629, alg. 1).

    >>> weighted_mean([torch.tensor([1.0]), torch.tensor([3.0])], [0.25, 0.75])
    tensor([2.5000], dtype=torch.float64)
    """
    total = torch.zeros(parts[0].shape, dtype=torch.float64)
    for part, share in zip(parts, shares, strict=True):
        total.add_(part, alpha=share)
    return total


def trimmed_mean(parts: Sequence[Tensor], shares: Sequence[float], *, cut: float) -> Tensor:
    """Return the mean of each number without the largest and smallest ones (Yin et al. 2018, arXiv:1803.01498).

    A share of ``cut`` is left out at each end, at least one number and so that at least one stays. Sites count alike.

    >>> trimmed_mean([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([900.0])], [0.1, 0.1, 0.8], cut=0.2)
    tensor([2.], dtype=torch.float64)
    """
    told = torch.stack(list(parts), dim=1)
    told = told.to(torch.promote_types(told.dtype, torch.float32))
    ordered = torch.from_numpy(np.sort(told.numpy(), axis=1))  # of dozens of sites many times as fast as PyTorch
    ends = min((len(parts) - 1) // 2, max(1, int(cut * len(parts))))
    return ordered[:, ends : len(parts) - ends].mean(dim=1, dtype=torch.float64)


def median(parts: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return each number's median (Yin et al. 2018, arXiv:1803.01498). Sites count alike.

    >>> median([torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([4.0]), torch.tensor([9.0])], [0.25] * 4)
    tensor([3.], dtype=torch.float64)
    """
    return trimmed_mean(parts, shares, cut=0.5)


def multi_krum(distances: Tensor, *, suspects: int) -> list[int]:
    """Return which updates to trust: all but as many as there are suspects, those nearest to their neighbours.

    Multi-Krum (Blanchard et al. 2017, arXiv:1703.02757): an update's score is the sum of its squared distances to all
    others but the ``suspects`` + 1 farthest.

    Args:
        distances: squared, between any two updates (K, K).
        suspects: how many sites may be wrong, fewer than half.

    >>> multi_krum(torch.tensor([[0.0, 1.0, 9.0], [1.0, 0.0, 9.0], [9.0, 9.0, 0.0]]), suspects=1)
    [0, 1]
    """
    count = len(distances)
    near = max(1, count - suspects - 2)
    scores = distances.sort(dim=1).values[:, 1 : 1 + near].sum(dim=1)
    return sorted(scores.argsort(stable=True)[: max(1, count - suspects)].tolist())
