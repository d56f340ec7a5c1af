"""What can be done with the scans of one site."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort, hide_labels
from fedgan.cohort.phantoms import phantom_cohort


@pytest.fixture(scope="module")
def phantoms() -> Cohort:
    return phantom_cohort("A", patients=40, images_per_patient=1, size=32, diseases=("diffuse",), seed=0)


def hide(cohort: Cohort, *, share: float, abnormal: float | None = None, seed: int = 0) -> Cohort:
    return hide_labels(cohort, share=share, abnormal=abnormal, rng=torch.Generator().manual_seed(seed))


def counts(cohort: Cohort) -> dict[int, int]:
    return {status: int((cohort.status == status).sum()) for status in (ABNORMAL, NORMAL, UNLABELLED)}


def test_hidden_labels_take_their_share_of_training_and_validation_and_leave_the_test_scans(phantoms):
    hidden = hide(phantoms, share=0.5)

    for split in ("train", "val"):
        before, after = counts(phantoms.split(split)), counts(hidden.split(split))
        assert after[UNLABELLED] == pytest.approx(len(phantoms.split(split)) / 2, abs=1)
        assert after[ABNORMAL] == pytest.approx(before[ABNORMAL] / 2, abs=1)
    assert torch.equal(hidden.split("test").status, phantoms.split("test").status)


def test_nothing_of_a_hidden_label_is_left(phantoms):
    hidden = hide(phantoms, share=0.5)

    unseen = hidden.status == UNLABELLED
    assert not hidden.has_mask[unseen].any()
    assert not hidden.diseases[unseen].any()
    assert torch.equal(hidden.diseases[~unseen], phantoms.diseases[~unseen])


@given(share=st.floats(0.05, 0.95), abnormal=st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]), seed=st.integers(0, 9))
def test_the_share_of_abnormal_among_the_hidden_is_kept_even_where_a_class_runs_short(phantoms, share, abnormal, seed):
    train = phantoms.split("train")

    hidden = hide(train, share=share, abnormal=abnormal, seed=seed)

    was = train.status[hidden.status == UNLABELLED]
    assert len(was) <= share * len(train) + 1
    assert int((was == ABNORMAL).sum()) == pytest.approx(abnormal * len(was), abs=1)


def test_the_same_stream_hides_the_same_labels(phantoms):
    one, same, other = (hide(phantoms, share=0.5, seed=seed).status for seed in (1, 1, 2))

    assert torch.equal(one, same)
    assert not torch.equal(one, other)
