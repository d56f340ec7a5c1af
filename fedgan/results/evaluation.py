"""Scored readings: what a model's maps and scan scores are worth against the truth, alone and beside others.

The formulas are in scores.py, the intervals in bootstrap.py, the pixels in pixels.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort, pool
from fedgan.results.bootstrap import PERCENTILES, Bootstrap, patient_keys, patient_numbers, sum_by_patient
from fedgan.results.metrics import Arm, Comparison, Estimate, Scores
from fedgan.results.pixels import Pixels
from fedgan.results.scores import (
    Sums,
    area_under_roc,
    average_precision,
    best_dice,
    box_cover,
    dice,
    histograms,
    intersection_over_map_box,
    iou,
    levels_of,
    mean,
    pointing_hits,
    precision,
    recall,
)
from fedgan.results.thresholds import Choose, Threshold

Kind = Literal["federated", "local", "pooled", "control"]

LEVELS = 1024
"""Levels per class in a resampling: they cost average precision less than 0.002."""

AUPRO_LIMIT = 0.3
"""Largest false positive rate of AUPRO (Bergmann et al. 2020)."""

IOBB_NEEDED = 0.25
"""T(IoBB) of Wang et al. 2017."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model makes of a cohort: a disease map and a score for each scan, beside the truth.

    Shapes: ``maps`` (N, H, W) float32 in [0, 1]; ``image_scores`` (N,), higher for more disease.

    Raises:
        ValueError: the maps or scores are not one per scan of the cohort, or a map leaves [0, 1].
    """

    maps: Tensor
    image_scores: Tensor
    cohort: Cohort

    def __post_init__(self) -> None:
        """Check that maps, scores and scans belong together."""
        if self.maps.shape != self.cohort.masks.shape or self.image_scores.shape != self.cohort.status.shape:
            raise ValueError("a reading needs one map of the scan's size, and one score, for each scan of the cohort")
        if not bool(((self.maps >= 0) & (self.maps <= 1)).all()):
            raise ValueError("disease maps lie in [0, 1]; these do not")

    @classmethod
    def joined(cls, parts: Sequence["Reading"]) -> "Reading":
        """Return the readings of several cohorts, of which there is at least one, as one of all their scans."""
        return cls(
            torch.cat([part.maps for part in parts]),
            torch.cat([part.image_scores for part in parts]),
            pool([part.cohort for part in parts]),
        )

    def where(self, chosen: Tensor) -> "Reading":
        """Return the reading of the scans that are ``chosen``, (N,) bool."""
        rows = chosen.nonzero().flatten().tolist()
        return Reading(self.maps[chosen], self.image_scores[chosen], self.cohort.take(rows))


def score(reading: Reading, *, threshold: float | None, bootstrap: Bootstrap) -> Scores:
    """Return every figure of a reading; unlabelled scans never count.

    Each figure has an interval over the patients who count for it.

    Args:
        threshold: chosen on validation scans, see thresholds.py; a pixel at the threshold is found. None leaves out
            the figures that need one.
    """
    labelled = reading.where(reading.cohort.status != UNLABELLED)
    abnormal = labelled.where(labelled.cohort.status == ABNORMAL)
    pixels = Pixels.of(labelled.maps, labelled.cohort)
    found = None if pixels is None or threshold is None else pixels.found(threshold)
    average, best, aupro = (None, None, None) if pixels is None else _over_thresholds(pixels, bootstrap)
    image_auroc, image_ap = _of_scans(labelled, bootstrap)
    return Scores(
        num_images=len(labelled.cohort),
        num_patients=len(set(patient_keys(labelled.cohort))),
        num_masked=int(abnormal.cohort.has_mask.sum()),
        pixel_ap=average,
        best_dice=best,
        dice=bootstrap.estimate(dice, found),
        iou=bootstrap.estimate(iou, found),
        poi=bootstrap.estimate(recall, found),
        pixel_precision=bootstrap.estimate(precision, found),
        aupro=aupro,
        pointing_game=bootstrap.estimate(mean, _pointed(abnormal)),
        iobb=None if threshold is None else bootstrap.estimate(mean, _boxed(abnormal, threshold)),
        box_ap=_over_boxes(labelled, bootstrap),
        image_auroc=image_auroc,
        image_ap=image_ap,
    )


def score_arm(
    name: str, kind: Kind, reading: Reading, *, steps: int | None, threshold: Threshold, bootstrap: Bootstrap
) -> Arm:
    """Return an arm's figures over all sites' scans and over each site's, sites by name; see ``score``."""
    per_site = {}
    for site in sorted(set(reading.cohort.sites)):
        part = reading.where(torch.tensor([site == other for other in reading.cohort.sites]))
        per_site[site] = score(part, threshold=threshold.value, bootstrap=bootstrap)
    return Arm(
        name=name,
        kind=kind,
        steps=steps,
        threshold=threshold.value,
        threshold_by=threshold.chosen_by,
        overall=score(reading, threshold=threshold.value, bootstrap=bootstrap),
        per_site=per_site,
    )


