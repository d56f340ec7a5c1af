"""Arms of phantoms: scored overall and per site, compared on the same patients, beside controls without a model."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fedgan.cohort.cohort import pool
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.evaluation import Reading, compare, controls, pixel_ap, score, score_arm
from fedgan.results.thresholds import Threshold, by_masks, by_normals

BOOTSTRAP = Bootstrap(resamplings=200, seed=0)


def phantoms(seed=0):
    """Two sites of six patients with two scans each."""
    sites = [
        phantom_cohort(site, patients=6, images_per_patient=2, size=32, diseases=("tumour",), seed=seed)
        for site in ("B", "A")
    ]
    return pool(sites)


def reading_of(maps, cohort):
    return Reading(maps, maps.mean((1, 2)), cohort)


def perfect(cohort):
    return reading_of(cohort.masks.float(), cohort)


def blurred(cohort, *, noise):
    """The masks, drowned in noise."""
    random = torch.rand(cohort.masks.shape, generator=torch.Generator().manual_seed(1))
    return reading_of((cohort.masks + noise * random) / (1 + noise), cohort)


def bright_lesions(cohort):
    return replace(cohort, images=torch.where(cohort.masks, 0.5, -0.5)[:, None])


def test_an_arm_is_scored_overall_and_at_each_site():
    reading = blurred(phantoms(), noise=3)

    arm = score_arm(
        "federated", "federated", reading, steps=10, threshold=Threshold(0.6, "a guess"), bootstrap=BOOTSTRAP
    )

    at_a = reading.where(torch.tensor([site == "A" for site in reading.cohort.sites]))
    assert (arm.steps, arm.threshold, arm.threshold_by, list(arm.per_site)) == (10, 0.6, "a guess", ["A", "B"])
    assert arm.overall == score(reading, threshold=0.6, bootstrap=BOOTSTRAP)
    assert arm.per_site["A"] == score(at_a, threshold=0.6, bootstrap=BOOTSTRAP)


def test_a_perfect_arm_is_better_in_every_resampling():
    cohort = phantoms()
    other = blurred(cohort, noise=3)

    comparison = compare(perfect(cohort), other, against="pooled", bootstrap=BOOTSTRAP)

    assert comparison.difference == pytest.approx(1 - pixel_ap(other))
    assert 0 < comparison.low < comparison.difference < comparison.high < 1
    assert (comparison.against, comparison.share_better) == ("pooled", 1.0)


def test_the_comparison_changes_its_sign_with_its_sides():
    cohort = phantoms()
    one, other = blurred(cohort, noise=3), blurred(cohort, noise=2)

    there, back = (compare(*pair, against="x", bootstrap=BOOTSTRAP) for pair in ((one, other), (other, one)))

    assert there.difference < 0
    assert (there.difference, there.low, there.high) == pytest.approx((-back.difference, -back.high, -back.low))


def test_an_arm_is_not_better_than_itself():
    reading = blurred(phantoms(), noise=3)

    comparison = compare(reading, reading, against="itself", bootstrap=BOOTSTRAP)

    assert (comparison.difference, comparison.low, comparison.high, comparison.share_better) == (0, 0, 0, 0)


def test_the_interval_of_a_difference_is_narrower_than_that_of_either_arm():
    cohort = phantoms()
    one, other = blurred(cohort, noise=2.0), blurred(cohort, noise=2.2)

    comparison = compare(one, other, against="pooled", bootstrap=BOOTSTRAP)

    alone = score(one, threshold=None, bootstrap=BOOTSTRAP).pixel_ap
    assert comparison.high - comparison.low < (alone.high - alone.low) / 2


def test_several_arms_are_compared_by_the_mean_of_their_aps():
    cohort = phantoms()
    federated, poor = blurred(cohort, noise=2), blurred(cohort, noise=4)

    comparison = compare(federated, [perfect(cohort), poor], against="mean of the local arms", bootstrap=BOOTSTRAP)

    assert comparison.difference == pytest.approx(pixel_ap(federated) - (1 + pixel_ap(poor)) / 2)
    assert comparison.low < comparison.difference < comparison.high


def test_arms_on_other_scans_are_not_compared():
    with pytest.raises(ValueError, match="same scans in the same order"):
        compare(perfect(phantoms(0)), perfect(phantoms(1)), against="another test split", bootstrap=BOOTSTRAP)


def test_there_is_no_comparison_without_masks_or_resamplings():
    reading = perfect(phantoms())
    bare = perfect(replace(reading.cohort, has_mask=torch.zeros(len(reading.cohort), dtype=torch.bool)))

    assert compare(bare, bare, against="itself", bootstrap=BOOTSTRAP) is None
    assert compare(reading, reading, against="itself", bootstrap=Bootstrap(resamplings=0, seed=0)) is None


def test_brightness_finds_a_bright_lesion_and_ones_find_everything():
    cohort = bright_lesions(phantoms())

    arms = {arm.name: arm for arm in controls(cohort, cohort, choose=by_masks, bootstrap=BOOTSTRAP)}

    assert list(arms) == ["brightness 0 px", "brightness 1 px", "brightness 2 px", "brightness 4 px", "all ones"]
    assert {(arm.kind, arm.steps) for arm in arms.values()} == {("control", None)}
    assert (arms["brightness 0 px"].threshold, arms["brightness 0 px"].overall.dice.value) == (0.75, 1.0)
    assert arms["brightness 4 px"].overall.pixel_ap.value < 0.99
    assert (arms["all ones"].threshold, arms["all ones"].overall.poi.value) == (1.0, 1.0)


def test_controls_are_smoothed_in_proportion_to_the_scan():
    cohort = bright_lesions(phantoms())
    doubled = bright_lesions(replace(cohort, masks=cohort.masks.repeat_interleave(2, 1).repeat_interleave(2, 2)))

    small, large = (controls(each, each, choose=by_masks, bootstrap=Bootstrap(0, 0))[3] for each in (cohort, doubled))

    assert large.overall.pixel_ap.value == pytest.approx(small.overall.pixel_ap.value, abs=0.02)
    assert large.threshold == pytest.approx(small.threshold, abs=0.02)


def test_controls_have_their_thresholds_chosen_as_the_arms_have():
    cohort = bright_lesions(phantoms())

    brightness, *_, everywhere = controls(
        cohort, cohort, choose=partial(by_normals, false_positives=0.01), bootstrap=Bootstrap(0, 0)
    )

    assert brightness.threshold == pytest.approx(0.25)
    assert brightness.overall.dice.value == 1
    assert (everywhere.threshold, everywhere.overall.dice) == (None, None)
    assert "as much evidence as there can be" in everywhere.threshold_by


def test_controls_without_validation_scans_have_no_threshold():
    cohort = phantoms()

    arms = controls(cohort, cohort.take([]), choose=by_masks, bootstrap=BOOTSTRAP)

    assert all(arm.threshold is None and arm.overall.dice is None for arm in arms)
    assert all(arm.overall.pixel_ap is not None for arm in arms)
