"""What a scan's score means: its place among the scores of normal scans, by a short table that goes with the model."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fedgan.cohort.cohort import NORMAL, Cohort

QUANTILES = 11
"""Length of the table: the lowest score of a normal scan, every tenth of them, and the highest."""

FEWEST_NORMALS = 10
"""Of fewer scans a tenth says nothing, and the table would say all."""

TOO_FEW = f"fewer than {FEWEST_NORMALS} validation scans are known to be normal"
"""Why there is no table."""


def table_of_normals(scores: Tensor, cohort: Cohort) -> tuple[float, ...] | None:
    """Return the quantiles of the normal scans' scores, lowest first, or None if there are too few such scans.

    Args:
        scores: of validation scans, (N,) in [0, 1].
        cohort: whose scans they are; an unlabelled scan is not taken for normal.
    """
    normals = scores[cohort.status == NORMAL].double().numpy()
    if len(normals) < FEWEST_NORMALS:
        return None
    return tuple(np.quantile(normals, np.linspace(0, 1, QUANTILES)).tolist())


def place_among(score: float, table: Sequence[float]) -> float:
    """Return about which share of the normal scans score lower, in [0, 1]; a higher score never has a lower place.

    For n scans in the table it is off by at most 1/10 + 1/n: between two quantiles it is a straight line.

    >>> place_among(0.25, [0.1, 0.2, 0.3]), place_among(0.1, [0.1, 0.2, 0.3]), place_among(0.4, [0.1, 0.2, 0.3])
    (0.75, 0.0, 1.0)
    """
    above = bisect_left(table, score)
    if above in (0, len(table)):
        return float(above > 0)
    low, high = table[above - 1], table[above]
    return (above - 1 + (score - low) / (high - low)) / (len(table) - 1)
