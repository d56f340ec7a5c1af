"""The threshold of maps: by the masks of validation scans, or by their normal scans alone."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.results.thresholds import by_masks, by_normals

COHORT = phantom_cohort("A", patients=8, images_per_patient=1, size=32, diseases=("tumour",), seed=0)
EVIDENCE = torch.rand(COHORT.masks.shape, generator=torch.Generator().manual_seed(0)) * 0.99
NORMALS = COHORT.status == NORMAL


def found(maps, threshold):
    """Return the share of the pixels that are found."""
    return float((maps >= threshold).double().mean())


def test_by_masks_it_is_the_one_that_separates_lesions_from_all_else():
    maps = torch.where(COHORT.masks, 0.75, 0.25)

    threshold = by_masks(maps, COHORT)

    assert threshold.value == 0.75
    assert threshold.chosen_by == "the best Dice on the validation patients' masks"


def test_without_a_mask_there_is_none_by_masks_and_it_says_why():
    threshold = by_masks(EVIDENCE, replace(COHORT, has_mask=NORMALS, masks=torch.zeros_like(COHORT.masks)))

    assert (threshold.value, threshold.chosen_by) == (None, "no validation scan has a mask")


@pytest.mark.parametrize("false_positives", [0.0001, 0.005, 0.1, 0.9999])
def test_by_normals_as_many_of_their_pixels_are_found_as_may_be(false_positives):
    threshold = by_normals(EVIDENCE, COHORT, false_positives=false_positives)

    pixels = EVIDENCE[NORMALS]
    allowed = int(false_positives * pixels.numel())
    assert int((pixels >= threshold.value).sum()) == allowed
    assert (
        threshold.chosen_by == f"at most {100 * false_positives:g} % of the normal validation scans' pixels are found"
    )


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), distinct=st.integers(1, 20), false_positives=st.floats(1e-4, 0.9999))
def test_by_normals_no_more_pixels_are_found_than_may_be_and_any_lower_threshold_finds_more(
    seed, distinct, false_positives
):
    maps = torch.randint(distinct, COHORT.masks.shape, generator=torch.Generator().manual_seed(seed)) / distinct

    threshold = by_normals(maps, COHORT, false_positives=false_positives).value

    below = torch.nextafter(torch.tensor(threshold), torch.tensor(0.0))
    assert 0 <= threshold <= 1
    assert found(maps[NORMALS], threshold) <= false_positives < found(maps[NORMALS], below)


def test_by_normals_only_scans_that_are_known_to_be_normal_are_looked_at():
    others = torch.rand(COHORT.masks.shape, generator=torch.Generator().manual_seed(1))
    changed = torch.where(NORMALS[:, None, None], EVIDENCE, others)
    unmasked = replace(COHORT, masks=~COHORT.masks, has_mask=torch.zeros_like(COHORT.has_mask))

    threshold = by_normals(EVIDENCE, COHORT, false_positives=0.01)

    assert by_normals(changed, unmasked, false_positives=0.01) == threshold


def test_an_unlabelled_scan_is_not_taken_for_normal():
    first = int(NORMALS.nonzero()[0])
    hidden = replace(COHORT, status=COHORT.status.index_fill(0, torch.tensor([first]), UNLABELLED))
    glaring = EVIDENCE.index_fill(0, torch.tensor([first]), 1.0)

    without = COHORT.take([row for row in range(len(COHORT)) if row != first])
    expected = by_normals(torch.cat([EVIDENCE[:first], EVIDENCE[first + 1 :]]), without, false_positives=0.01)
    assert by_normals(glaring, hidden, false_positives=0.01) == expected


@pytest.mark.parametrize("status", [ABNORMAL, UNLABELLED])
def test_without_normal_scans_there_is_none_by_normals_and_it_says_why(status):
    cohort = replace(COHORT, status=torch.full_like(COHORT.status, status))

    threshold = by_normals(EVIDENCE, cohort, false_positives=0.01)

    assert (threshold.value, threshold.chosen_by) == (None, "no validation scan is known to be normal")


def test_maps_that_are_full_of_evidence_on_normal_scans_have_no_threshold():
    threshold = by_normals(torch.ones(COHORT.masks.shape), COHORT, false_positives=0.01)

    assert threshold.value is None
    assert "as much evidence as there can be" in threshold.chosen_by
