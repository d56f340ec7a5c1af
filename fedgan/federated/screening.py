"""What an update must be before it counts; how those that count are combined is ``aggregation``."""

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, median_low

import torch
from torch import Tensor

from fedgan.errors import (
    Apart,
    Distant,
    ForeignUpdate,
    NoImages,
    NotFinite,
    StaleUpdate,
    TooLarge,
    UnagreedMetric,
    UpdateRejected,
)
from fedgan.federated.compression import Encoding, names_in, part_of
from fedgan.federated.compression import expected as expected_tensors
from fedgan.federated.tensors import Entry, Role
from fedgan.records import Answer, GlobalModel, ScanCounts, SiteFailure, SiteUpdate, Weights

log = logging.getLogger(__name__)

METRIC = re.compile(r"(loss|validation)/[a-z0-9_]{1,40}|traffic/(to|from)_site|privacy/(epsilon|delta)")

SIGNLESS = ("validation/", "privacy/")

FEWEST_FOR_A_MEDIAN = 3
"""With two updates, the median of their norms is no witness against either."""

MOST_BATCHES = 2**40
"""That one round may have, by which a norm's counter grows."""

Norms = Mapping[str, float]
"""How far an update moves each player, over trained tensors, and its moving average; see ``Entry.moves_with``."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What every update of one round must fit."""

    round: int
    digest: str
    tensors: Mapping[str, tuple[torch.Size, torch.dtype]]
    """Shape and type of each tensor that a delta must have, by name."""
    num_diseases: int | None
    """By how many diseases sites count their scans; None if no tensor has a row for each."""


def expected_of(
    model: GlobalModel, sent: Weights, encodings: Mapping[str, Encoding], entries: Mapping[str, Entry]
) -> Expected:
    """Return what updates of ``model`` must fit, if these of its tensors are sent, in these encodings."""
    rows = [len(model.weights[name]) for name, entry in entries.items() if entry.by_disease]
    return Expected(model.round, model.digest, expected_tensors(sent, encodings), rows[0] if rows else None)


def check(expected: Expected, update: SiteUpdate) -> None:
    """Refuse an update that cannot be combined, or whose metrics are not what was agreed on.

    Raises:
        UpdateRejected: as its subclass and message say, naming the site.
    """
    site = f"site {update.site}"
    if update.round != expected.round:
        raise StaleUpdate(
            f"{site} answered for round {update.round + 1} in round {expected.round + 1}; is it restarting?"
        )
    if update.digest != expected.digest:
        raise StaleUpdate(f"{site} trained another model than the one that was sent; it must update fedgan and restart")
    _check_counts(expected, update.counts, site)
    if dict(expected.tensors) != {name: (tensor.shape, tensor.dtype) for name, tensor in update.delta.items()}:
        raise ForeignUpdate(
            f"{site} sent tensors that differ from the model's in name, shape or type; "
            "is it running the same model configuration?"
        )
    check_metrics(update)


def _check_counts(expected: Expected, counts: ScanCounts, site: str) -> None:
    if counts.labelled < 1 or min(counts.normal, counts.abnormal, counts.unlabelled, *counts.by_disease) < 0:
        raise NoImages(f"{site} claims to have trained on no image; it must check its manifest")
    told = expected.num_diseases
    if told is not None and (len(counts.by_disease) != told or max(counts.by_disease, default=0) > counts.abnormal):
        raise NoImages(
            f"{site} counts scans of other diseases than were asked about, or more than it has; "
            "it must update fedgan and restart"
        )


def check_metrics(update: SiteUpdate) -> None:
    """Refuse metrics that are not finite figures under agreed names, epsilon below 0, validation beyond [0, 1].

    Raises:
        UnagreedMetric: as the message says, naming the site but never the metric, whose name may be anything.
    """
    for name, value in update.metrics.items():
        most = 1.0 if name.startswith("validation/") else math.inf
        bounded = math.isfinite(value) and (0 <= value <= most if name.startswith(SIGNLESS) else True)
        if not (METRIC.fullmatch(name) and bounded):
            raise UnagreedMetric(f"site {update.site} sent a metric that is no bounded figure of an agreed name")