def pixel_ap(reading: Reading) -> float | None:
    """Return the average precision of all pixels whose truth is known, or None without a mask."""
    pixels = Pixels.of(reading.maps, reading.cohort)
    return None if pixels is None else pixels.average_precision()


def compare(
    federated: Reading, other: Reading | Sequence[Reading], *, against: str, bootstrap: Bootstrap
) -> Comparison | None:
    """Return the federated arm's pixel AP minus another's, or minus the mean of several others'.

    Each resampling draws the same patients for all. None without masks, resamplings, or at least 3 patients.

    Raises:
        ValueError: the readings are not of the same scans in the same order.
    """
    readings = [federated, *([other] if isinstance(other, Reading) else other)]
    if not all(_same_scans(each.cohort, federated.cohort) for each in readings):
        raise ValueError("arms can only be compared on the same scans in the same order")
    pixels = [known for each in readings if (known := Pixels.of(each.maps, each.cohort))]
    resampled = [bootstrap.figures(average_precision, each.histograms(each.levels(most=LEVELS))) for each in pixels]
    if len(pixels) < len(readings) or not len(resampled[0]):
        return None
    values = [each.average_precision() for each in pixels]
    differences = resampled[0] - np.mean(resampled[1:], axis=0)
    low, high = np.percentile(differences, PERCENTILES)
    return Comparison(
        metric="pixel_ap",
        against=against,
        difference=values[0] - float(np.mean(values[1:])),
        low=float(low),
        high=float(high),
        share_better=float((differences > 0).mean()),
    )


def _same_scans(a: Cohort, b: Cohort) -> bool:
    return patient_keys(a) == patient_keys(b) and torch.equal(a.masks, b.masks) and torch.equal(a.has_mask, b.has_mask)


def controls(test: Cohort, val: Cohort, *, choose: Choose, bootstrap: Bootstrap) -> tuple[Arm, ...]:
    """Return what needs no model: brightness as the map, smoothed ever more; and a map that is 1 everywhere.

    Each has a threshold of its own, which ``choose`` chooses on the scans of ``val``.
    """
    arms = []
    for name, read in _CONTROLS.items():
        threshold = choose(read(val).maps, val)
        arms.append(score_arm(name, "control", read(test), steps=None, threshold=threshold, bootstrap=bootstrap))
    return tuple(arms)


def _brightness(cohort: Cohort, *, smoothing: float) -> Reading:
    """Return a reading whose maps are the scans, smoothed by so many pixels of a 64 x 64 scan."""
    sigma = smoothing * cohort.images.shape[-1] / 64
    smooth = gaussian_filter(cohort.images[:, 0].numpy(), (0, sigma, sigma))
    maps = torch.from_numpy(smooth).add(1).div(2).clamp(0, 1)
    return Reading(maps, maps.mean((1, 2)), cohort)


def _everywhere(cohort: Cohort) -> Reading:
    return Reading(torch.ones(cohort.masks.shape), torch.ones(len(cohort)), cohort)


