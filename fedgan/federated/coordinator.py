"""The loop: ask, gather, aggregate, keep. Written once; what lies behind ``Federation`` is the sites' and Flower's."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from fedgan.errors import QuorumNotMet
from fedgan.federated.aggregation import aggregate
from fedgan.records import Answer, GlobalModel, RoundTask, SiteFailure, SiteUpdate

log = logging.getLogger(__name__)

Keep = Callable[[GlobalModel, Sequence[Answer]], None]
"""Told each round's new model and the answers that made it."""


class Federation(Protocol):
    """The sites, however they are reached: in this process, over Flower, from a recording."""

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Send ``task`` to every site and wait for what comes back."""
        ...


def run_rounds(
    model: GlobalModel, federation: Federation, *, rounds: int, local_steps: int, quorum: int, keep: Keep
) -> GlobalModel:
    """Train until ``model.round == rounds``, handing each round's outcome to ``keep``.

    Raises:
        QuorumNotMet: fewer than ``quorum`` sites trained in a round.
        UpdateRejected: a site's update cannot be averaged.
    """
    while model.round < rounds:
        answers = federation.ask(RoundTask(model, local_steps))
        updates = [answer for answer in answers if isinstance(answer, SiteUpdate)]
        if len(updates) < quorum:
            raise QuorumNotMet(_explain(model.round + 1, quorum, answers))
        model = aggregate(model, updates)
        keep(model, answers)
        log.info("round %d kept: %d of %d sites trained", model.round, len(updates), len(answers))
    return model


def score_last(model: GlobalModel, federation: Federation) -> Sequence[SiteUpdate]:
    """Ask the sites to score ``model`` on their validation patients, without training."""
    return [answer for answer in federation.ask(RoundTask(model, 0)) if isinstance(answer, SiteUpdate)]


def _explain(number: int, quorum: int, answers: Sequence[Answer]) -> str:
    """Return why a round cannot count, in the coordinator's words."""
    failures = [answer for answer in answers if isinstance(answer, SiteFailure)]
    reasons = ", ".join(f"{failure.site}: {failure.reason}" for failure in failures) or "no site answered"
    return (
        f"round {number}: {len(answers) - len(failures)} of {len(answers)} sites trained, {quorum} are needed "
        f"({reasons}); the coordinator must settle this with the sites named, then resume from the last kept round"
    )
