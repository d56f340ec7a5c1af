"""The one way out of a site: what its SuperNode says to the coordinator goes through here, and code comes in only so.

The SuperNode dials this machine's loopback; from here one connection with the site's own certificate leads to the
coordinator. Flower's calls pass as they are, with four exceptions:

- Code. A bundle that the policy approves is signed with a key of the hour, the only one that the SuperNode has been
  told to trust (``--trusted-entities``). Any other arrives empty and unsigned, which the SuperNode answers with an
  error of Flower's own, and goes on.
- Errors of Flower's own leave without their text, which may quote a path or a patient.
- Answers that lead elsewhere or are compressed do not pass: Flower's client would follow them, and unpack any size.
- Nor do tasks much longer than the policy allows, before they fill the memory.
"""

import asyncio
import base64
import hashlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.proto.fab_pb2 import Fab, GetFabResponse
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message
from google.protobuf.message import DecodeError

from client.loopback import SIGNER, Loopback
from client.passage import AnswerRefused, Held, asking, plain
from client.replies import silence
from fedgan.audit import Audit
from fedgan.errors import EngineFailed, FedganError
from fedgan.forward import MOST_FLEET_BYTES, Client, Receive, Scope, Send, Tally, answer, forward, whole

FLEET = "/v1/fleet/"
BRINGS_CODE = f"{FLEET}get-fab"
REPLIES = f"{FLEET}push-messages"
UPLOADS = f"{FLEET}push-object"
ASKS = f"{FLEET}pull-messages"
DOWNLOADS = f"{FLEET}pull-object"
JOINS = f"{FLEET}activate-node"
CONFIRMS = f"{FLEET}confirm-message-received"

MOST_TIMES = 2
"""A task so many times as long as the policy allows is not held here in memory until the worker refuses it by name."""

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
    task_bytes: Callable[[], int]
    """Returns how many bytes the policy allows a task now."""
    note: Callable[[int], None] = lambda status: None
    """Is told the status of each answer, so that somebody learns when there is no coordinator."""
    arrived: Callable[[], None] = lambda: None
    """Is told when the SuperNode has all of a task."""
    arriving: Tally = field(default_factory=Tally)
    """How much of the present task the SuperNode has fetched."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or refuse it."""
        if not scope["path"].startswith(FLEET) or scope["method"] != "POST":
            await answer(send, 404)
        elif scope["path"] == BRINGS_CODE:
            await self._let_code_in(scope, receive, send)
        elif scope["path"] == REPLIES:
            await self._let_reply_out(scope, receive, send)
        elif scope["path"] == DOWNLOADS:
            await self._let_object_in(scope, receive, send)
        else:
            if scope["path"] == ASKS:
                self.arriving.total = 0
            if scope["path"] == CONFIRMS:
                self.arrived()
            status = await self._forward(scope, receive, send)
            if scope["path"] == JOINS and status == httpx.codes.OK:
                await asyncio.to_thread(self.audit.record, "joined")

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> int:
        url = f"https://{self.coordinator}{scope['path']}"
        asked = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"accept-encoding"]}
        try:
            status = await forward(asked, receive, plain(send), self.client, url, most_bytes=MOST_FLEET_BYTES)
        except AnswerRefused as refused:
            status = await answer(send, 502)
            await asyncio.to_thread(self.audit.record, "answer refused", reason=str(refused))
        self.note(status)
        return status

    async def _let_object_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a part of a task in, unless those before it were too much already: the SuperNode then drops the task."""
        arriving = self.arriving
        if not arriving.total:
            arriving.most = await asyncio.to_thread(self._most_bytes)
        if arriving.total >= arriving.most:
            await answer(send, 413)
            await asyncio.to_thread(self.audit.record, "answer refused", reason="too long")
        else:
            await self._forward(scope, receive, arriving.counting(send))

    def _most_bytes(self) -> int:
        try:
            return MOST_TIMES * self.task_bytes()
        except FedganError:  # the worker will say so to the coordinator
            return self.arriving.most

    async def _let_reply_out(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = PushMessagesRequest.FromString(await whole(receive))
        silenced = silence(reply)
        held = await self._ask(*asking(scope, REPLIES, reply))
        if silenced and held.status == httpx.codes.OK:
            said = PushMessagesResponse.FromString(bytes(held.body))
            for error in silenced:
                if error.object_id in said.objects_to_push:
                    error.session_id = said.session_id
                    await self._ask(*asking(scope, UPLOADS, error))
            said.ClearField("objects_to_push")  # the SuperNode has the one with the text, and shall not be asked for it
            held.body = bytearray(said.SerializeToString())
        await held.release(send)

    async def _let_code_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        held = await self._ask(scope, receive)
        if held.status == httpx.codes.OK:
            held.body = bytearray(await asyncio.to_thread(self._judged, bytes(held.body)))
        await held.release(send)

    async def _ask(self, scope: Scope, receive: Receive) -> Held:
        """Return the coordinator's answer once all of it is there, or one on which the SuperNode asks again."""
        held = Held()
        try:
            await self._forward(scope, receive, held)
        except ConnectionError:
            held = Held()
            await answer(held, 502)
        return held

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
