"""Intervals by resampling patients, cheaply: figures are functions of sums over patients, weighed anew each time."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fedgan.cohort.cohort import Cohort
from fedgan.results.metrics import Estimate
from fedgan.results.scores import Integers, Sums
from fedgan.streams import generator_for

Figure = Callable[[Sums], Sums]
"""From sums (..., *S) to figures (...), NaN where a figure cannot be had."""

FEWEST_PATIENTS = 3
PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How patients are resampled: how often (0 leaves the intervals out) and from which seed.

    Patients are drawn with replacement, never single scans: nearby scans of a patient are near copies. The same
    number of patients is always drawn alike, so that two readings of the same patients can be paired.
    """

    resamplings: int
    seed: int

    def estimate(self, figure: Figure, sums: Sums | None, *, value: float | None = None) -> Estimate | None:
        """Return the figure of all patients with its 95 % percentile interval, or None if it cannot be had.

        Args:
            sums: one entry per patient; None where no patient counts.
            value: the figure itself, where it is known more exactly than from ``sums``.

        Shapes: ``sums`` (P, *S).
        """
        if sums is None:
            return None
        point = float(figure(sums.sum(0))) if value is None else value
        if np.isnan(point):
            return None
        figures = self.figures(figure, sums)
        if not len(figures):
            return Estimate(value=point)
        low, high = np.percentile(figures, PERCENTILES)
        return Estimate(value=point, low=float(low), high=float(high))

    def figures(self, figure: Figure, sums: Sums) -> Sums:
        """Return the figure of each resampling in which it can be had; of none, if there are fewer than 3 patients."""
        if len(sums) < FEWEST_PATIENTS:
            return np.empty(0)
        drawn = self._draw(len(sums)) @ sums.reshape(len(sums), -1)
        figures = figure(drawn.reshape(-1, *sums.shape[1:]))
        return figures[~np.isnan(figures)]

    def _draw(self, patients: int) -> Sums:
        """Return how often each resampling draws each patient: (resamplings, P)."""
        rng = generator_for(self.seed, "bootstrap", patients)
        drawn = torch.randint(patients, (self.resamplings, patients), generator=rng)
        counts = torch.zeros(self.resamplings, patients, dtype=torch.float64)
        return counts.scatter_add_(1, drawn, torch.ones_like(counts)).numpy()


def sum_by_patient(terms: Sums, patients: Integers) -> Sums:
    """Return the sums of each patient's terms.

    Shapes: ``terms`` (N, T); ``patients`` (N,) from 0 to P - 1; result (P, T).

    >>> sum_by_patient(np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1]))
    array([[2.],
           [5.]])
    """
    sums = np.zeros((int(patients.max()) + 1, terms.shape[1]))
    np.add.at(sums, patients, terms)
    return sums


def patient_keys(cohort: Cohort) -> list[tuple[str, str]]:
    """Return each scan's site and patient: two sites may name a patient alike."""
    return list(zip(cohort.sites, cohort.patients, strict=True))


def patient_numbers(cohort: Cohort) -> Integers:
    """Return a number from 0 to P - 1 for each scan's patient; the same patients always get the same numbers."""
    keys = patient_keys(cohort)
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)