_CONTROLS = {f"brightness {pixels} px": partial(_brightness, smoothing=pixels) for pixels in (0, 1, 2, 4)} | {
    "all ones": _everywhere
}


def _over_thresholds(pixels: Pixels, bootstrap: Bootstrap) -> tuple[Estimate | None, ...]:
    """Return pixel AP, best Dice and AUPRO: exact themselves, their intervals by histograms of few levels."""
    pooled, sums = pixels.pooled(pixels.levels()), pixels.histograms(pixels.levels(most=LEVELS))
    aupro = partial(area_under_roc, limit=AUPRO_LIMIT)
    regions_and_normal = [2, 1]
    return (
        bootstrap.estimate(average_precision, sums, value=pixels.average_precision()),
        bootstrap.estimate(best_dice, sums, value=float(best_dice(pooled))),
        bootstrap.estimate(aupro, sums[:, regions_and_normal], value=float(aupro(pooled[regions_and_normal]))),
    )


def _over_boxes(labelled: Reading, bootstrap: Bootstrap) -> Estimate | None:
    """Return the average precision of pixels with boxes in place of masks, None without a box."""
    cohort = labelled.cohort
    is_known = (cohort.status == NORMAL) | torch.tensor([bool(boxes) for boxes in cohort.boxes], dtype=torch.bool)
    covers = torch.from_numpy(_box_covers(cohort) >= 0.5) & (cohort.status == ABNORMAL)[:, None, None]
    pixels = Pixels.of(labelled.maps, replace(cohort, masks=covers, has_mask=is_known))
    if pixels is None:
        return None
    sums = pixels.histograms(pixels.levels(most=LEVELS))
    return bootstrap.estimate(average_precision, sums, value=pixels.average_precision())


def _pointed(abnormal: Reading) -> Sums | None:
    """Return each patient's hits of the pointing game, and its number of scans with a mask or box: (P, 2)."""
    cohort = abnormal.cohort
    truth = torch.where(cohort.has_mask[:, None, None], cohort.masks, torch.from_numpy(_box_covers(cohort) > 0))
    is_located = truth.any(2).any(1)
    located = abnormal.where(is_located)
    hits = pointing_hits(located.maps.numpy(), truth[is_located].numpy())
    return _tally(hits, located.cohort)


def _boxed(abnormal: Reading, threshold: float) -> Sums | None:
    """Return each patient's scans whose IoBB is enough, and its number of scans with a box: (P, 2)."""
    boxed = abnormal.where(torch.tensor([bool(boxes) for boxes in abnormal.cohort.boxes], dtype=torch.bool))
    pairs = zip(boxed.maps.numpy(), _box_covers(boxed.cohort), strict=True)
    shares = [intersection_over_map_box(disease_map, cover, threshold) for disease_map, cover in pairs]
    return _tally(np.array(shares) >= IOBB_NEEDED, boxed.cohort)


def _of_scans(labelled: Reading, bootstrap: Bootstrap) -> tuple[Estimate | None, Estimate | None]:
    """Return AUROC and average precision of the scans' scores, None where there is only one class."""
    abnormal, scores = (labelled.cohort.status == ABNORMAL).numpy(), labelled.image_scores.numpy()
    if abnormal.all() or not abnormal.any():
        return None, None
    levels = levels_of(scores, abnormal, most=LEVELS)
    sums = histograms(scores, [abnormal, ~abnormal], patient_numbers(labelled.cohort), levels)
    return (
        bootstrap.estimate(area_under_roc, sums, value=float(roc_auc_score(abnormal, scores))),
        bootstrap.estimate(average_precision, sums, value=float(average_precision_score(abnormal, scores))),
    )


def _tally(hits: NDArray[np.generic], cohort: Cohort) -> Sums | None:
    if not len(hits):
        return None
    return sum_by_patient(np.stack([hits, np.ones(len(hits))], axis=1), patient_numbers(cohort))


def _box_covers(cohort: Cohort) -> Sums:
    return np.array([box_cover(boxes, *cohort.masks.shape[1:]) for boxes in cohort.boxes]).reshape(cohort.masks.shape)
