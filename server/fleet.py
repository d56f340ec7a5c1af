"""A site's calls to Flower, once the fence knows whose they are: handed on, as far as they are what a site may say."""

import logging
import time
from collections import Counter
from pathlib import Path

from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError
from starlette.concurrency import run_in_threadpool

from fedgan.bell import ring
from fedgan.errors import FedganError, HomeError
from fedgan.forward import (
    MIB,
    MOST_FLEET_BYTES,
    Client,
    Gone,
    Receive,
    Scope,
    Send,
    Tally,
    TooMuch,
    answer,
    forward,
    once,
    whole,
)
from server.long_poll import ANSWERED, SENT, LongPoll, bytes_sent
from server.presence import PRESENCE, note_activation
from server.registry import Member, Registry

log = logging.getLogger(__name__)

ACTIVATE, PULL, CONFIRM, PUSH, PUSH_OBJECT = (
    f"/v1/fleet/{name}"
    for name in ("activate-node", "pull-messages", "confirm-message-received", "push-messages", "push-object")
)

FLEET = frozenset({ACTIVATE, PULL, CONFIRM, PUSH, PUSH_OBJECT}) | {
    f"/v1/fleet/{name}" for name in ("deactivate-node", "send-node-heartbeat", "get-run", "get-fab", "pull-object")
}
"""What a SuperNode calls. Its registering and unregistering itself is not among them: that is the coordinator's."""

NO_CERTIFICATE = "no certificate of an approved site"

MOST_PUSH_BYTES = 2**20
"""Longest message without its content; what it names of that takes some 70 bytes for each object."""

MOST_MODELS, MOST_BESIDE_BYTES = 4, 64 * MIB
"""How long a site's answer to a task may be: so many times the model that was sent, and so much more. An update is as
long as the model; what was cut off on the way is sent again."""


class Refusal(FedganError):
    """A request is refused; the fence says so."""

    def __init__(self, status: int, reason: str) -> None:
        """Take the status of the answer, and why."""
        self.status = status
        super().__init__(reason)


class Fleet:
    """The SuperLink's side for sites, and when each was there."""

    def __init__(self, link: Client, link_url: str, home: Path, registry: Registry) -> None:
        """Take the SuperLink behind, the federation's folder, and who may take part."""
        self._link = link
        self._link_url = link_url
        self._presence = home / PRESENCE
        self._registry = registry
        self._unconfirmed: set[str] = set()
        """Sites that were sent a task and have not said that they have it."""
        self._answering: set[str] = set()
        """Sites that have begun to send an answer."""
        self._uploaded: Counter[str] = Counter()
        """Bytes of objects from each site since it was last given a task."""
        self._sent, self._answered = home / SENT, home / ANSWERED
        self.long_poll = LongPoll(self._sent)

    async def hand_on(self, scope: Scope, receive: Receive, send: Send, member: Member) -> int:
        """Hand on one of the calls in ``FLEET`` and its answer back, and return the answer's status.

        Raises:
            Refusal: it is not for this site to say.
        """
        path = scope["path"]
        if path == ACTIVATE:
            return await self._activate(scope, receive, send, member.site)
        if path == PULL:
            return await self._pull(scope, receive, send, member)
        if path == PUSH:
            try:
                receive = once(await _answer_of(receive, member.node))
            except Gone:
                return 499
            self._answering.add(member.site)
        if path == PUSH_OBJECT:
            self._measure(scope, member.site)
        if path in (CONFIRM, PUSH):  # it has its task
            self._unconfirmed.discard(member.site)
        return await self._forward(scope, receive, send)

    async def _activate(self, scope: Scope, receive: Receive, send: Send, site: str) -> int:
        # Before it is answered: what it asks, and is sent, after that counts.
        at = time.time()
        self.long_poll.forget(site)
        self._unconfirmed.discard(site)
        status = await self._forward(scope, receive, send)
        if status == 200:
            log.info("site %s is here", site)
            await run_in_threadpool(self._note, site, at)
        return status

    async def _pull(self, scope: Scope, receive: Receive, send: Send, member: Member) -> int:
        """Hand on a site's question for tasks when there are some.

        Who asks again instead of confirming has not got what it was sent: then it is as if it had come in anew.
        """
        site, sent = member.site, Tally()
        if site in self._answering:  # before it has sent all of its answer, it does not ask
            self._answering.discard(site)
            ring(self._answered)
        if site in self._unconfirmed:
            self._unconfirmed.discard(site)
            log.warning("what was sent to site %s did not get there", site)
            await run_in_threadpool(self._note, site, time.time())
        if not await self.long_poll.wait(site):
            return await answer(send, 503)
        if self._registry.member(scope["state"]["certificate"]) != member:
            raise Refusal(401, NO_CERTIFICATE)

        status = await self._forward(scope, receive, sent.counting(send))
        if status == 200 and sent.total:  # without a task, Flower's answer is empty
            self._unconfirmed.add(site)
            del self._uploaded[site]
        return status

    def _measure(self, scope: Scope, site: str) -> None:
        model_bytes = bytes_sent(self._sent)
        self._uploaded[site] += int(dict(scope["headers"]).get(b"content-length", MOST_FLEET_BYTES))
        if model_bytes is not None and self._uploaded[site] > MOST_MODELS * model_bytes + MOST_BESIDE_BYTES:
            raise Refusal(413, "an answer much longer than the model")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> int:
        url = self._link_url + scope["path"]
        return await forward(scope, receive, send, self._link, url, most_bytes=MOST_FLEET_BYTES)

    def _note(self, site: str, at: float) -> None:
        try:
            note_activation(self._presence, site, at)
        except HomeError as failure:  # it is here all the same
            log.error("%s", failure)  # noqa: TRY400 - the message says it all


async def _answer_of(receive: Receive, node: int | None) -> bytes:
    """Return a request to push a message, which is an answer of this node's.

    Flower takes a message that answers nothing for one to the coordinator, whoever it says that it is from.

    Raises:
        Refusal: the message is another.
        Gone: who sent it has left before its end, or is silent.
    """
    try:
        body = await whole(receive, MOST_PUSH_BYTES)
    except TooMuch as fault:
        raise Refusal(413, "too long") from fault
    try:
        messages = PushMessagesRequest.FromString(body).messages_list
    except DecodeError:
        messages = ()
    if [(one.metadata.src_node_id, bool(one.metadata.reply_to_message_id)) for one in messages] != [(node, True)]:
        raise Refusal(400, "a message that is not the site's answer to a task")
    return body
