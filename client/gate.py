"""The one way out of a site: what its SuperNode says to the coordinator goes through here, and code comes in only so.

The SuperNode dials this machine's loopback; from here one connection with the site's own certificate leads to the
coordinator. Flower's calls pass as they are, but for the one that brings code: a bundle that the policy approves is
signed with a key of the hour, the only one that the SuperNode has been told to trust (``--trusted-entities``). Any
other arrives empty and unsigned, which the SuperNode answers with an error of Flower's own, and goes on. And an
error of Flower's own leaves without its text, which may quote a path or a patient.
"""

import asyncio
import base64
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.fab_pb2 import Fab, GetFabResponse
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message
from google.protobuf.message import DecodeError

from client.loopback import SIGNER, Loopback
from client.replies import silence
from fedgan.audit import Audit
from fedgan.errors import EngineFailed, FedganError
from fedgan.forward import MOST_FLEET_BYTES, Client, Receive, Scope, Send, answer, forward

FLEET = "/v1/fleet/"
BRINGS_CODE = f"{FLEET}get-fab"
REPLIES = f"{FLEET}push-messages"
UPLOADS = f"{FLEET}push-object"
JOINS = f"{FLEET}activate-node"

START_S = 30.0

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Gate:
    """What is let through; an ASGI application."""

    coordinator: str
    """Its address, as HOST:PORT."""
    client: Client
    """Shows the site's certificate."""
    approved: Callable[[], frozenset[str]]
    """Returns the SHA-256 of every bundle that may run here now."""
    signer: Ed25519PrivateKey
    audit: Audit
    note: Callable[[int], None] = lambda status: None
    """Is told the status of each answer, so that somebody learns when there is no coordinator."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if not scope["path"].startswith(FLEET) or scope["method"] != "POST":
            await answer(send, 404)
        elif scope["path"] == BRINGS_CODE:
            await self._let_code_in(scope, receive, send)
        elif scope["path"] == REPLIES:
            await self._let_reply_out(scope, receive, send)
        else:
            status = await self._forward(scope, receive, send)
            if scope["path"] == JOINS and status == httpx.codes.OK:
                await asyncio.to_thread(self.audit.record, "joined")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> int:
        url = f"https://{self.coordinator}{scope['path']}"
        asked = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"accept-encoding"]}
        try:
            status = await forward(asked, receive, _plain(send), self.client, url, most_bytes=MOST_FLEET_BYTES)
        except _Refused as refused:
            status = await answer(send, 502)
            await asyncio.to_thread(self.audit.record, "answer refused", reason=str(refused))
        self.note(status)
        return status

    async def _let_reply_out(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = PushMessagesRequest.FromString(await _whole(receive))
        silenced = silence(reply)
        held = _Held()
        status = await self._forward(*_asking(scope, REPLIES, reply), held)
        if status == httpx.codes.OK and silenced:
            said = PushMessagesResponse.FromString(bytes(held.body))
            for error in silenced:  # the SuperNode does not have it: it has the one with the text
                if error.object_id in said.objects_to_push:
                    said.objects_to_push.remove(error.object_id)
                    error.session_id = said.session_id
                    await self._forward(*_asking(scope, UPLOADS, error), _Held())
            held.body = bytearray(said.SerializeToString())
        await held.release(send)

    async def _let_code_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = _Held()
        try:
            status = await self._forward(scope, receive, held)
        except ConnectionError:  # before anything was sent on, so that the SuperNode may be told to ask again
            await answer(send, 502)
            return
        if status == httpx.codes.OK:
            held.body = bytearray(await asyncio.to_thread(self._judged, bytes(held.body)))
        await held.release(send)

    def _judged(self, body: bytes) -> bytes:
        """Return Flower's answer with the bundle in it signed if it is approved, and without it if not."""
        try:
            fab = GetFabResponse.FromString(body).fab
        except DecodeError:
            fab = Fab()
        digest = hashlib.sha256(fab.content).hexdigest()
        judged = Fab(hash_str=digest)
        if fab.hash_str == digest and self._is_approved(digest):
            judged = Fab(hash_str=digest, content=fab.content, verifications=self._signed(digest))
        else:
            log.error(
                "the coordinator ships code that this site has not approved; it does not run (SHA-256 %s)", digest
            )
            self.audit.record("refused", reason="BundleRefused", bundle=digest)
        return bytes(GetFabResponse(fab=judged).SerializeToString())

    def _is_approved(self, digest: str) -> bool:
        try:
            return digest in self.approved()
        except FedganError as refusal:
            log.error("no code can be approved: %s", refusal)  # noqa: TRY400  the message says it all
            return False

    def _signed(self, digest: str) -> dict[str, str]:
        """Return what the SuperNode takes for the proof that a bundle is approved."""
        now = int(time.time())
        signature = sign_message(self.signer, create_message_to_sign(bytes.fromhex(digest), now))
        proof = {"signed_at": now, "signature": base64.urlsafe_b64encode(signature).decode()}
        return {"valid_license": "yes", SIGNER: json.dumps(proof)}


async def _whole(receive: Receive) -> bytes:
    body, more = bytearray(), True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise ConnectionError("the SuperNode has left")
        body += event.get("body", b"")
        more = event.get("more_body", False)
    return bytes(body)


def _asking(scope: Scope, path: str, content: PushMessagesRequest | PushObjectRequest) -> tuple[Scope, Receive]:
    """Return a request like the one in ``scope``, by whose headers Flower knows the site, with another content."""
    body = content.SerializeToString()
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    length = (b"content-length", str(len(body)).encode())

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": body}

    return {**scope, "path": path, "headers": [*headers, length]}, receive


class _Refused(Exception):
    """An answer goes no further; the message says in a word why."""


def _plain(send: Send) -> Send:
    """Return a ``send`` that takes no answer which Flower's client would follow elsewhere, or unpack without bounds."""

    async def send_plain(event: MutableMapping[str, Any]) -> None:
        if httpx.codes.is_redirect(event.get("status", 0)):
            raise _Refused("redirect")
        if any(name == b"content-encoding" for name, _ in event.get("headers", ())):
            raise _Refused("compressed")
        await send(event)

    return send_plain


@dataclass(slots=True)
class _Held:
    """An answer that waits until all of it is there; an ASGI ``send``."""

    start: MutableMapping[str, Any] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    async def __call__(self, event: MutableMapping[str, Any]) -> None:
        """Hold a part of the answer."""
        if event["type"] == "http.response.start":
            self.start = event
        else:
            self.body += event.get("body", b"")

    async def release(self, send: Send) -> None:
        """Send all of it, at its present length."""
        headers = [(name, value) for name, value in self.start["headers"] if name != b"content-length"]
        length = (b"content-length", str(len(self.body)).encode())
        await send({**self.start, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": bytes(self.body)})


@contextmanager
def open_gate(gate: Gate, loopback: Loopback) -> Iterator[int]:
    """Serve ``gate`` on this machine's loopback until the block ends, and give its port.

    Raises:
        EngineFailed: it does not start.
    """
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            gate,
            ssl_certfile=loopback.certificate,
            ssl_keyfile=loopback.key,
            lifespan="off",
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=_serve, args=(server, gate.client, listening), name="gate", daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


def _serve(server: uvicorn.Server, client: Client, listening: socket.socket) -> None:
    async def serve() -> None:
        async with client:
            await server.serve(sockets=[listening])

    asyncio.run(serve())


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise EngineFailed("the site's gate did not start; its log says why")
        time.sleep(0.02)
