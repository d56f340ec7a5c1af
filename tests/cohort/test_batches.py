"""How scans are drawn for a local step."""

from collections import Counter
from collections.abc import Sequence
from itertools import islice

import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.cohort.batches import draw_batches
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort, pool
from fedgan.records import Batch


def cohort(patients: Sequence[tuple[str, int]], *, site: str = "A") -> Cohort:
    """Return one scan for each (patient, status); row r has the value r in its left half and -r in its right half."""
    n = len(patients)
    status = torch.tensor([status for _, status in patients], dtype=torch.long)
    ramp = torch.arange(n, dtype=torch.float32)[:, None, None, None] * torch.tensor([1.0, 1, -1, -1])
    return Cohort(
        disease_names=("diffuse", "nodular"),
        images=ramp.expand(n, 1, 4, 4).contiguous(),
        status=status,
        diseases=torch.stack([status == ABNORMAL, torch.arange(n) % 2 == 0], dim=1).float(),
        masks=torch.zeros(n, 4, 4, dtype=torch.bool),
        has_mask=torch.zeros(n, dtype=torch.bool),
        boxes=((),) * n,
        patients=tuple(patient for patient, _ in patients),
        splits=("train",) * n,
        sites=(site,) * n,
    )


def draw(of: Cohort, *, batches: int, batch_size: int = 4, seed: int = 0, flip: bool = False) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    return list(islice(draw_batches(of, batch_size=batch_size, rng=rng, flip=flip), batches))


def rows(drawn: torch.Tensor) -> list[int]:
    return [int(row) for row in drawn.abs()[:, 0, 0, 0]]


TWO_SCANS_EACH = [(patient, status) for patient in "abcdef" for status in (NORMAL, NORMAL, ABNORMAL, ABNORMAL)]


def test_a_batch_has_its_size_in_each_class_and_the_diseases_of_the_abnormal_scans():
    whole = cohort(TWO_SCANS_EACH)

    (batch,) = draw(whole, batches=1)

    assert batch.abnormal.shape == batch.normal.shape == (4, 1, 4, 4)
    assert (whole.status[rows(batch.abnormal)] == ABNORMAL).all()
    assert (whole.status[rows(batch.normal)] == NORMAL).all()
    assert torch.equal(batch.diseases, whole.diseases[rows(batch.abnormal)])


@given(
    scans=st.lists(st.integers(1, 4), min_size=1, max_size=9), batch_size=st.integers(1, 12), seed=st.integers(0, 99)
)
def test_every_patient_is_drawn_once_before_any_is_drawn_again(scans, batch_size, seed):
    patients = [(str(patient), NORMAL) for patient, count in enumerate(scans) for _ in range(count)]
    whole = cohort(patients)

    batches = draw(whole, batches=len(scans), batch_size=batch_size, seed=seed)

    drawn = [whole.patients[row] for batch in batches for row in rows(batch.normal)]
    assert len(drawn) == batch_size * len(scans)
    for start in range(0, len(drawn), len(scans)):
        assert len(set(drawn[start : start + len(scans)])) == len(scans)


def test_a_patient_with_many_slices_counts_no_more_than_one_with_few():
    whole = cohort([("many", ABNORMAL)] * 30 + [("few", ABNORMAL)])

    drawn = [whole.patients[row] for batch in draw(whole, batches=50) for row in rows(batch.abnormal)]

    assert Counter(drawn) == {"many": 100, "few": 100}


def test_all_scans_of_a_patient_have_their_turn():
    whole = cohort(TWO_SCANS_EACH)

    drawn = {row for batch in draw(whole, batches=60) for row in rows(batch.abnormal)}

    assert drawn == {row for row, (_, status) in enumerate(TWO_SCANS_EACH) if status == ABNORMAL}


def test_equal_patient_names_at_two_sites_are_two_patients():
    both = pool([cohort([("1", NORMAL)], site="A"), cohort([("1", NORMAL), ("2", NORMAL)], site="B")])

    drawn = [row for batch in draw(both, batches=10, batch_size=3) for row in rows(batch.normal)]

    assert Counter(drawn) == {0: 20, 1: 10}


def test_a_class_that_the_site_lacks_is_an_empty_tensor():
    (batch,) = draw(cohort([("a", ABNORMAL), ("b", UNLABELLED)]), batches=1)

    assert batch.normal.shape == (0, 1, 4, 4)
    assert rows(batch.abnormal) == [0, 0, 0, 0]


def test_a_site_with_unlabelled_scans_only_draws_nothing_else():
    (batch,) = draw(cohort([("b", UNLABELLED)]), batches=1, flip=True)

    assert batch.abnormal.shape == batch.normal.shape == (0, 1, 4, 4)
    assert rows(batch.unlabelled) == [0, 0, 0, 0]
    assert batch.diseases.shape == (0, 2)


def test_the_same_stream_draws_the_same_batches():
    whole = cohort(TWO_SCANS_EACH)

    one, same, other = (draw(whole, batches=5, seed=seed, flip=True) for seed in (1, 1, 2))

    assert all(
        torch.equal(a.abnormal, b.abnormal) and torch.equal(a.normal, b.normal) for a, b in zip(one, same, strict=True)
    )
    assert not all(torch.equal(a.abnormal, b.abnormal) for a, b in zip(one, other, strict=True))


def test_with_flip_about_half_of_the_scans_are_mirrored_left_to_right():
    whole = cohort(TWO_SCANS_EACH)

    drawn = torch.cat([batch.abnormal for batch in draw(whole, batches=100, flip=True)])

    assert torch.equal(drawn[..., 0], -drawn[..., -1])
    assert torch.equal(drawn[..., 0, :], drawn[..., -1, :])
    assert 140 < (drawn[:, 0, 0, 0] < 0).sum() < 260


def test_without_flip_scans_come_as_they_are_and_drawing_leaves_them_so():
    whole = cohort(TWO_SCANS_EACH)

    (batch,) = draw(whole, batches=1)
    kept = whole.images.clone()
    batch.abnormal.fill_(9)

    assert torch.equal(whole.images, kept)
    assert torch.equal(batch.normal, whole.images[rows(batch.normal)])
