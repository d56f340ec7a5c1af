"""Sites' folders with a policy of tiny phantoms, and the terms of a run that they can answer in a second."""

import asyncio
import json
import ssl
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import uvicorn
import yaml
from cryptography.hazmat.primitives.serialization import Encoding

from client.home import Home
from client.policy import DEFAULT
from fedgan.identity import (
    Authority,
    new_key,
    openssh_private,
    openssh_public,
    private_pem,
    request_signature,
)
from fedgan.settings import Terms
from server.home import certificate_pem

PHANTOMS = {"kind": "phantoms", "patients": 16, "images_per_patient": 1, "seed": 0}


@pytest.fixture
def site_home(tmp_path):
    """Return a function that makes a site's folder, with what it is given changed in the default policy."""

    def made(name: str = "A", **changes: object) -> Path:
        home = tmp_path / f"site-{name}"
        home.mkdir(mode=0o700, exist_ok=True)
        policy = {**yaml.safe_load(DEFAULT), "scans": PHANTOMS, "device": "cpu", "threads": 1, **changes}
        (home / "policy.yaml").write_text(yaml.safe_dump(policy))
        return home

    return made


@pytest.fixture
def terms(tiny):
    """Return a function that gives the terms of a tiny run with overrides."""

    def made(*overrides: str) -> Terms:
        settings = tiny(*overrides).model_dump()
        known = {name: settings[name] for name in Terms.model_fields}
        scans = settings["data"]
        known["data"] = {"size": scans["size"], "diseases": scans["diseases"], "intensity": "range"}
        return Terms.model_validate({**known, "name": "tiny"})

    return made


@dataclass(frozen=True)
class Federation:
    """A federation's authority, and the files of a server that it has signed."""

    authority: Authority
    folder: Path

    @property
    def files(self) -> dict[str, str]:
        """Return the paths of the authority's certificate, and the server's certificate and key."""
        return {name: str(self.folder / name) for name in ("ca.crt", "server.crt", "server.key")}

    def enrol(self, folder: Path, site: str, address: str) -> Home:
        """Leave in a site's folder what enrolment leaves."""
        key, keys = new_key(), folder / "keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        certificate = self.authority.sign_site(request_signature(key, site), site)
        (keys / "site.key").write_bytes(private_pem(key))
        (keys / "site.ssh").write_bytes(openssh_private(key))
        (keys / "site.pub").write_bytes(openssh_public(key.public_key()))
        (keys / "site.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
        (keys / "ca.crt").write_bytes(self.authority.certificate.public_bytes(Encoding.PEM))
        (folder / "site.json").write_text(json.dumps({"site": site, "federation": "test", "address": address}))
        return Home(site, folder)


@pytest.fixture
def federation(tmp_path):
    """Found a federation whose server is this machine."""
    authority, key, folder = Authority.found("test"), new_key(), tmp_path / "authority"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    certificate = authority.sign_server(key.public_key(), ["localhost"])
    (folder / "server.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "server.key").write_bytes(private_pem(key))
    return Federation(authority, folder)


@pytest.fixture
def served(federation):
    """Return a function that serves an application to those with a certificate of the federation, and its port."""

    @contextmanager
    def serving(app):
        files = federation.files
        config = uvicorn.Config(
            app,
            port=0,
            ssl_certfile=files["server.crt"],
            ssl_keyfile=files["server.key"],
            ssl_ca_certs=files["ca.crt"],
            ssl_cert_reqs=ssl.CERT_REQUIRED,
            lifespan="off",
            ws="none",
            log_config=None,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        try:
            yield server.servers[0].sockets[0].getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()

    with ExitStack() as servers:
        yield lambda app: servers.enter_context(serving(app))


async def pipe(reader, writer):
    with suppress(ConnectionError):
        while part := await reader.read(65536):
            writer.write(part)
            await writer.drain()
    writer.close()


async def shut(writer):
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@contextmanager
def behind_proxy(folder, to_port):
    """Serve an HTTPS proxy of a hospital's own authority; give its port, that authority's file, and what was asked."""
    authority, key, asked = Authority.found("hospital"), new_key(), []
    pem = private_pem(key) + certificate_pem(authority.sign_server(key.public_key(), ["localhost"]))
    (folder / "proxy.pem").write_bytes(pem)
    (folder / "proxy-ca.crt").write_bytes(certificate_pem(authority.certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "proxy.pem")

    async def connect(reader, writer):
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0].decode())
        inner, outer = await asyncio.open_connection("127.0.0.1", to_port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            await asyncio.gather(pipe(reader, outer), pipe(inner, writer))
        finally:
            await asyncio.gather(shut(outer), shut(writer))

    async def run():
        async with await asyncio.start_server(connect, "127.0.0.1", 0, ssl=context) as server:
            started.put(server.sockets[0].getsockname()[1])
            await asyncio.to_thread(ended.wait)

    started, ended = SimpleQueue(), threading.Event()
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    yield started.get(timeout=10), folder / "proxy-ca.crt", asked
    ended.set()
    thread.join()


@pytest.fixture
def corporate_proxy(tmp_path):
    """Return a function that serves a hospital's proxy, which leads to one port whoever is asked for."""
    return partial(behind_proxy, tmp_path)
