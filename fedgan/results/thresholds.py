"""From which evidence on a pixel counts as found: chosen on validation scans, by masks or by normal scans alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fedgan.cohort.cohort import NORMAL, Cohort
from fedgan.results.pixels import Pixels
from fedgan.results.scores import dice_by_level


@dataclass(frozen=True, slots=True)
class Threshold:
    """The least evidence of a pixel that is found, and how it was chosen."""

    value: float | None
    """In [0, 1]; None where the scans leave no choice."""
    chosen_by: str
    """In words: what it was chosen by, or why there is none."""


Choose = Callable[[Tensor, Cohort], Threshold]
"""From the maps (N, H, W) of validation scans, and their cohort, to a threshold."""


def by_masks(maps: Tensor, cohort: Cohort) -> Threshold:
    """Return the threshold of the largest pooled Dice."""
    pixels = Pixels.of(maps, cohort)
    if pixels is None:
        return Threshold(None, "no validation scan has a mask")
    levels = pixels.levels()
    value = float(levels[dice_by_level(pixels.pooled(levels)).argmax()])
    return Threshold(value, "the best Dice on the validation patients' masks")


def by_normals(maps: Tensor, cohort: Cohort, *, false_positives: float) -> Threshold:
    """Return the lowest threshold at which hardly a pixel of normal scans is found; nothing else is looked at.

    Args:
        maps: evidence of the validation scans, (N, H, W) in [0, 1].
        cohort: whose scans they are; an unlabelled scan is not taken for normal.
        false_positives: largest share of the normal scans' pixels that may be found, in (0, 1).
    """
    evidence = maps[cohort.status == NORMAL].numpy().ravel()
    if not evidence.size:
        return Threshold(None, "no validation scan is known to be normal")
    allowed = math.floor(false_positives * evidence.size)
    highest_not_allowed = np.partition(evidence, -1 - allowed)[-1 - allowed]
    share = f"{100 * false_positives:g} % of the normal validation scans' pixels"
    if highest_not_allowed >= 1:
        return Threshold(None, f"more than {share} show as much evidence as there can be")
    return Threshold(float(np.nextafter(highest_not_allowed, np.float32(1))), f"at most {share} are found")
