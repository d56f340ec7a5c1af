"""Figures of merit as pure functions: from counts, histograms and single maps; whose they are is said elsewhere.

A histogram counts pixels (or scans) by the level of their value, highest level first, so that a running sum along it
counts what a falling threshold finds. The figures of histograms take any number of leading axes: a row per resampling.
A figure that cannot be had is NaN here.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects, label

from fedgan.cohort.cohort import Box

Floats = NDArray[np.floating]
Flags = NDArray[np.bool_]
Integers = NDArray[np.int64]
Sums = NDArray[np.float64]

TOUCHING = np.ones((3, 3))
"""Pixels of a region touch by a side or a corner, as in Bergmann et al. 2020."""


def levels_of(values: Floats, truth: Flags, *, most: int | None = None) -> Floats:
    """Return the distinct values, highest first, or some of them between which few others lie.

    Args:
        most: values taken of each class, at even steps of rank; None takes all. From one level to the next then come
            at most 1 in ``most - 1`` of the abnormal and of the normal, ties apart.

    Shapes: ``values`` and ``truth`` (n,); result (L,).
    """
    if most is None:
        return np.unique(values)[::-1]
    classes = [np.sort(found) for found in (values[truth], values[~truth]) if len(found)]
    picked = [found[np.linspace(0, len(found) - 1, most).astype(int)] for found in classes]
    return np.unique(np.concatenate(picked))[::-1]


def histograms(values: Floats, weights: Sequence[NDArray[np.generic]], groups: Integers, levels: Floats) -> Sums:
    """Return, for each group, how much of each weight lies at each level; a value counts at the level just below it.

    Shapes: ``values``, each of ``weights``, and ``groups`` (n,), numbers from 0 to P - 1; ``levels`` (L,);
    result (P, T, L) for T weights.

    >>> histograms(np.array([0.9, 0.5, 0.1]), [np.array([1, 0, 1])], np.array([0, 0, 0]), np.array([0.9, 0.1]))
    array([[[1., 1.]]])
    """
    num_groups, num_levels = int(groups.max()) + 1, len(levels)
    places = groups * num_levels + np.searchsorted(-levels, -values)
    counts = [np.bincount(places, weight, minlength=num_groups * num_levels) for weight in weights]
    return np.stack([count.reshape(num_groups, num_levels) for count in counts], axis=1)


def average_precision(sums: Sums) -> Sums:
    """Return the sum over levels of precision times the recall it adds.

    Shapes: ``sums`` (..., 2, L), histograms of the abnormal and the normal; result (...).

    >>> average_precision(np.array([[1.0, 1.0], [0.0, 2.0]]))
    array(0.75)
    """
    hits, misses = sums[..., 0, :], sums[..., 1, :]
    found, false = hits.cumsum(-1), misses.cumsum(-1)
    precision = ratio(found, found + false, otherwise=0.0)
    return ratio((hits * precision).sum(-1), np.where(false[..., -1] > 0, found[..., -1], 0))


def dice_by_level(sums: Sums) -> Sums:
    """Return the Dice coefficient with each level as the threshold.

    Shapes: ``sums`` (..., 2, L), histograms of the abnormal and the normal; result (..., L).

    >>> dice_by_level(np.array([[1.0, 1.0], [0.0, 2.0]])).round(3)
    array([0.667, 0.667])
    """
    found, false = sums[..., 0, :].cumsum(-1), sums[..., 1, :].cumsum(-1)
    lesion = found[..., -1:]
    return ratio(2 * found, np.where(lesion > 0, found + false + lesion, 0))


def best_dice(sums: Sums) -> Sums:
    """Return the largest Dice coefficient over all levels; shapes as in ``average_precision``."""
    largest: Sums = dice_by_level(sums).max(-1)
    return largest


def area_under_roc(sums: Sums, *, limit: float = 1.0) -> Sums:
    """Return the mean share of hits over false positive rates from 0 to ``limit``, by the trapezoidal rule.

    With regions' weights as hits and ``limit`` 0.3 this is AUPRO (Bergmann et al. 2020, arXiv:1911.02357): the hits of
    a region sum to 1, so their running sum over the number of regions is the mean overlap per region.

    Shapes: ``sums`` (..., 2, L), histograms of the hits and the normal; result (...).

    >>> float(area_under_roc(np.array([[1.0, 1.0], [0.0, 2.0]])))
    0.75
    """
    overlap, rate = (ratio(part, part.sum(-1, keepdims=True)) for part in (sums[..., 0, :], sums[..., 1, :]))
    end = rate.cumsum(-1)
    width = np.minimum(end, limit) - np.minimum(end - rate, limit)
    middle = overlap.cumsum(-1) - overlap + overlap * ratio(width, rate, otherwise=0.0) / 2
    area: Sums = np.minimum((width * middle).sum(-1) / limit, 1.0)
    return area


def dice(sums: Sums) -> Sums:
    """Return Dice of pixels; shapes: ``sums`` (..., 3), found, missed and falsely found; result (...).

    >>> dice(np.array([4.0, 1.0, 1.0]))
    array(0.8)
    """
    found, missed, false = np.moveaxis(sums, -1, 0)
    return ratio(2 * found, np.where(found + missed > 0, 2 * found + missed + false, 0))


def iou(sums: Sums) -> Sums:
    """Return intersection over union of pixels; shapes as in ``dice``.

    >>> iou(np.array([2.0, 1.0, 1.0]))
    array(0.5)
    """
    found, missed, false = np.moveaxis(sums, -1, 0)
    return ratio(found, np.where(found + missed > 0, found + missed + false, 0))


def recall(sums: Sums) -> Sums:
    """Return the share of the lesions' pixels that were found, PoI in Nawaz et al. 2025; shapes as in ``dice``."""
    found, missed, _ = np.moveaxis(sums, -1, 0)
    return ratio(found, found + missed)


