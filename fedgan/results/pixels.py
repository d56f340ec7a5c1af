"""The pixels whose truth is known, and what of them each patient contributes to a figure."""

from dataclasses import dataclass, replace

import numpy as np
from sklearn.metrics import average_precision_score
from torch import Tensor

from fedgan.cohort.cohort import UNLABELLED, Cohort
from fedgan.results.bootstrap import patient_numbers, sum_by_patient
from fedgan.results.scores import Flags, Floats, Integers, Sums, histograms, levels_of, region_weights


@dataclass(frozen=True, slots=True)
class Pixels:
    """Maps of scans whose lesions are known, with both lesion and normal pixels among them.

    Shapes: ``maps`` and ``masks`` (N, H, W); ``patients`` (N,) from 0 to P - 1.
    """

    maps: Floats
    masks: Flags
    patients: Integers

    @classmethod
    def of(cls, maps: Tensor, cohort: Cohort) -> "Pixels | None":
        """Return the pixels of the labelled scans with a mask (a normal scan's is empty), or None without a lesion."""
        known = cohort.has_mask & (cohort.status != UNLABELLED)
        masks = cohort.masks[known].numpy()
        if masks.all() or not masks.any():
            return None
        _, patients = np.unique(patient_numbers(cohort)[known.numpy()], return_inverse=True)
        return cls(maps[known].numpy(), masks, patients)

    def average_precision(self) -> float:
        """Return the exact average precision of all pixels."""
        return float(average_precision_score(self.masks.ravel(), self.maps.ravel()))

    def levels(self, *, most: int | None = None) -> Floats:
        """Return thresholds worth trying, highest first; see ``levels_of``."""
        return levels_of(self.maps.ravel(), self.masks.ravel(), most=most)

    def histograms(self, levels: Floats) -> Sums:
        """Return each patient's lesion pixels, normal pixels, and shares of regions by level: (P, 3, L)."""
        weights = (self.masks, ~self.masks, region_weights(self.masks))
        groups = np.repeat(self.patients, self.masks[0].size)
        return histograms(self.maps.ravel(), [weight.ravel() for weight in weights], groups, levels)

    def pooled(self, levels: Floats) -> Sums:
        """Return the same of all patients together: (3, L)."""
        everyone = replace(self, patients=np.zeros_like(self.patients))
        pooled: Sums = everyone.histograms(levels)[0]
        return pooled

    def found(self, threshold: float) -> Sums:
        """Return each patient's pixels that are found, missed and falsely found: (P, 3)."""
        found = self.maps >= threshold
        terms = (found & self.masks, ~found & self.masks, found & ~self.masks)
        return sum_by_patient(np.stack([term.sum((1, 2)) for term in terms], axis=1), self.patients)
