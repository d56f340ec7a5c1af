"""Batches of abnormal, normal and unlabelled scans, drawn patient by patient from a seeded stream."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.records import Batch


def draw_batches(cohort: Cohort, *, batch_size: int, rng: torch.Generator, flip: bool) -> Iterator[Batch]:
    """Yield batches without end, of ``batch_size`` scans of each kind, or of none where the cohort has none.

    Neighbouring slices are near copies, so it is patients who are drawn: all in a new random order, again and again,
    each with one scan of the kind at random. With ``flip``, every other scan is mirrored left to right, at random.
    """
    abnormal = _deal(_by_patient(cohort, ABNORMAL), rng)
    normal = _deal(_by_patient(cohort, NORMAL), rng)
    unlabelled = _deal(_by_patient(cohort, UNLABELLED), rng)
    while True:
        rows, normal_rows, unlabelled_rows = (
            torch.tensor(list(islice(kind, batch_size)), dtype=torch.long) for kind in (abnormal, normal, unlabelled)
        )
        yield Batch(
            abnormal=_gather(cohort.images, rows, rng if flip else None),
            normal=_gather(cohort.images, normal_rows, rng if flip else None),
            diseases=cohort.diseases[rows],
            unlabelled=_gather(cohort.images, unlabelled_rows, rng if flip else None),
        )


def patients_of(cohort: Cohort) -> list[list[int]]:
    """Return the rows of each patient; equal names at two sites are two patients."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, patient in enumerate(zip(cohort.sites, cohort.patients, strict=True)):
        rows.setdefault(patient, []).append(row)
    return list(rows.values())


def batch_of_patient(cohort: Cohort, patient: Sequence[int], *, rng: torch.Generator) -> Batch:
    """Return one scan at random of each kind that is among a ``patient``'s rows, every other mirrored."""
    abnormal, normal, unlabelled = (
        _one_of([row for row in patient if cohort.status[row] == kind], rng) for kind in (ABNORMAL, NORMAL, UNLABELLED)
    )
    return Batch(
        abnormal=_gather(cohort.images, abnormal, rng),
        normal=_gather(cohort.images, normal, rng),
        diseases=cohort.diseases[abnormal],
        unlabelled=_gather(cohort.images, unlabelled, rng),
    )


def _one_of(rows: Sequence[int], rng: torch.Generator) -> Tensor:
    chosen = [rows[int(torch.randint(len(rows), (), generator=rng))]] if rows else []
    return torch.tensor(chosen, dtype=torch.long)


def _by_patient(cohort: Cohort, status: int) -> list[list[int]]:
    """Return each patient's rows of one status; equal names at two sites are two patients."""
    rows: dict[tuple[str, str], list[int]] = {}
    for row, of_row in enumerate(cohort.status.tolist()):
        if of_row == status:
            rows.setdefault((cohort.sites[row], cohort.patients[row]), []).append(row)
    return list(rows.values())


def _deal(patients: Sequence[Sequence[int]], rng: torch.Generator) -> Iterator[int]:
    """Deal one row of each patient, shuffle and start over; nothing where there are no patients."""
    while patients:
        for patient in torch.randperm(len(patients), generator=rng).tolist():
            rows = patients[patient]
            yield rows[int(torch.randint(len(rows), (), generator=rng))]


def _gather(images: Tensor, rows: Tensor, rng: torch.Generator | None) -> Tensor:
    drawn = images[rows]
    if rng is None:
        return drawn
    mirrored = torch.rand(len(rows), generator=rng) < 0.5
    return torch.where(mirrored[:, None, None, None], drawn.flip(-1), drawn)
