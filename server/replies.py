"""Replies as Flower's Grid hands them over. What they say is read in ``fedgan.wire``."""

import httpx
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedgan.errors import UpdateRejected


def pull(grid: Grid, message: str) -> list[Message]:
    """Return what has arrived as the reply to ``message``.

    Raises:
        UpdateRejected: what a site sent is no message of Flower's.
        httpx.HTTPError: Flower's SuperLink cannot answer now.
    """
    try:
        replies = list(grid.pull_messages([message]))
    except httpx.HTTPError:
        raise
    except Exception as fault:  # what a site's bytes make Flower raise has no class of its own
        raise UpdateRejected(f"what it sent is no message of Flower's ({type(fault).__name__})") from fault
    if any(reply.has_content() and not isinstance(reply.content, RecordDict) for reply in replies):
        raise UpdateRejected("what it sent holds something else than records")
    return replies
