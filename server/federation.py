"""The sites of a run behind Flower's Grid. The same question in one process is ``fedgan.simulation.InProcess``."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedgan.errors import QuorumNotMet, UpdateRejected
from fedgan.federated.spool import Spool
from fedgan.records import Answer, RoundTask, SiteFailure, SiteUpdate
from fedgan.wire import pack_task, unpack_answer, unpack_partition

log = logging.getLogger(__name__)

POLL_S = 0.2
"""Between two looks for replies; Flower's own way to wait looks every 3 seconds."""


@dataclass(frozen=True, slots=True)
class FlowerFederation:
    """Sites reached over Flower; a ``Federation``.

    ``sites`` says whose each node is: that is the coordinator's knowledge, never a site's claim.
    """

    grid: Grid
    sites: Mapping[int, str]
    timeout_s: float
    spool: Spool

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Send ``task`` to every site, wait at most ``timeout_s``, and return one answer per site, by name.

        Replies are fetched one by one as they arrive and wait on disk. A site that stays silent, breaks down or cannot
        be understood has failed; the others' round goes on.
        """
        self.spool.clear()
        content = pack_task(task)
        messages = [
            # A task that a slow site has not begun when the round ends must not be begun at all: hence the ttl.
            Message(content, node, MessageType.TRAIN, ttl=self.timeout_s, group_id=str(task.model.round))
            for node in self.sites
        ]
        deadline = time.monotonic() + self.timeout_s
        pending = dict(zip(self.grid.push_messages(messages), self.sites.values(), strict=True))
        answers: dict[str, Answer] = {
            site: SiteFailure(site, task.model.round, "NoAnswer") for site in self.sites.values()
        }
        while pending and time.monotonic() < deadline:
            for message, site in list(pending.items()):
                for reply in self.grid.pull_messages([message]):
                    del pending[message]
                    answers[site] = self._read(reply, site, task.model.round)
            if pending:
                time.sleep(POLL_S)
        return [answers[site] for site in sorted(answers)]

    def _read(self, reply: Message, site: str, number: int) -> Answer:
        """Return what ``site`` answered in round ``number``, its tensors on disk, or how it failed to."""
        if reply.has_error():
            # Flower's reason may quote the site's exception, and so a path or a patient: it goes no further.
            log.warning("site %s: Flower reports error %d in round %d", site, reply.error.code, number + 1)
            return SiteFailure(site, number, "FlowerError")
        try:
            answer = unpack_answer(reply.content, site=site, round=number)
        except UpdateRejected as refusal:
            log.warning("site %s in round %d: %s", site, number + 1, refusal)
            return SiteFailure(site, number, type(refusal).__name__)
        return self.spool.put(answer) if isinstance(answer, SiteUpdate) else answer


def bind_simulated_nodes(grid: Grid, names: Sequence[str], *, timeout_s: float) -> Mapping[int, str]:
    """Return which simulated node plays which site, waiting at most ``timeout_s`` until all have said so.

    Only for simulation, where nodes have no identity but their number; in deployment a node's key says whose it is.

    Raises:
        QuorumNotMet: fewer nodes than ``names`` started, or one of them does not say which site it plays.
    """
    deadline = time.monotonic() + timeout_s
    while len(nodes := list(grid.get_node_ids())) < len(names) and time.monotonic() < deadline:
        time.sleep(0.1)
    questions = [Message(RecordDict(), node, MessageType.QUERY, ttl=timeout_s) for node in nodes]
    replies = grid.send_and_receive(questions, timeout=timeout_s)
    numbers = {reply.metadata.src_node_id: unpack_partition(reply.content) for reply in replies if reply.has_content()}
    if sorted(numbers.values()) != list(range(len(names))):
        raise QuorumNotMet(
            f"{len(numbers)} of {len(names)} simulated sites started within {timeout_s:.0f} s; "
            "the person who runs it should look at the lines above, or use engine=process"
        )
    return {node: names[number] for node, number in numbers.items()}