def precision(sums: Sums) -> Sums:
    """Return the share of what was found that is lesion; shapes as in ``dice``."""
    found, missed, false = np.moveaxis(sums, -1, 0)
    return ratio(found, np.where(found + missed > 0, found + false, 0))


def mean(sums: Sums) -> Sums:
    """Return total over number; shapes: ``sums`` (..., 2); result (...)."""
    return ratio(sums[..., 0], sums[..., 1])


def ratio(part: Sums, whole: Sums, *, otherwise: float = np.nan) -> Sums:
    """Return ``part / whole``, and ``otherwise`` where ``whole`` is 0."""
    part, whole = np.broadcast_arrays(part, whole)
    quotient: Sums = np.divide(part, whole, out=np.full(part.shape, otherwise), where=whole > 0)
    return quotient


def region_weights(masks: Flags) -> Sums:
    """Return 1 / size of its connected region at each lesion pixel, else 0; regions never span scans.

    Shapes: ``masks`` and result (N, H, W).

    >>> region_weights(np.array([[[True, True, False, True]]]))
    array([[[0.5, 0.5, 0. , 1. ]]])
    """
    within_a_scan = np.stack([np.zeros((3, 3)), TOUCHING, np.zeros((3, 3))])
    regions, _ = label(masks, structure=within_a_scan)
    sizes = np.bincount(regions.ravel())[regions]
    weights: Sums = masks / sizes
    return weights


def box_cover(boxes: Sequence[Box], height: int, width: int) -> Sums:
    """Return which share of each pixel lies in the boxes; where boxes overlap, in the one that covers most of it.

    Shapes: result (H, W).

    >>> box_cover([(1.0, 0.0, 1.5, 1.0)], 2, 4)
    array([[0. , 1. , 0.5, 0. ],
           [0. , 0. , 0. , 0. ]])
    """
    cover = np.zeros((height, width))
    for left, top, wide, high in boxes:
        rows, columns = _shares(top, high, height), _shares(left, wide, width)
        cover = np.maximum(cover, np.outer(rows, columns))
    return cover


def _shares(start: float, length: float, size: int) -> Sums:
    """Return which share of each of ``size`` pixels lies between ``start`` and ``start + length``."""
    pixel = np.arange(size)
    shares: Sums = np.clip(np.minimum(pixel + 1, start + length) - np.maximum(pixel, start), 0, 1)
    return shares


def pointing_hits(maps: Floats, truth: Flags) -> Sums:
    """Return which share of each map's highest pixels (one, unless there are ties) lies in the truth.

    Zhang et al. 2016 (arXiv:1608.00507) forgive 15 pixels; here nothing is forgiven.

    Shapes: ``maps`` and ``truth`` (N, H, W); result (N,).
    """
    highest = maps == maps.max((1, 2), keepdims=True)
    shares: Sums = (highest & truth).sum((1, 2)) / highest.sum((1, 2))
    return shares


def intersection_over_map_box(disease_map: Floats, cover: Sums, threshold: float) -> float:
    """Return the share of the map's box that lies in the truth's boxes: IoBB (Wang et al. 2017, arXiv:1705.02315).

    The map's box encloses the connected region, at the threshold, of the highest pixel; without one, 0.

    Shapes: ``disease_map`` and ``cover`` (H, W).
    """
    regions, _ = label(disease_map >= threshold, structure=TOUCHING)
    highest = regions.flat[disease_map.argmax()]
    if highest == 0:
        return 0.0
    box = find_objects(regions)[highest - 1]
    return float(cover[box].mean())
