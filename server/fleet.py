"""A site's calls to Flower, once the fence knows whose they are: handed on, as far as they are what a site may say."""

import logging
import time
from pathlib import Path

from flwr.proto.fleet_pb2 import PushMessagesRequest
from google.protobuf.message import DecodeError
from starlette.concurrency import run_in_threadpool

from fedgan.errors import FedganError, HomeError
from fedgan.forward import MOST_FLEET_BYTES, Client, Receive, Scope, Send, answer, forward
from server.long_poll import SENT, LongPoll
from server.presence import PRESENCE, note_activation
from server.registry import Member

log = logging.getLogger(__name__)

ACTIVATE, PULL, PUSH = (f"/v1/fleet/{name}" for name in ("activate-node", "pull-messages", "push-messages"))

FLEET = frozenset(
    {
        ACTIVATE,
        PULL,
        PUSH,
        *(
            f"/v1/fleet/{name}"
            for name in (
                "deactivate-node",
                "send-node-heartbeat",
                "get-run",
                "get-fab",
                "push-object",
                "pull-object",
                "confirm-message-received",
            )
        ),
    }
)
"""What a SuperNode calls. Its registering and unregistering itself is not among them: that is the coordinator's."""


MOST_PUSH_BYTES = 2**20
"""Longest message without its content; what it names of that takes some 70 bytes for each object."""


class Refusal(FedganError):
    """A request is refused; the fence says so."""

    def __init__(self, status: int, reason: str) -> None:
        """Take the status of the answer, and why."""
        self.status = status
        super().__init__(reason)


class Fleet:
    """The SuperLink's side for sites, and when each was there."""

    def __init__(self, link: Client, link_url: str, home: Path) -> None:
        """Take the SuperLink behind, and the federation's folder."""
        self._link = link
        self._link_url = link_url
        self._presence = home / PRESENCE
        self.long_poll = LongPoll(home / SENT)

    async def hand_on(self, scope: Scope, receive: Receive, send: Send, member: Member) -> int:
        """Hand on one of the calls in ``FLEET`` and its answer back, and return the answer's status.

        Raises:
            Refusal: it is not for this site to say.
        """
        if scope["path"] == PUSH:
            receive = _once(await _answer_of(receive, member.node))
        if scope["path"] == PULL and not await self.long_poll.wait(member.site):
            return await answer(send, 503)
        url = self._link_url + scope["path"]
        status = await forward(scope, receive, send, self._link, url, most_bytes=MOST_FLEET_BYTES)
        if scope["path"] == ACTIVATE and status == 200:
            await run_in_threadpool(self._welcome, member.site)
        return status

    def _welcome(self, site: str) -> None:
        self.long_poll.forget(site)
        log.info("site %s is here", site)
        try:
            note_activation(self._presence, site, time.time())
        except HomeError as failure:  # it is here all the same
            log.error("%s", failure)  # noqa: TRY400 - the message says it all


async def _answer_of(receive: Receive, node: int | None) -> bytes:
    """Return a request to push a message, which is an answer of this node's.

    Flower takes a message that answers nothing for one to the coordinator, whoever it says that it is from.

    Raises:
        Refusal: the message is another.
    """
    body, more = b"", True
    while more and len(body) <= MOST_PUSH_BYTES:
        event = await receive()
        body += event.get("body", b"")
        more = event.get("more_body", False)
    if len(body) > MOST_PUSH_BYTES:
        raise Refusal(413, "too long")
    try:
        messages = PushMessagesRequest.FromString(body).messages_list
    except DecodeError:
        messages = ()
    if [(one.metadata.src_node_id, bool(one.metadata.reply_to_message_id)) for one in messages] != [(node, True)]:
        raise Refusal(400, "a message that is not the site's answer to a task")
    return body


def _once(body: bytes) -> Receive:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    return receive
