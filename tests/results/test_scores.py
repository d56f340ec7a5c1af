"""Figures of merit on cases a reader can count by hand, and against scikit-learn on cases nobody can."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from fedgan.results.scores import (
    area_under_roc,
    average_precision,
    best_dice,
    box_cover,
    dice,
    dice_by_level,
    histograms,
    intersection_over_map_box,
    iou,
    levels_of,
    mean,
    pointing_hits,
    precision,
    recall,
    region_weights,
)

# Found, missed and falsely found pixels.
COUNTS = np.array([3.0, 1.0, 2.0])


def sums_of(values, truth, *, most=None):
    levels = levels_of(values, truth, most=most)
    return histograms(values, [truth, ~truth], np.zeros(len(values), dtype=int), levels)[0]


@st.composite
def values_and_truth(draw):
    """Values from a few (many ties) to all different, with both classes."""
    size = draw(st.integers(2, 60))
    distinct = draw(st.sampled_from([2, 5, 1000]))
    values = draw(arrays(np.float32, size, elements=st.integers(0, distinct).map(lambda step: step / distinct)))
    truth = draw(arrays(np.bool_, size).filter(lambda flags: flags.any() and not flags.all()))
    return values, truth


@given(values_and_truth())
@settings(deadline=None)
def test_figures_over_all_levels_are_those_of_scikit_learn(case):
    values, truth = case

    sums = sums_of(values, truth)

    precisions, recalls, _ = precision_recall_curve(truth, values)
    dices = [2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True) if p + r]
    assert average_precision(sums) == pytest.approx(average_precision_score(truth, values))
    assert area_under_roc(sums) == pytest.approx(roc_auc_score(truth, values))
    assert best_dice(sums) == pytest.approx(max(dices))


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("decimals", [2, 7])
def test_a_thousand_levels_change_figures_by_less_than_two_thousandths(shift, decimals):
    rng = np.random.default_rng(5)
    truth = rng.random(200_000) < 0.02
    values = (1 / (1 + np.exp(-rng.normal(shift * truth)))).round(decimals).astype(np.float32)

    sums = sums_of(values, truth, most=1024)

    assert sums.shape[-1] <= 2048
    assert average_precision(sums) == pytest.approx(average_precision_score(truth, values), abs=2e-3)
    assert area_under_roc(sums) == pytest.approx(roc_auc_score(truth, values), abs=2e-3)
    assert best_dice(sums) == pytest.approx(best_dice(sums_of(values, truth)), abs=2e-3)


@given(values_and_truth())
@settings(deadline=None)
def test_as_many_levels_as_pixels_change_nothing(case):
    values, truth = case

    assert np.array_equal(levels_of(values, truth, most=60), levels_of(values, truth))


def test_overlap_figures_follow_from_the_counts():
    assert dice(COUNTS) == pytest.approx(6 / 9)
    assert iou(COUNTS) == pytest.approx(3 / 6)
    assert recall(COUNTS) == pytest.approx(3 / 4)
    assert precision(COUNTS) == pytest.approx(3 / 5)
    assert mean(np.array([3.0, 4.0])) == pytest.approx(0.75)


def test_overlap_figures_cannot_be_had_without_a_lesion():
    nothing_to_find = np.array([0.0, 0.0, 2.0])

    assert all(np.isnan(figure(nothing_to_find)) for figure in (dice, iou, recall, precision))


def test_precision_cannot_be_had_when_nothing_is_found():
    nothing_found = np.array([0.0, 4.0, 0.0])

    assert np.isnan(precision(nothing_found))
    assert dice(nothing_found) == 0


@pytest.mark.parametrize("sums", [[[0.0, 0.0], [1.0, 2.0]], [[1.0, 2.0], [0.0, 0.0]]])
def test_ranking_figures_cannot_be_had_with_one_class(sums):
    assert np.isnan(average_precision(np.array(sums)))
    assert np.isnan(area_under_roc(np.array(sums)))


def test_figures_take_a_row_for_each_resampling():
    one, other = np.array([[1.0, 1.0], [0.0, 2.0]]), np.array([[0.0, 2.0], [2.0, 0.0]])

    assert average_precision(np.stack([one, other])) == pytest.approx([0.75, 0.5])
    assert area_under_roc(np.stack([one, other])) == pytest.approx([0.75, 0.0])
    assert dice_by_level(np.stack([one, other])) == pytest.approx(np.array([[2 / 3, 2 / 3], [0.0, 2 / 3]]))


def test_aupro_counts_a_small_region_as_much_as_a_large_one():
    mask = np.array([[[True, True, True, False, True, False, False, False]]])
    disease_map = np.array([[[0.9, 0.9, 0.9, 0.1, 0.2, 0.8, 0.1, 0.1]]])
    weights, levels = region_weights(mask), levels_of(disease_map.ravel(), mask.ravel())

    sums = histograms(disease_map.ravel(), [weights.ravel(), ~mask.ravel()], np.zeros(8, dtype=int), levels)[0]

    # The large region is found at once; the small one after 1 of 4 normal pixels, between rates 0.25 and 1.
    assert area_under_roc(sums, limit=0.25) == pytest.approx(0.5)
    assert area_under_roc(sums, limit=0.5) == pytest.approx((0.25 * 0.5 + 0.25 * 1.0) / 0.5)


def test_area_up_to_a_limit_ends_between_levels():
    sums = np.array([[0.0, 1.0], [0.0, 4.0]])

    assert area_under_roc(sums, limit=0.3) == pytest.approx(0.15)


@given(values_and_truth())
@settings(deadline=None)
def test_area_up_to_a_limit_is_that_below_the_roc_curve(case):
    values, truth = case

    rates, hits, _ = roc_curve(truth, values, drop_intermediate=False)
    upright = np.linspace(0, 0.3, 30_001)
    below = np.interp(upright, rates + np.arange(len(rates)) * 1e-12, hits).mean()

    assert area_under_roc(sums_of(values, truth), limit=0.3) == pytest.approx(below, abs=1e-3)


def test_regions_touch_by_corners_and_never_across_scans():
    masks = np.zeros((2, 3, 3), dtype=bool)
    masks[0, 0, 0] = masks[0, 1, 1] = masks[1, 1, 1] = True

    weights = region_weights(masks)

    assert (weights[0, 0, 0], weights[0, 1, 1], weights[1, 1, 1]) == (0.5, 0.5, 1.0)
    assert weights.sum() == 2


def test_a_box_covers_pixels_in_part_and_ends_at_the_scan():
    cover = box_cover([(0.5, 1.0, 1.0, 5.0), (1.0, 1.0, 1.0, 1.0)], 3, 3)

    assert cover.tolist() == [[0, 0, 0], [0.5, 1, 0], [0.5, 0.5, 0]]


def test_pointing_hits_where_the_highest_pixel_lies_in_the_truth():
    maps = np.array([[[0.1, 0.9]], [[0.9, 0.1]], [[0.5, 0.5]]])
    truth = np.array([[[False, True]]] * 3)

    hits = pointing_hits(maps, truth)

    assert hits.tolist() == [1.0, 0.0, 0.5]


def test_iobb_takes_the_box_of_the_region_of_the_highest_pixel():
    disease_map = np.zeros((4, 6))
    disease_map[0, 0] = disease_map[1, 1] = 0.9
    disease_map[3, 4:] = 0.8
    cover = box_cover([(1.0, 0.0, 5.0, 2.0)], 4, 6)

    share = intersection_over_map_box(disease_map, cover, threshold=0.5)

    assert share == 0.5


def test_iobb_is_zero_where_nothing_reaches_the_threshold():
    assert intersection_over_map_box(np.full((2, 2), 0.4), np.ones((2, 2)), threshold=0.5) == 0.0
