"""The sites of a run behind Flower's Grid. The same question in one process is ``fedgan.simulation.InProcess``."""

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedgan.errors import BaseMissing, QuorumNotMet, UpdateRejected
from fedgan.federated.spool import Spool
from fedgan.records import Answer, RoundTask, SiteFailure, SiteUpdate
from fedgan.wire import pack_step, pack_task, size_of, unpack_answer, unpack_partition

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
    holds: dict[str, str] = field(default_factory=dict)
    """Site to the digest of the model that it has, as its last answer proved."""

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Send ``task`` to every site, wait at most ``timeout_s``, and return one answer per site, by name.

        Replies are fetched one by one as they arrive and wait on disk. A site that stays silent, breaks down or cannot
        be understood has failed; the others' round goes on.
        """
        self.spool.clear()
        deadline = time.monotonic() + self.timeout_s
        contents = _Contents(task)
        pending = self._push(set(self.sites.values()), contents, task)
        answers: dict[str, Answer] = {
            site: SiteFailure(site, task.model.round, "NoAnswer") for site in self.sites.values()
        }
        while pending and time.monotonic() < deadline:
            for message, site in list(pending.items()):
                for reply in self.grid.pull_messages([message]):
                    del pending[message]
                    _, sent = contents.for_holder_of(self.holds.get(site))
                    answers[site] = self._read(reply, site, task.model.round, sent)
                    lacks = answers[site] == SiteFailure(site, task.model.round, BaseMissing.__name__)
                    if lacks and self.holds.pop(site, ""):  # once: it has been sent all of it after that
                        pending |= self._push({site}, contents, task)
            if pending:
                time.sleep(POLL_S)
        self.holds.update({site: answer.digest for site, answer in answers.items() if isinstance(answer, SiteUpdate)})
        return [answers[site] for site in sorted(answers)]

    def _push(self, sites: Collection[str], contents: "_Contents", task: RoundTask) -> dict[str, str]:
        """Send the task to sites, and return the messages' names with their sites."""
        nodes = {node: site for node, site in self.sites.items() if site in sites}
        messages = [
            # A task that a slow site has not begun when the round ends must not be begun at all: hence the ttl.
            Message(
                contents.for_holder_of(self.holds.get(site))[0],
                node,
                MessageType.TRAIN,
                ttl=self.timeout_s,
                group_id=str(task.model.round),
            )
            for node, site in nodes.items()
        ]
        return dict(zip(self.grid.push_messages(messages), nodes.values(), strict=True))

    def _read(self, reply: Message, site: str, number: int, asked_bytes: int) -> Answer:
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
        if isinstance(answer, SiteFailure):
            return answer
        traffic = {"traffic/to_site": float(asked_bytes), "traffic/from_site": float(size_of(reply.content))}
        return self.spool.put(replace(answer, metrics={**answer.metrics, **traffic}))


class _Contents:
    """One round's task as it is sent: whole, or as a step to sites that have the model before."""

    def __init__(self, task: RoundTask) -> None:
        step = task.model.step
        self.base = step.base if step else None
        self.whole = pack_task(task)
        self.step = pack_step(task, step) if step else self.whole
        self.sizes = size_of(self.whole), size_of(self.step) if step else 0

    def for_holder_of(self, digest: str | None) -> tuple[RecordDict, int]:
        """Return what to send to a site that has the model of that digest, or none that is known of, and its bytes."""
        if digest is not None and digest == self.base:
            return self.step, self.sizes[1]
        return self.whole, self.sizes[0]


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
