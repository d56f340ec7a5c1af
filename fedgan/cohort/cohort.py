"""A site's prepared scans, as one frozen record: where they come from is said elsewhere."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Split = Literal["train", "val", "test"]

NORMAL, ABNORMAL, UNLABELLED = 0, 1, -1
"""Values of ``Cohort.status``."""

Box = tuple[float, float, float, float]
"""Left, top, width, height in pixels of the prepared scan."""


@dataclass(frozen=True, slots=True)
class Cohort:
    """The scans of one site (or of several, pooled), prepared for the networks.

    Shapes: ``images`` (N, 1, H, W) float32 in [-1, 1]; ``status`` (N,) int64 of NORMAL, ABNORMAL, UNLABELLED;
    ``diseases`` (N, K) float32 in {0, 1}, a row of zeros for a normal scan; ``masks`` (N, H, W) bool;
    ``has_mask`` (N,) bool: a normal scan has an empty mask, an abnormal scan without one is False here.
    ``patients``, ``splits``, ``sites`` and ``boxes`` have N entries.
    """

    disease_names: tuple[str, ...]
    images: Tensor
    status: Tensor
    diseases: Tensor
    masks: Tensor
    has_mask: Tensor
    boxes: tuple[tuple[Box, ...], ...]
    patients: tuple[str, ...]
    splits: tuple[Split, ...]
    sites: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.patients)

    def take(self, rows: Sequence[int]) -> "Cohort":
        """Return the scans of ``rows``, in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return replace(
            self,
            images=self.images[index],
            status=self.status[index],
            diseases=self.diseases[index],
            masks=self.masks[index],
            has_mask=self.has_mask[index],
            boxes=tuple(self.boxes[row] for row in rows),
            patients=tuple(self.patients[row] for row in rows),
            splits=tuple(self.splits[row] for row in rows),
            sites=tuple(self.sites[row] for row in rows),
        )

    def split(self, name: Split) -> "Cohort":
        """Return the scans of one split."""
        return self.take([row for row, split in enumerate(self.splits) if split == name])


def blank_like(cohort: Cohort) -> Cohort:
    """Return one blank normal scan of nobody, of the size and diseases of ``cohort``, which may be empty."""
    _, *size = cohort.masks.shape
    return Cohort(
        disease_names=cohort.disease_names,
        images=torch.zeros(1, 1, *size),
        status=torch.tensor([NORMAL]),
        diseases=torch.zeros(1, len(cohort.disease_names)),
        masks=torch.zeros(1, *size, dtype=torch.bool),
        has_mask=torch.tensor([True]),
        boxes=((),),
        patients=("",),
        splits=("train",),
        sites=("",),
    )


def hide_labels(cohort: Cohort, *, share: float, abnormal: float | None, rng: torch.Generator) -> Cohort:
    """Return the cohort with the labels of some labelled training and validation scans hidden, of each split alike.

    Args:
        cohort: the scans of one site.
        share: of each split's labelled scans that become unlabelled.
        abnormal: share of abnormal scans among them; None takes them as they come. Where a class has too few scans
            for it, fewer are hidden and this share is kept.
        rng: the random stream.
    """
    status = cohort.status.clone()
    for split in ("train", "val"):
        of_split = torch.tensor([name == split for name in cohort.splits], dtype=torch.bool)
        ill, well = (
            rows[torch.randperm(len(rows), generator=rng)]
            for rows in ((of_split & (cohort.status == kind)).nonzero()[:, 0] for kind in (ABNORMAL, NORMAL))
        )
        ill_share = len(ill) / max(1, len(ill) + len(well)) if abnormal is None else abnormal
        count = share * (len(ill) + len(well))
        for rows, of_count in ((ill, ill_share), (well, 1 - ill_share)):
            count = min(count, len(rows) / of_count) if of_count else count
        status[ill[: round(count * ill_share)]] = UNLABELLED
        status[well[: round(count * (1 - ill_share))]] = UNLABELLED
    hidden = status == UNLABELLED
    return replace(
        cohort,
        status=status,
        diseases=cohort.diseases.masked_fill(hidden[:, None], 0),
        has_mask=cohort.has_mask & ~hidden,
    )


def pool(cohorts: Sequence[Cohort]) -> Cohort:
    """Return all scans of ``cohorts`` as one, in order; what no federation can do, for comparison only."""
    return Cohort(
        disease_names=cohorts[0].disease_names,
        images=torch.cat([cohort.images for cohort in cohorts]),
        status=torch.cat([cohort.status for cohort in cohorts]),
        diseases=torch.cat([cohort.diseases for cohort in cohorts]),
        masks=torch.cat([cohort.masks for cohort in cohorts]),
        has_mask=torch.cat([cohort.has_mask for cohort in cohorts]),
        boxes=tuple(boxes for cohort in cohorts for boxes in cohort.boxes),
        patients=tuple(patient for cohort in cohorts for patient in cohort.patients),
        splits=tuple(split for cohort in cohorts for split in cohort.splits),
        sites=tuple(site for cohort in cohorts for site in cohort.sites),
    )
