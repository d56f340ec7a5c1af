"""One HTTP request handed on to a server behind, its body and its answer streamed: what fence and gate are made of.

Whether a request may pass at all is for them to say. Here is only how: bounded, and neither side hears of the other.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpcore
import httpx

from fedgan.network import Network

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

Given = TypeVar("Given")

MIB = 2**20

MOST_FLEET_BYTES = 32 * MIB
"""Longest request or answer of a SuperNode: Flower cuts arrays into objects of 5 MB; a bundle may have 10."""

ONE_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade host expect forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split()
)
"""Headers of one connection (RFC 9110, 7.6.1), and what says where a request came from: not for the server behind."""

PATIENCE_S = 60.0
"""How long either side may be silent in the middle of a request: a link can fall silent and never break."""

PATIENCE = {"timeout": {"connect": 10.0, "read": PATIENCE_S, "write": PATIENCE_S, "pool": PATIENCE_S}}

POOL: Mapping[str, Any] = {"max_connections": None, "max_keepalive_connections": 64, "keepalive_expiry": 15.0}

FAULTS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ProxyError)


class TooMuch(ConnectionError):
    """A body is longer than it may be."""


class Gone(ConnectionError):
    """Who asked has left, or takes and gives nothing more."""


Client = httpcore.AsyncConnectionPool
"""What asks the server behind; httpx's own engine, whose layers above it would only be passed through."""


def streaming_client(verify: ssl.SSLContext, *, proxy: httpx.Proxy | None = None) -> Client:
    """Return a client for ``forward``, with as many connections as it takes, kept for later requests.

    Nothing is read from the environment: who wants a proxy must say so.
    """
    if proxy is None:
        return Client(verify, **POOL, network_backend=Network())
    return httpcore.AsyncHTTPProxy(
        httpcore.URL(str(proxy.url)),
        proxy_auth=proxy.raw_auth,
        proxy_headers=proxy.headers.raw,
        ssl_context=verify,
        proxy_ssl_context=proxy.ssl_context,
        **POOL,
        network_backend=Network(),
    )


async def forward(scope: Scope, receive: Receive, send: Send, client: Client, url: str, *, most_bytes: int) -> int:
    """Ask ``url`` what was asked of us, hand back what it answers, and return the answer's status.

    A request's body of more than ``most_bytes`` is refused (413); so is an answer's (502), or cut off where it exceeds
    them unannounced. A server behind that cannot be reached is a 502, which says no more: Flower then asks again.
    """
    told = dict(scope["headers"])
    if int(told.get(b"content-length", 0)) > most_bytes:
        return await _refuse_length(send)
    has_body = b"content-length" in told or b"transfer-encoding" in told
    content = _parts(receive, most_bytes) if has_body else None
    headers = _end_to_end(scope["headers"])
    try:
        async with client.stream(scope["method"], url, headers=headers, content=content, extensions=PATIENCE) as came:
            return await _hand_back(came, send, most_bytes)
    except TooMuch:
        return await _refuse_length(send)
    except Gone:
        return 499
    except FAULTS as fault:
        log.warning("%s: %s", url, type(fault).__name__)
        return await answer(send, 502)


async def answer(send: Send, status: int, *headers: tuple[bytes, bytes]) -> int:
    """Answer with ``status`` and no body, and return the status."""
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
    return status


def once(body: bytes) -> Receive:
    """Return what receives a request of this body."""

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    return receive


async def whole(receive: Receive, most_bytes: int = MOST_FLEET_BYTES) -> bytes:
    """Return the body of a request.

    Raises:
        TooMuch: it is longer than ``most_bytes``.
        Gone: who asked has left before its end, or is silent.
    """
    return b"".join([part async for part in _parts(receive, most_bytes)])


@dataclass(slots=True)
class Tally:
    """How many bytes have been sent, and how many may be."""

    total: int = 0
    most: int = MOST_FLEET_BYTES

    def counting(self, send: Send) -> Send:
        """Return a ``send`` that counts what passes."""

        async def send_counted(event: MutableMapping[str, Any]) -> None:
            self.total += len(event.get("body", b""))
            await send(event)

        return send_counted


async def _refuse_length(send: Send) -> int:
    return await answer(send, 413, (b"connection", b"close"))  # what is still to come is not read


async def _hand_back(came: httpcore.Response, send: Send, most_bytes: int) -> int:
    headers = _end_to_end([(name.lower(), value) for name, value in came.headers])
    if int(dict(headers).get(b"content-length", 0)) > most_bytes:
        return await answer(send, 502)
    await _in_time(send({"type": "http.response.start", "status": came.status, "headers": headers}))
    total = 0
    try:
        async for part in came.aiter_stream():
            total += len(part)
            if total > most_bytes:
                raise ConnectionError("the server behind sends more than it may")
            await _in_time(send({"type": "http.response.body", "body": part, "more_body": True}))
    except FAULTS as fault:  # too late for another status
        raise ConnectionError(f"the server behind broke off ({type(fault).__name__})") from fault
    await _in_time(send({"type": "http.response.body", "body": b""}))  # who is silent has perhaps not taken the rest
    return came.status


async def _parts(receive: Receive, most_bytes: int) -> AsyncIterator[bytes]:
    total, more = 0, True
    while more:
        event = await _in_time(receive())
        if event["type"] == "http.disconnect":
            raise Gone
        part = event.get("body", b"")
        total, more = total + len(part), event.get("more_body", False)
        if total > most_bytes:
            raise TooMuch
        yield part


async def _in_time(theirs: Awaitable[Given]) -> Given:
    """Return what who asked gives or takes.

    Raises:
        Gone: that is nothing for ``PATIENCE_S``.
    """
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await theirs
    except TimeoutError as silence:
        raise Gone from silence


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that are for the other end."""
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in headers if name not in ONE_HOP | named]
