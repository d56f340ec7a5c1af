"""The sites of a run behind Flower's Grid. The same question in one process is ``fedgan.simulation.InProcess``."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TypeVar, cast

import httpx
from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedgan.errors import BaseMissing, EngineFailed, QuorumNotMet, UpdateRejected
from fedgan.federated.spool import Spool
from fedgan.records import Answer, ModelStep, RoundTask, SiteFailure, SiteUpdate
from fedgan.wire import pack_step, pack_task, size_of, unpack_answer, unpack_partition
from server.replies import Replies

log = logging.getLogger(__name__)

POLL_S, LONGEST_POLL_S = 0.2, 3.0
"""Between two looks for replies: longer, the longer a round lasts, since each look is work for Flower's SuperLink."""

LOOK_S = 2.0
"""Between two looks for sites that have come, and between two questions to a SuperLink that has no answer."""

PATIENCE_S = 10.0
"""How long the others' replies wait for one that is still being uploaded."""

NODE_GONE = 5
"""Flower's code for a node whose heartbeat has stopped."""


Answered = TypeVar("Answered")


def never(site: str, since: float) -> bool:
    """Return that a site has not joined anew: in a simulation none does."""
    return False


@dataclass(frozen=True, slots=True)
class FlowerFederation:
    """Sites reached over Flower; a ``Federation``.

    ``sites`` says whose each node is: that is the coordinator's knowledge, never a site's claim. It is looked up anew
    in every round.
    """

    grid: Grid
    sites: Mapping[int, str]
    timeout_s: float
    spool: Spool
    quorum: int = 1
    """Updates for which a round waits, if need be, for sites that are not there."""
    joined_anew: Callable[[str, float], bool] = never
    """Whether a site has joined anew after a time (in seconds since the epoch): what it had been sent is lost."""
    sent: Callable[[int], None] = lambda num_bytes: None
    """Told each time that tasks have been sent, and of how many bytes the model is."""
    wait: Callable[[float], None] | None = None
    """Waits so many seconds, or until an answer has arrived; without it, replies are looked for often."""
    holds: dict[str, str] = field(default_factory=dict)
    """Site to the digest of the model that it has, as its last answer proved."""

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Send ``task`` to every site, wait at most ``timeout_s``, and return one answer per site, by name.

        Replies are fetched one by one as they arrive and wait on disk. A site that stays silent, breaks down or cannot
        be understood has failed; the others' round goes on. A site that comes, or comes back, while others train is
        asked too; those that are away are not waited for, once the quorum has answered.

        Raises:
            EngineFailed: for as long as the round may last, Flower's SuperLink has not taken the task.
        """
        self.spool.clear()
        asking = _Asking(self, task)
        while not asking.over():
            asking.send()
            asking.fetch()
            if not asking.over():
                asking.pause()
        answers = asking.answers
        self.holds.update({site: answer.digest for site, answer in answers.items() if isinstance(answer, SiteUpdate)})
        return [answers.get(site) or asking.silence_of(site) for site in sorted(asking.sites.values())]


class _Asking:
    """One task on its way to the sites, and what has come back of it."""

    def __init__(self, federation: FlowerFederation, task: RoundTask) -> None:
        self.federation = federation
        self.sites = dict(federation.sites)
        self.number = task.model.round
        self.task = task
        self.began = time.monotonic()
        self.deadline = self.began + federation.timeout_s
        self.next_look = 0.0
        self.replies = Replies(federation.grid)
        self.pending: dict[str, str] = {}
        """Messages to sites that have not answered."""
        self.asked: dict[str, float] = {}
        """When each site was last sent the task, in seconds since the epoch."""
        self.sent_bytes = Counter[str]()
        """Arrays in all messages that each site was sent."""
        self.answers: dict[str, Answer] = {}

    def over(self) -> bool:
        """Return whether all have answered, or all who are there and are needed, or time is up."""
        sites = set(self.sites.values())
        trained = sum(isinstance(answer, SiteUpdate) for answer in self.answers.values())
        served = self.answers.keys() >= sites or trained >= self.federation.quorum
        return time.monotonic() >= self.deadline or (served and bool(self.asked) and not self.pending)

    def pause(self) -> None:
        """Wait until there may be an answer; where nobody tells, for a fiftieth of the round so far."""
        now = time.monotonic()
        left_s = max(0.0, self.deadline - now)
        if self.federation.wait:
            self.federation.wait(min(LOOK_S, left_s))
        else:
            time.sleep(min(max(POLL_S, (now - self.began) / 50), LONGEST_POLL_S, left_s))

    def send(self) -> None:
        """Send the task to sites that are there and have not had it, or have lost it."""
        if time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + LOOK_S
        there = set(self._patiently(self.federation.grid.get_node_ids))
        if due := [node for node, site in self.sites.items() if node in there and self._lacks(site)]:
            self._push(due)

    def _lacks(self, site: str) -> bool:
        if site in self.answers:
            return False
        return site not in self.asked or self.federation.joined_anew(site, self.asked[site])

    def _push(self, nodes: Collection[int]) -> None:
        sites = [self.sites[node] for node in nodes]
        contents = _Contents(self.task)  # packed anew for who comes later: nobody holds it until then
        messages = [
            # A task that a slow site has not begun when the round ends must not be begun at all: hence the ttl.
            Message(
                contents.for_holder_of(self.federation.holds.get(site)),
                node,
                MessageType.TRAIN,
                ttl=max(1.0, self.deadline - time.monotonic()),
                group_id=str(self.number),
            )
            for node, site in zip(nodes, sites, strict=True)
        ]
        self.asked |= dict.fromkeys(sites, time.time())
        self.sent_bytes += Counter({site: size_of(sent.content) for sent, site in zip(messages, sites, strict=True)})
        self.pending = {message: site for message, site in self.pending.items() if site not in sites}
        # The same messages: what the SuperLink has of them from an earlier attempt is not sent, nor delivered, twice.
        numbers = self._patiently(lambda: self.federation.grid.push_messages(messages))
        self.federation.sent(sum(tensor.nbytes for tensor in self.task.model.weights.values()))
        self.pending |= dict(zip(numbers, sites, strict=True))

    def _patiently(self, ask: Callable[[], Answered]) -> Answered:
        """Ask Flower's SuperLink, and again while it breaks down over the question and the round lasts."""
        while True:
            try:
                return ask()
            except httpx.HTTPStatusError as fault:
                status = fault.response.status_code
                if status < 500 or time.monotonic() > self.deadline:
                    raise EngineFailed(
                        f"Flower's SuperLink answers {status} when round {self.number + 1} is to be sent; see its log, "
                        "superlink.log, then go on with fed-server --resume"
                    ) from fault
                log.warning("Flower's SuperLink answers %d; it is asked again", status)
            time.sleep(LOOK_S)

    def fetch(self) -> None:
        """Fetch the replies that have arrived; from a SuperLink that cannot answer now, at the next look."""
        for message, site in list(self.pending.items()):
            try:
                self._fetch(message, site)
            except httpx.HTTPStatusError as fault:
                log.warning("Flower's SuperLink answers %d; it is asked again", fault.response.status_code)
                return

    def _fetch(self, message: str, site: str) -> None:
        """Fetch one reply if it has arrived; nothing of it is in memory after that."""
        try:
            reply = self.replies.to(message, patience_s=min(PATIENCE_S, max(0.0, self.deadline - time.monotonic())))
            answer = self._read(reply, site) if reply else None
        except UpdateRejected as refusal:
            log.warning("site %s in round %d: %s", site, self.number + 1, refusal)
            reply, answer = None, SiteFailure(site, self.number, type(refusal).__name__)
        if reply or answer:
            del self.pending[message]
        if isinstance(answer, SiteFailure):  # under this number the site's own log has more
            log.warning("task %s failed at site %s: %s", message[:12], site, answer.reason)
        if answer:
            self._take(answer, site)

    def _take(self, answer: Answer, site: str) -> None:
        lacks = answer == SiteFailure(site, self.number, BaseMissing.__name__)
        if lacks and self.federation.holds.pop(site, ""):  # once: it has been sent all of it after that
            self._push([node for node, name in self.sites.items() if name == site])
        else:
            self.answers[site] = answer

    def _read(self, reply: Message, site: str) -> Answer | None:
        """Return what ``site`` answered, its tensors on disk, or how it failed to; nothing if it has only gone away.

        Raises:
            UpdateRejected: it cannot be understood.
        """
        number = self.number
        if reply.has_error():
            # Flower's reason may quote the site's exception, and so a path or a patient: it goes no further.
            log.warning("site %s: Flower reports error %d in round %d", site, reply.error.code, number + 1)
            if reply.error.code != NODE_GONE:
                return SiteFailure(site, number, "FlowerError")
            self.asked.pop(site)  # when it is back, it is asked again
            return None
        keep = partial(self.federation.spool.keep, site)
        answer = unpack_answer(reply.content, site=site, round=number, keep=keep)
        if isinstance(answer, SiteFailure):
            return answer
        traffic = {"traffic/to_site": self.sent_bytes[site], "traffic/from_site": size_of(reply.content)}
        return replace(answer, metrics={**answer.metrics, **{name: float(size) for name, size in traffic.items()}})

    def silence_of(self, site: str) -> SiteFailure:
        """Return how a site without an answer has failed: it was not there, or has not answered in time."""
        return SiteFailure(site, self.number, "NoAnswer" if site in self.asked else "Away")


class _Contents:
    """A round's task as it is sent: whole, or as a step to sites that have the model before; each packed if needed."""

    def __init__(self, task: RoundTask) -> None:
        self.task = task

    def for_holder_of(self, digest: str | None) -> RecordDict:
        """Return what to send to a site that has the model of that digest, or none that is known of."""
        step = self.task.model.step
        return self.stepped if step and digest == step.base else self.whole

    @cached_property
    def whole(self) -> RecordDict:
        """Return the task with all of the model."""
        return pack_task(self.task)

    @cached_property
    def stepped(self) -> RecordDict:
        """Return the task with the model's step."""
        return pack_step(self.task, cast(ModelStep, self.task.model.step))


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