def measure(update: SiteUpdate, entries: Mapping[str, Entry]) -> Norms:
    """Return how far an update moves each player and its moving average: the Euclidean norm over their tensors.

    Raises:
        NotFinite: a value of any tensor is not a finite number, or so large that the norm is none.
    """
    squares = {group: 0.0 for entry in entries.values() if (group := entry.moves_with)}
    for name in names_in(update.delta):
        tensor = part_of(update.delta, name, slice(None))
        norm = float(torch.linalg.vector_norm(tensor, dtype=_wide(tensor))) if tensor.is_floating_point() else 0.0
        if entries[name].role is Role.COUNTER and not 0 <= int(tensor.abs().max()) < MOST_BATCHES:
            raise NotFinite(f"site {update.site} counts more batches than there can be; it must update fedgan")
        if not math.isfinite(norm):
            raise NotFinite(f"site {update.site} sent values that are not finite; the site must look at its training")
        if group := entries[name].moves_with:
            squares[group] += norm**2
    return {group: math.sqrt(square) for group, square in squares.items()}


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.float16 else tensor.dtype


def medians(norms: Sequence[Norms]) -> Norms:
    """Return the median norm of each player, of those updates that move it at all; 0 if none does.

    Of two, it is the smaller: between them, one that is a hundred times as long is no witness.
    """
    moved = {group: [of_site[group] for of_site in norms if of_site[group] > 0] for group in norms[0]}
    return {group: median_low(found) if len(found) == 2 else median(found or [0.0]) for group, found in moved.items()}


def check_norms(site: str, norms: Norms, usual: Norms, *, ratio: float) -> None:
    """Refuse an update that moves a player more than ``ratio`` times as far as the median update does.

    Raises:
        TooLarge: as the message says, naming the site.
    """
    for group, norm in norms.items():
        if norm > ratio * usual[group] > 0:
            raise TooLarge(
                f"site {site} moved the {group} more than {ratio:g} times as far as the median site; "
                "it must look at its training, and the coordinator at the site"
            )


def judge(answers: Sequence[Answer], expected: Expected, entries: Mapping[str, Entry], *, ratio: float) -> list[Answer]:
    """Return the answers of a round, with a failure in place of each update that must not count.

    With fewer than three updates none is refused for its norm.
    """
    norms: dict[str, Norms] = {}

    def fits(update: SiteUpdate) -> None:
        check(expected, update)
        norms[update.site] = measure(update, entries)

    fitting = [_judged(answer, fits) for answer in answers]
    if len(norms) < FEWEST_FOR_A_MEDIAN:
        return fitting
    usual = medians(list(norms.values()))
    return [
        _judged(answer, lambda update: check_norms(update.site, norms[update.site], usual, ratio=ratio))
        for answer in fitting
    ]


def judge_agreement(answers: Sequence[Answer], apart: Collection[str]) -> list[Answer]:
    """Return the answers, with a failure in place of the update of each site that is ``apart``."""
    return _without(
        answers,
        apart,
        Apart,
        "has led where no two others do; it must look at its labels and its training, and the coordinator at the site",
    )


def leave_out(answers: Sequence[Answer], far: Collection[str]) -> list[Answer]:
    """Return the answers, with a failure in place of the update of each site that is ``far`` from the others."""
    return _without(
        answers,
        far,
        Distant,
        "is left out, as aggregation.rule=krum leaves out whoever is farthest from the others; "
        "if it is the same site for many rounds, the coordinator must look at it",
    )


def _without(
    answers: Sequence[Answer], sites: Collection[str], refusal: type[UpdateRejected], reason: str
) -> list[Answer]:
    def refuse(update: SiteUpdate) -> None:
        if update.site in sites:
            raise refusal(f"site {update.site} {reason}")

    return [_judged(answer, refuse) for answer in answers]


def _judged(answer: Answer, refuse: Callable[[SiteUpdate], None]) -> Answer:
    if isinstance(answer, SiteUpdate):
        try:
            refuse(answer)
        except UpdateRejected as refusal:
            log.error("round %d: %s", answer.round + 1, refusal)  # noqa: TRY400 - the message says all
            return SiteFailure(answer.site, answer.round, type(refusal).__name__)
    return answer
