"""One HTTP request handed on to a server behind, its body and its answer streamed: what fence and gate are made of.

Whether a request may pass at all is for them to say. Here is only how: bounded, and neither side hears of the other.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import httpx

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MIB = 2**20

MOST_FLEET_BYTES = 32 * MIB
"""Longest request or answer of a SuperNode: Flower cuts arrays into objects of 5 MB; a bundle may have 10."""

ONE_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade host expect forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip".split()
)
"""Headers of one connection (RFC 9110, 7.6.1), and what says where a request came from: not for the server behind."""


class _TooMuch(Exception):
    """A body is longer than it may be."""


class _Gone(Exception):
    """Who asked has left."""


def streaming_client(verify: ssl.SSLContext, *, proxy: str | httpx.Proxy | None = None) -> httpx.AsyncClient:
    """Return a client for ``forward``, with as many connections as it takes, kept for later requests.

    Nothing is read from the environment: who wants a proxy must say so.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=15.0)
    timeout = httpx.Timeout(60.0, connect=10.0)
    return httpx.AsyncClient(verify=verify, proxy=proxy, limits=limits, timeout=timeout, trust_env=False)


async def forward(
    scope: Scope, receive: Receive, send: Send, client: httpx.AsyncClient, url: str, *, most_bytes: int
) -> int:
    """Ask ``url`` what was asked of us, hand back what it answers, and return the answer's status.

    A request's body of more than ``most_bytes`` is refused (413); so is an answer's (502), or cut off where it exceeds
    them unannounced. A server behind that cannot be reached is a 502, which says no more: Flower then asks again.
    """
    told = dict(scope["headers"])
    if int(told.get(b"content-length", 0)) > most_bytes:
        return await _refuse_length(send)
    has_body = b"content-length" in told or b"transfer-encoding" in told
    content = _body(receive, most_bytes) if has_body else None
    request = client.build_request(scope["method"], url, headers=_end_to_end(scope["headers"]), content=content)
    try:
        response = await client.send(request, stream=True)
    except _TooMuch:
        return await _refuse_length(send)
    except _Gone:
        return 499
    except httpx.TransportError as fault:
        log.warning("%s: %s", url, type(fault).__name__)
        return await answer(send, 502)
    try:
        return await _hand_back(response, send, most_bytes)
    except httpx.TransportError as fault:
        log.warning("%s broke off: %s", url, type(fault).__name__)
        raise ConnectionError("the server behind broke off") from fault  # too late for another status
    finally:
        await asyncio.shield(response.aclose())


async def answer(send: Send, status: int, *headers: tuple[bytes, bytes]) -> int:
    """Answer with ``status`` and no body, and return the status."""
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})
    return status


async def _refuse_length(send: Send) -> int:
    return await answer(send, 413, (b"connection", b"close"))  # what is still to come is not read


async def _hand_back(response: httpx.Response, send: Send, most_bytes: int) -> int:
    if int(response.headers.get("content-length", 0)) > most_bytes:
        return await answer(send, 502)
    headers = _end_to_end([(name.lower(), value) for name, value in response.headers.raw])
    await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
    async for part in response.aiter_raw():
        if response.num_bytes_downloaded > most_bytes:
            raise ConnectionError("the server behind sends more than it may")
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
    return response.status_code


async def _body(receive: Receive, most_bytes: int) -> AsyncIterator[bytes]:
    total, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise _Gone
        part = event.get("body", b"")
        total, more = total + len(part), event.get("more_body", False)
        if total > most_bytes:
            raise _TooMuch
        yield part


def _end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that are for the other end."""
    named = {word.strip().lower() for name, value in headers if name == b"connection" for word in value.split(b",")}
    return [(name, value) for name, value in headers if name not in ONE_HOP | named]
