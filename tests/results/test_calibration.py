"""A scan's score among those of normal scans: what the table keeps, and what a place in it means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from fedgan.cohort.cohort import NORMAL, UNLABELLED
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.results.calibration import FEWEST_NORMALS, QUANTILES, place_among, table_of_normals

SCORE = st.floats(0, 1, width=32)
NORMAL_SCORES = st.lists(SCORE, min_size=FEWEST_NORMALS, max_size=60)


def cohort_of_normals(number):
    """Return as many normal scans, and as many abnormal ones."""
    return phantom_cohort("A", patients=2 * number, images_per_patient=1, size=32, diseases=("tumour",), seed=0)


def table_of(normals):
    cohort = COHORTS.setdefault(len(normals), cohort_of_normals(len(normals)))
    scores = torch.zeros(len(cohort))
    scores[cohort.status == NORMAL] = torch.tensor(normals)
    return table_of_normals(scores, cohort)


COHORTS = {}


@given(NORMAL_SCORES, SCORE, SCORE)
def test_a_place_lies_between_0_and_1_and_a_higher_score_never_has_a_lower_place(normals, one, other):
    table = table_of(normals)

    places = [place_among(score, table) for score in sorted((one, other))]

    assert 0 <= places[0] <= places[1] <= 1


@given(NORMAL_SCORES, SCORE)
def test_a_place_is_about_the_share_of_normal_scans_that_score_lower(normals, score):
    place = place_among(score, table_of(normals))

    share = np.mean(np.array(normals) < score)
    assert abs(place - share) <= 1 / (QUANTILES - 1) + 1 / len(normals) + 1e-9


@given(NORMAL_SCORES)
def test_a_table_is_short_bounded_and_never_falls(normals):
    table = table_of(normals)

    assert len(table) == QUANTILES
    assert list(table) == sorted(table)
    assert (table[0], table[-1]) == (min(normals), max(normals))


def test_places_order_scans_as_their_scores_do():
    rng = np.random.default_rng(0)
    scores, abnormal = rng.uniform(0.2, 0.8, 200), rng.random(200) < 0.5
    table = table_of(np.linspace(0.2, 0.8, 30).tolist())

    places = [place_among(score, table) for score in scores]

    assert roc_auc_score(abnormal, places) == roc_auc_score(abnormal, scores)


def test_a_score_that_all_normal_scans_have_is_higher_than_none_of_them():
    table = table_of([0.5] * 12)

    assert [place_among(score, table) for score in (0.4, 0.5, 0.6)] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("number", "kept"), [(FEWEST_NORMALS - 1, False), (FEWEST_NORMALS, True)])
def test_a_table_needs_ten_normal_scans(number, kept):
    assert (table_of([0.5] * number) is not None) == kept


def test_only_scans_that_are_known_to_be_normal_are_in_the_table():
    cohort = cohort_of_normals(FEWEST_NORMALS + 1)
    scores = torch.linspace(0, 1, len(cohort))
    first = int((cohort.status == NORMAL).nonzero()[0])
    hidden = replace(cohort, status=cohort.status.index_fill(0, torch.tensor([first]), UNLABELLED))

    table = table_of_normals(scores, hidden)

    known = scores[(cohort.status == NORMAL) & (torch.arange(len(cohort)) != first)].double()
    assert table == pytest.approx(np.quantile(known, np.linspace(0, 1, QUANTILES)).tolist())
