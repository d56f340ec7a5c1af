"""The loop: ask, gather, aggregate, keep. Written once; what lies behind ``Federation`` is the sites' and Flower's."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from fedgan.errors import Distant, QuorumNotMet, UnagreedMetric
from fedgan.federated.screening import check_metrics
from fedgan.records import Answer, Contribution, GlobalModel, RoundTask, SiteFailure, SiteUpdate

log = logging.getLogger(__name__)

Keep = Callable[[GlobalModel, Sequence[Answer], Contribution], None]
"""Told each round's new model, the answers that made it, and how much each site counted in it."""

Enough = Callable[[], bool]
"""Asked before each round whether to stop here, as when further rounds bring nothing."""


class Federation(Protocol):
    """The sites, however they are reached: in this process, over Flower, from a recording."""

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Send ``task`` to every site and wait for what comes back."""
        ...


class Aggregation(Protocol):
    """How answers become the next model; see ``fedgan.federated.aggregation``."""

    def judge(self, model: GlobalModel, answers: Sequence[Answer]) -> tuple[GlobalModel, Sequence[Answer]]:
        """Return the answers, with a failure in place of each update of ``model`` that must not count.

        The model comes back with what is remembered of the sites that answered.
        """
        ...

    def aggregate(self, model: GlobalModel, updates: Sequence[SiteUpdate]) -> tuple[GlobalModel, Contribution]:
        """Return the next model, and how much each site counted in it."""
        ...


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run asks of its federation, and what becomes of the answers."""

    rounds: int
    local_steps: int
    quorum: int
    """Updates a round needs."""
    aggregation: Aggregation
    terms: str = ""
    """What each task tells sites of the run; see ``RoundTask``."""


def run_rounds(
    model: GlobalModel, federation: Federation, plan: Plan, *, keep: Keep, enough: Enough = lambda: False
) -> GlobalModel:
    """Train until ``model.round == plan.rounds`` or there is ``enough``, handing each round's outcome to ``keep``.

    Raises:
        QuorumNotMet: in a round fewer sites than the quorum sent an update that can be averaged.
    """
    while model.round < plan.rounds and not enough():
        model = _next(model, federation, plan, keep)
    return model


def _next(model: GlobalModel, federation: Federation, plan: Plan, keep: Keep) -> GlobalModel:
    """Return the model after one round; of its updates, nothing stays in memory or on disk into the next."""
    model, answers = plan.aggregation.judge(model, federation.ask(RoundTask(model, plan.local_steps, plan.terms)))
    updates = [answer for answer in answers if isinstance(answer, SiteUpdate)]
    if sum(map(_trained, answers)) < plan.quorum:
        raise QuorumNotMet(_explain(model.round + 1, plan.quorum, answers))
    model, contribution = plan.aggregation.aggregate(model, updates)
    keep(model, answers, contribution)
    log.info("round %d kept: %d of %d sites trained", model.round, len(updates), len(answers))
    return model


def score_last(model: GlobalModel, federation: Federation, terms: str = "") -> Sequence[SiteUpdate]:
    """Ask the sites to score ``model`` on their validation patients, without training.

    A site whose scores are none is left out, and named in the log.
    """
    scored = []
    for answer in federation.ask(RoundTask(model, 0, terms)):
        try:
            if isinstance(answer, SiteUpdate):
                check_metrics(answer)
                scored.append(answer)
        except UnagreedMetric as refusal:
            log.error("round %d is not scored by all: %s", model.round, refusal)  # noqa: TRY400 - it says all
    return scored


def _trained(answer: Answer) -> bool:
    """Return whether a site has sent what can be averaged, even if the run's rule then trusts others more."""
    return isinstance(answer, SiteUpdate) or answer.reason == Distant.__name__


def _explain(number: int, quorum: int, answers: Sequence[Answer]) -> str:
    """Return why a round cannot count, in the coordinator's words."""
    failures = [answer for answer in answers if isinstance(answer, SiteFailure)]
    reasons = ", ".join(f"{failure.site}: {failure.reason}" for failure in failures) or "no site answered"
    return (
        f"round {number}: {sum(map(_trained, answers))} of {len(answers)} sites trained, {quorum} are needed "
        f"({reasons}); the coordinator must settle this with the sites named, then resume; or start another run"
    )
