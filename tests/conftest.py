"""Tiny settings and phantoms, so that the real loop runs in seconds."""

import asyncio
import base64
import json
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import hypothesis
import pytest
import torch
import uvicorn
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import PlainTextResponse

from fedgan.config import load
from fedgan.identity import Key, new_key, private_pem, public_pem, request_signature
from fedgan.settings import Simulation
from server.authority import Enrolment, found
from server.door import door_to, server_context
from server.home import Home
from server.up import serve

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is slow, not wrong
hypothesis.settings.load_profile("untimed")

TINY = (
    "data.size=32",
    "data.sites=[A,B]",
    "data.patients=16",
    "data.images_per_patient=1",
    "model.width=4",
    "model.critic_width=4",
    "model.batch_size=2",
    "rounds=2",
    "local_steps=2",
    "bootstrap=20",
    "threads=1",
    "precision=float32",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Keep PyTorch to one thread: quick for tiny networks, and the same sums everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_overrides(tmp_path) -> list[str]:
    """What to put on the command line for two sites and two rounds in seconds."""
    return [*TINY, f"runs={tmp_path}"]


@pytest.fixture
def tiny(tiny_overrides):
    """Settings of two sites and two rounds, from the real configs."""

    def settings(*overrides: str) -> Simulation:
        return load("simulate", Simulation, [*tiny_overrides, *overrides])

    return settings


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Let no file of this process grow beyond a kilobyte for a while, as when the disk has no room."""

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full


@dataclass(frozen=True)
class Badge:
    """What a site shows: its certificate and key in one file, and its key to Flower."""

    site: str
    key: Key
    file: Path

    @property
    def flower(self) -> dict[str, str]:
        """Return the headers that Flower's SuperNode sends, as far as the fence reads them."""
        return {"flwr-public-key": base64.b64encode(public_pem(self.key.public_key())).decode()}


@dataclass
class Coordinator:
    """A federation in a folder, with its fence on the loopback before something that answers as a SuperLink would."""

    home: Home
    port: int
    passed: list[dict[str, object]] = field(default_factory=list)
    """What the fence has handed on."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def enrolment(self) -> Enrolment:
        return Enrolment(self.home)

    def admit(self, site: str) -> Badge:
        """Enrol and approve a site, as if Flower had registered its key."""
        key, enrolment = new_key(), self.enrolment
        request = request_signature(key, site)
        enrolment.receive(enrolment.invite(site).secret, request)
        certificate = enrolment.approve(site, request.decode())
        node = len(enrolment.registry.roll.sites) + 1
        enrolment.registry.change(lambda roll: roll.with_entry(roll.entry(site).model_copy(update={"node": node})))
        file = self.home.path / f"{site}-{node}.pem"
        file.write_bytes(certificate.public_bytes(Encoding.PEM) + private_pem(key))
        return Badge(site, key, file)

    def node_of(self, site: str) -> int | None:
        """Return Flower's number for a site."""
        return self.enrolment.registry.roll.entry(site).node

    def context(self, badge: Badge | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.home.authority_certificate)
        if badge:
            context.load_cert_chain(badge.file)
        return context

    def client(self, badge: Badge | None = None, *, address: str = "127.0.0.1") -> httpx.Client:
        """Return who asks from an address of the loopback, with a site's certificate or without."""
        transport = httpx.HTTPTransport(verify=self.context(badge), local_address=address)
        return httpx.Client(transport=transport, base_url=self.url, timeout=10)

    async def link(self, scope, receive, send) -> None:
        """Answer as a SuperLink would, with what was asked backwards; an ASGI application."""
        parts, more = [], True
        while more:
            event = await receive()
            if event["type"] == "http.disconnect":
                return
            parts.append(event["body"])
            more = event["more_body"]
        body = b"".join(parts)
        self.passed.append({"path": scope["path"], "headers": dict(scope["headers"]), "body": body})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"x/flower")]})
        await send({"type": "http.response.body", "body": body[::-1]})

    def refusals(self) -> list[dict[str, object]]:
        """Return what the audit says of refusals."""
        lines = map(json.loads, (self.home.path / "audit.jsonl").read_text().splitlines())
        return [line for line in lines if line["event"] == "refused"]


@pytest.fixture
def coordinator(request, tmp_path) -> Iterator[Coordinator]:
    """A federation whose fence is up on the loopback, under another name if a test gives one (``indirect``)."""
    home, until = Home(tmp_path / "federation"), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as front, socket.create_server(("127.0.0.1", 0)) as behind:
        port = front.getsockname()[1]
        found(home, name="lungs", address=f"{getattr(request, 'param', '127.0.0.1')}:{port}", sites=[])
        place = Coordinator(home, port)
        link_url = f"https://127.0.0.1:{behind.getsockname()[1]}"

        async def tell(site, request):
            return PlainTextResponse(f"{site} asks for {request.url.path}")

        async def run() -> None:
            server = uvicorn.Server(door_to(place.link, server_context(home), lambda address, reason: None))
            linked = asyncio.create_task(server.serve(sockets=[behind]))
            await serve(home, link_url, {"/federation/models/{name}": tell}, front, until)
            server.should_exit = True
            await linked

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        wait_for_health(place)
        yield place
        until.set()
        thread.join()


def wait_for_health(place: Coordinator) -> None:
    deadline = time.monotonic() + 20
    with place.client() as client:
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                if client.get("/health").status_code == 200:
                    return
            time.sleep(0.05)
    raise TimeoutError("the fence is not up")
