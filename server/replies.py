"""Replies as Flower's Grid hands them over. What they say is read in ``fedgan.wire``."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor, wait

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedgan.errors import UpdateRejected

log = logging.getLogger(__name__)


class Replies:
    """Fetches replies one by one, but for those that Flower itself waits for, since their site still uploads them.

    That can take it hours, so it does so in a thread of its own, which nobody need wait for.
    """

    def __init__(self, grid: Grid) -> None:
        """Take what fetches them."""
        self._grid = grid
        self._begun: dict[str, Future[list[Message]]] = {}

    def to(self, message: str, *, patience_s: float) -> Message | None:
        """Return the reply to ``message``, or nothing if it has not arrived whole.

        Once it has begun to arrive it is waited for, ``patience_s`` at most; from then on it is only looked at.

        Raises:
            UpdateRejected: what the site sent is no message of Flower's.
            httpx.HTTPError: Flower's SuperLink cannot answer now.
        """
        pull = self._begun.pop(message, None)
        if pull is None:
            thread = ThreadPoolExecutor(1)
            pull = thread.submit(lambda: list(self._grid.pull_messages([message])))
            thread.shutdown(wait=False)
            wait([pull], patience_s)
        if not pull.done():
            self._begun[message] = pull
            return None
        return _reply_in(_pulled(pull), message)


def _pulled(pull: Future[list[Message]]) -> list[Message]:
    try:
        replies = pull.result()
    except httpx.HTTPError:
        raise
    except Exception as fault:  # what a site's bytes make Flower raise has no class of its own
        raise UpdateRejected(f"what it sent is no message of Flower's ({type(fault).__name__})") from fault
    if any(reply.has_content() and not isinstance(reply.content, RecordDict) for reply in replies):
        raise UpdateRejected("what it sent holds something else than records")
    return replies


def _reply_in(found: list[Message], message: str) -> Message | None:
    """Return what answers ``message``: Flower also hands over what some site sends unasked."""
    replies = [one for one in found if one.metadata.reply_to_message_id == message]
    if len(replies) < len(found):
        log.warning("a message came that answers no task; it is not read")
    return replies[0] if replies else None
