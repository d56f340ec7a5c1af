"""Requests and answers on their way through the gate: counted, held until all is there, made anew, or refused."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from google.protobuf.message import Message

from fedgan.forward import MOST_FLEET_BYTES, Receive, Scope, Send, once


class AnswerRefused(Exception):
    """An answer goes no further; the message says in a word why."""


def plain(send: Send) -> Send:
    """Return a ``send`` that takes no answer which Flower's client would follow elsewhere, or unpack without bounds."""

    async def send_plain(event: MutableMapping[str, Any]) -> None:
        if httpx.codes.is_redirect(event.get("status", 0)):
            raise AnswerRefused("redirect")
        if any(name == b"content-encoding" for name, _ in event.get("headers", ())):
            raise AnswerRefused("compressed")
        await send(event)

    return send_plain


@dataclass(slots=True)
class Arriving:
    """How much of the present task has come, and how much may."""

    total: int = 0
    most: int = MOST_FLEET_BYTES

    def counted(self, send: Send) -> Send:
        """Return a ``send`` that counts what passes."""

        async def send_counted(event: MutableMapping[str, Any]) -> None:
            self.total += len(event.get("body", b""))
            await send(event)

        return send_counted


@dataclass(slots=True)
class Held:
    """An answer that waits until all of it is there; an ASGI ``send``."""

    start: MutableMapping[str, Any] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def __call__(self, event: MutableMapping[str, Any]) -> None:
        """Hold a part of the answer."""
        if event["type"] == "http.response.start":
            self.start = event
        else:
            self.body += event.get("body", b"")

    @property
    def status(self) -> int:
        """Return its status."""
        return int(self.start["status"])

    async def release(self, send: Send) -> None:
        """Send all of it, at its present length."""
        headers = [(name, value) for name, value in self.start["headers"] if name != b"content-length"]
        length = (b"content-length", str(len(self.body)).encode())
        await send({**self.start, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": bytes(self.body)})


async def whole(receive: Receive) -> bytes:
    """Return the body of a request.

    Raises:
        ConnectionError: the SuperNode has left before its end.
    """
    body, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError("the SuperNode has left")
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return bytes(body)


def asking(scope: Scope, path: str, content: Message) -> tuple[Scope, Receive]:
    """Return a request like the one in ``scope``, by whose headers Flower knows the site, with another content."""
    body = content.SerializeToString()
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    length = (b"content-length", str(len(body)).encode())
    return {**scope, "path": path, "headers": [*headers, length]}, once(body)
