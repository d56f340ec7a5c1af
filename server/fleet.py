"""A site's calls to Flower, once the fence knows whose they are: handed on, as far as they are what a site may say."""

import logging
import time
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from fedgan.errors import HomeError
from fedgan.forward import MOST_FLEET_BYTES, Client, Receive, Scope, Send, answer, forward
from server.long_poll import SENT, LongPoll
from server.presence import PRESENCE, note_activation
from server.registry import Member

log = logging.getLogger(__name__)

ACTIVATE, PULL = "/v1/fleet/activate-node", "/v1/fleet/pull-messages"

FLEET = frozenset(
    {
        ACTIVATE,
        PULL,
        *(
            f"/v1/fleet/{name}"
            for name in (
                "deactivate-node",
                "send-node-heartbeat",
                "push-messages",
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


class Fleet:
    """The SuperLink's side for sites, and when each was there."""

    def __init__(self, link: Client, link_url: str, home: Path) -> None:
        """Take the SuperLink behind, and the federation's folder."""
        self._link = link
        self._link_url = link_url
        self._presence = home / PRESENCE
        self.long_poll = LongPoll(home / SENT)

    async def hand_on(self, scope: Scope, receive: Receive, send: Send, member: Member) -> int:
        """Hand on one of the calls in ``FLEET`` and its answer back, and return the answer's status."""
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
