"""Readings of small cohorts whose every figure can be counted, and what must hold for any reading."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.evaluation import Reading, pixel_ap, score
from fedgan.results.thresholds import by_masks

BOOTSTRAP = Bootstrap(resamplings=200, seed=0)
PIXEL_FIGURES = ("pixel_ap", "best_dice", "dice", "iou", "poi", "pixel_precision", "aupro")
SCAN_FIGURES = ("pointing_game", "iobb", "box_ap")
IMAGE_FIGURES = ("image_auroc", "image_ap")


def cohort_of(masks, status, *, patients=None, sites=None, has_mask=None, boxes=None):
    masks, number = torch.as_tensor(masks, dtype=torch.bool), len(status)
    status = torch.tensor(status)
    return Cohort(
        disease_names=("tumour",),
        images=torch.where(masks, 0.5, -0.5)[:, None],
        status=status,
        diseases=(status == ABNORMAL).float()[:, None],
        masks=masks,
        has_mask=torch.ones(number, dtype=torch.bool) if has_mask is None else torch.tensor(has_mask),
        boxes=((),) * number if boxes is None else boxes,
        patients=tuple(map(str, range(number))) if patients is None else patients,
        splits=("test",) * number,
        sites=("A",) * number if sites is None else sites,
    )


def reading_of(maps, cohort, scores=None):
    maps = torch.as_tensor(maps, dtype=torch.float32)
    return Reading(maps, maps.mean((1, 2)) if scores is None else torch.tensor(scores), cohort)


def random_reading(seed, *, scans=12, patients=6, distinct=1000):
    """Lesions of 2 x 2 pixels, somewhat brighter in the maps; patients of two scans, at two sites."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((scans, 8, 8), dtype=bool)
    for scan in range(0, scans, 2):
        top, left = rng.integers(0, 7, 2)
        masks[scan, top : top + 2, left : left + 2] = True
    maps = np.clip(((rng.random(masks.shape) + 0.4 * masks) / 1.4 * distinct).round() / distinct, 0, 1)
    names = [str(scan * patients // scans) for scan in range(scans)]
    cohort = cohort_of(
        masks,
        [ABNORMAL, NORMAL] * (scans // 2),
        patients=tuple(names),
        sites=tuple("AB"[int(name) % 2] for name in names),
    )
    return reading_of(maps, cohort)


def values_of(scores):
    """Each figure by name, without its interval."""
    found = {name: getattr(scores, name) for name in (*PIXEL_FIGURES, *SCAN_FIGURES, *IMAGE_FIGURES)}
    return {name: estimate and estimate.value for name, estimate in found.items()}


def numbers_of(scores):
    """Every number of the scores, intervals included, in the order of the schema."""
    for found in scores.model_dump().values():
        yield from found.values() if isinstance(found, dict) else [found]


# One lesion of two pixels; the map finds one of them, and one normal pixel of the normal scan.
SMALL = reading_of(
    [[[0.9, 0.2, 0.1]], [[0.6, 0.1, 0.0]]], cohort_of([[[1, 1, 0]], [[0, 0, 0]]], [ABNORMAL, NORMAL]), [0.8, 0.3]
)


def test_figures_of_six_pixels_are_those_counted_by_hand():
    scores = score(SMALL, threshold=0.5, bootstrap=BOOTSTRAP)

    assert (scores.num_images, scores.num_patients, scores.num_masked) == (2, 2, 1)
    assert values_of(scores) == pytest.approx(
        {
            "pixel_ap": 1 / 2 * 1 + 1 / 2 * 2 / 3,
            "best_dice": 4 / 5,
            "dice": 1 / 2,
            "iou": 1 / 3,
            "poi": 1 / 2,
            "pixel_precision": 1 / 2,
            "aupro": (0.25 * 0.5 + 0.05 * 1.0) / 0.3,
            "pointing_game": 1.0,
            "iobb": None,
            "box_ap": None,
            "image_auroc": 1.0,
            "image_ap": 1.0,
        }
    )


def test_the_chosen_threshold_reaches_the_best_dice_on_the_same_scans():
    threshold = by_masks(SMALL.maps, SMALL.cohort).value

    scores = score(SMALL, threshold=threshold, bootstrap=BOOTSTRAP)

    assert threshold == pytest.approx(0.2)
    assert scores.dice == scores.best_dice


def test_golden_figures_of_a_random_reading():
    scores = score(random_reading(1), threshold=0.7, bootstrap=BOOTSTRAP)

    golden = {
        "pixel_ap": (0.5784, 0.3369, 0.8140),
        "best_dice": (0.6667, 0.4503, 0.8300),
        "dice": (0.5306, 0.3251, 0.6786),
        "iou": (0.3611, 0.1941, 0.5135),
        "poi": (0.5417, 0.2906, 0.7917),
        "pixel_precision": (0.5200, 0.3750, 0.6000),
        "aupro": (0.6474, 0.3881, 0.8887),
        "pointing_game": (0.8333, 0.5000, 1.0000),
        "image_auroc": (0.7778, 0.4146, 1.0000),
        "image_ap": (0.8433, 0.6667, 1.0000),
    }
    for name, numbers in golden.items():
        found = getattr(scores, name)
        assert (found.value, found.low, found.high) == pytest.approx(numbers, abs=1e-4), name


@given(st.integers(0, 999), st.sampled_from([3, 10, 1000]), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=15)
def test_the_order_of_scans_changes_nothing(seed, distinct, random):
    reading = random_reading(seed, distinct=distinct)
    rows = list(range(12))
    random.shuffle(rows)
    shuffled = Reading(reading.maps[rows], reading.image_scores[rows], reading.cohort.take(rows))

    before, after = (score(each, threshold=0.5, bootstrap=BOOTSTRAP) for each in (reading, shuffled))

    assert list(numbers_of(after)) == pytest.approx(list(numbers_of(before)))


@given(st.integers(0, 999), st.sampled_from([3, 10, 1000]))
@settings(deadline=None, max_examples=15)
def test_figures_over_all_thresholds_only_know_the_order_of_pixels(seed, distinct):
    reading = random_reading(seed, distinct=distinct)
    # Exact in float32: the values are different integers over 1000 and stay different.
    stretched = replace(reading, maps=(reading.maps * 1000).round() ** 2 / 2**20)

    before, after = (score(each, threshold=None, bootstrap=BOOTSTRAP) for each in (reading, stretched))

    assert (after.pixel_ap, after.best_dice, after.aupro) == (before.pixel_ap, before.best_dice, before.aupro)


@given(st.integers(0, 999), st.floats(0, 1, width=32))
@settings(deadline=None, max_examples=25)
def test_no_threshold_beats_the_best_dice(seed, threshold):
    scores = score(random_reading(seed), threshold=threshold, bootstrap=BOOTSTRAP)

    assert scores.dice.value <= scores.best_dice.value + 1e-12
    assert scores.iou.value <= scores.dice.value <= min(1, 2 * scores.iou.value)


@given(st.integers(0, 999), st.sampled_from([3, 1000]))
@settings(deadline=None, max_examples=15)
def test_pixel_ap_is_that_of_scikit_learn(seed, distinct):
    reading = random_reading(seed, distinct=distinct)

    expected = average_precision_score(reading.cohort.masks.flatten(), reading.maps.flatten())

    assert pixel_ap(reading) == expected
    assert score(reading, threshold=None, bootstrap=BOOTSTRAP).pixel_ap.value == expected


def test_a_map_of_ones_has_the_share_of_lesion_pixels_as_its_ap():
    cohort = random_reading(0).cohort
    share = cohort.masks.float().mean().item()

    scores = score(reading_of(torch.ones(cohort.masks.shape), cohort), threshold=1.0, bootstrap=BOOTSTRAP)

    assert scores.pixel_ap.value == pytest.approx(share)
    assert scores.best_dice.value == pytest.approx(2 * share / (1 + share))
    assert scores.pointing_game.value == pytest.approx(4 / 64)
    assert (scores.poi.value, scores.image_auroc.value) == (1.0, 0.5)
    assert scores.aupro.value == pytest.approx(0.15)


def test_the_mask_itself_is_a_perfect_map():
    cohort = random_reading(0).cohort

    scores = score(reading_of(cohort.masks.float(), cohort), threshold=0.5, bootstrap=BOOTSTRAP)

    perfect = values_of(scores)
    assert perfect.pop("iobb") is perfect.pop("box_ap") is None
    assert set(perfect.values()) == {1.0}
    assert (scores.pixel_ap.low, scores.pixel_ap.high) == (1.0, 1.0)


def test_unlabelled_scans_never_count():
    reading = random_reading(0)
    status = reading.cohort.status.clone()
    status[:4] = UNLABELLED
    partly = replace(reading, cohort=replace(reading.cohort, status=status))
    without = Reading(reading.maps[4:], reading.image_scores[4:], reading.cohort.take(range(4, 12)))

    assert score(partly, threshold=0.5, bootstrap=BOOTSTRAP) == score(without, threshold=0.5, bootstrap=BOOTSTRAP)
    assert pixel_ap(partly) == pixel_ap(without)
    assert by_masks(partly.maps, partly.cohort) == by_masks(without.maps, without.cohort)


def test_an_abnormal_scan_without_a_mask_counts_for_its_score_alone():
    masks = [[[1, 0]], [[0, 0]], [[0, 0]]]
    cohort = cohort_of(masks, [ABNORMAL, ABNORMAL, NORMAL], has_mask=[True, False, True])
    reading = reading_of([[[0.9, 0.1]], [[1.0, 1.0]], [[0.2, 0.1]]], cohort, [0.9, 0.1, 0.5])

    scores = score(reading, threshold=0.5, bootstrap=BOOTSTRAP)

    assert (scores.num_images, scores.num_masked) == (3, 1)
    assert (scores.pixel_ap.value, scores.dice.value, scores.image_auroc.value) == (1.0, 1.0, 0.5)


def test_figures_that_cannot_be_had_are_null():
    no_masks = cohort_of(torch.zeros(3, 2, 2), [ABNORMAL, NORMAL, NORMAL], has_mask=[False, True, True])
    reading = reading_of(torch.rand(3, 2, 2, generator=torch.Generator().manual_seed(0)), no_masks)

    scores = score(reading, threshold=0.5, bootstrap=BOOTSTRAP)

    assert all(getattr(scores, name) is None for name in (*PIXEL_FIGURES, *SCAN_FIGURES))
    assert all(getattr(scores, name) is not None for name in IMAGE_FIGURES)
    assert pixel_ap(reading) is None
    assert by_masks(reading.maps, no_masks).value is None


def test_a_site_of_one_class_has_no_image_figures_but_has_pixel_figures():
    cohort = cohort_of([[[1, 0]], [[0, 1]]], [ABNORMAL, ABNORMAL])

    scores = score(reading_of([[[0.9, 0.1]], [[0.1, 0.8]]], cohort), threshold=None, bootstrap=BOOTSTRAP)

    assert (scores.image_auroc, scores.image_ap, scores.dice) == (None, None, None)
    assert scores.pixel_ap.value == 1.0


def test_no_scans_have_no_figures():
    empty = Reading(torch.zeros(0, 8, 8), torch.zeros(0), random_reading(0).cohort.take([]))

    scores = score(empty, threshold=0.5, bootstrap=BOOTSTRAP)

    assert (scores.num_images, scores.num_patients) == (0, 0)
    assert set(values_of(scores).values()) == {None}


def test_boxes_stand_in_for_a_mask_in_pointing_and_decide_iobb():
    one_pixel = (((0.0, 0.0, 1.0, 1.0),),)
    cohort = cohort_of(
        torch.zeros(4, 1, 6), [ABNORMAL] * 4, has_mask=[False] * 4, boxes=(*one_pixel, *one_pixel, *one_pixel, ())
    )
    a_quarter, a_fifth = [[0.9, 0.8, 0.8, 0.8, 0, 0]], [[0.9, 0.8, 0.8, 0.8, 0.8, 0]]
    beside, without_box = [[0, 0, 0, 0, 0.9, 0]], [[0.9, 0, 0, 0, 0, 0]]

    scores = score(reading_of([a_quarter, a_fifth, beside, without_box], cohort), threshold=0.5, bootstrap=BOOTSTRAP)

    assert scores.pointing_game.value == pytest.approx(2 / 3)
    assert scores.iobb.value == pytest.approx(1 / 3)
    assert scores.pixel_ap is None


def test_box_ap_takes_boxes_for_masks_and_leaves_out_abnormal_scans_without_one():
    cohort = cohort_of(
        torch.zeros(3, 1, 2),
        [ABNORMAL, NORMAL, ABNORMAL],
        has_mask=[False, True, False],
        boxes=(((0.0, 0.0, 1.0, 1.0),), (), ()),
    )

    scores = score(reading_of([[[0.8, 0.1]], [[0.9, 0.2]], [[1.0, 1.0]]], cohort), threshold=None, bootstrap=BOOTSTRAP)

    assert scores.box_ap.value == pytest.approx(1 / 2)


def test_patients_of_the_same_name_at_two_sites_are_two():
    cohort = cohort_of([[[1, 0]]] * 4, [ABNORMAL] * 4, patients=("1", "2", "1", "2"), sites=("A", "A", "B", "B"))

    scores = score(reading_of([[[0.9, 0.1]]] * 4, cohort), threshold=None, bootstrap=BOOTSTRAP)

    assert scores.num_patients == 4
    assert scores.pixel_ap.low is not None


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_maps_outside_zero_to_one_are_refused(value):
    cohort = random_reading(0).cohort

    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        Reading(torch.full(cohort.masks.shape, value), torch.zeros(12), cohort)


def test_maps_of_other_scans_are_refused():
    cohort = random_reading(0).cohort

    with pytest.raises(ValueError, match="one map of the scan's size"):
        Reading(torch.zeros(11, 8, 8), torch.zeros(12), cohort)
