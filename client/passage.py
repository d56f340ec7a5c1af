"""Requests and answers on their way through the gate: held until all is there, made anew, or refused."""

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from google.protobuf.message import Message

from fedgan.forward import Receive, Scope, Send, once


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
        await send({**self.start, "headers": _measured(self.start["headers"], self.body)})
        await send({"type": "http.response.body", "body": bytes(self.body)})


def asking(scope: Scope, path: str, content: Message) -> tuple[Scope, Receive]:
    """Return a request like the one in ``scope``, by whose headers Flower knows the site, with another content."""
    body = content.SerializeToString()
    return {**scope, "path": path, "headers": _measured(scope["headers"], body)}, once(body)


def _measured(headers: list[tuple[bytes, bytes]], body: bytes | bytearray) -> list[tuple[bytes, bytes]]:
    """Return headers with the length of this body."""
    others = [(name, value) for name, value in headers if name != b"content-length"]
    return [*others, (b"content-length", str(len(body)).encode())]
