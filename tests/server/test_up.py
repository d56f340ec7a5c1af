"""The whole link: fed-server up with Flower's own SuperLink behind, and Flower's own SuperNode before it."""

import json
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from client.home import Home as Site
from fedgan.identity import Authority, new_key, private_pem
from fedgan.processes import flower_environment, free_port, process_group
from server.authority import Enrolment
from server.home import Home, certificate_pem
from server.presence import PRESENCE, activations

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0

# As a site's gate, but for what it would refuse: whatever comes goes to the coordinator with the site's certificate.
GATE = """\
import ssl, sys
import uvicorn
from fedgan.forward import forward, streaming_client

keys, coordinator, port = sys.argv[1:]
context = ssl.create_default_context(cafile=f"{keys}/ca.crt")
context.load_cert_chain(f"{keys}/site.crt", f"{keys}/site.key")
client = streaming_client(context)

async def gate(scope, receive, send):
    await forward(scope, receive, send, client, f"https://{coordinator}{scope['path']}", most_bytes=2**25)

tls = {"ssl_keyfile": f"{keys}/gate.key", "ssl_certfile": f"{keys}/gate.crt"}
uvicorn.run(gate, port=int(port), loop="asyncio", lifespan="off", **tls)
"""


def command(module, *words):
    return [sys.executable, "-m", module, *map(str, words)]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(module, *words):
    return subprocess.run(command(module, *words), env=environment(), capture_output=True, text=True, check=True).stdout


def wait_until(holds, *, timeout_s=TIMEOUT_S):
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.1)
    return holds()


def children(pid):
    """Return all processes below one, by their numbers."""
    found, ahead = [], [pid]
    while ahead:
        for task in Path(f"/proc/{ahead.pop()}/task").glob("*/children"):
            below = [int(number) for number in task.read_text().split()]
            found += below
            ahead += below
    return found


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def start(home, log):
    with log.open("ab") as file:
        return subprocess.Popen(command("server.cli", "up", "--home", home), env=environment(), stderr=file)


@pytest.fixture
def federation(tmp_path):
    """A federation with one site invited, and a function that starts it; what was started is ended."""
    address, started = f"127.0.0.1:{free_port()}", []
    home = Home(tmp_path / "federation")
    run("server.cli", "init", "--home", home.path, "--sites", "A", "--address", address)

    def up():
        log = tmp_path / "up.log"
        process = start(home.path, log)
        started.append(process)
        count = len(started)
        assert wait_until(lambda: log.read_text().count("SuperLink is up") >= count or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        return process

    yield home, up
    for process in started:
        process.kill()
        process.wait()


def enrol(home, folder):
    """Enrol site A as people do: at the site, then at the coordinator."""
    invitation = home.path / "invitations/A.txt"
    enrolling = subprocess.Popen(
        command("client.cli", "--site", "A", "--home", folder, "enrol", invitation),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert wait_until(lambda: Enrolment(home).registry.roll.entry("A").request)
    run("server.cli", "approve", "A", "--yes", "--home", home.path)
    assert enrolling.wait(timeout=TIMEOUT_S) == 0
    enrolling.stdout.close()
    return Site("A", folder)


@pytest.mark.slow
def test_a_site_is_enrolled_its_supernode_comes_in_and_revoked_it_is_out(federation, tmp_path):
    home, up = federation
    coordinator = up()
    site = enrol(home, tmp_path / "site-A")
    assert wait_until(lambda: Enrolment(home).registry.roll.entry("A").node)
    port = free_port()
    authority, key = Authority.found("gate"), new_key()
    (site.folder / "keys/gate.key").write_bytes(private_pem(key))
    (site.folder / "keys/gate.crt").write_bytes(certificate_pem(authority.sign_server(key.public_key(), ["localhost"])))
    (tmp_path / "gate-ca.crt").write_bytes(certificate_pem(authority.certificate))
    gate = [sys.executable, "-c", GATE, str(site.folder / "keys"), home.federation.address, str(port)]
    node = [
        "flower-supernode",
        "--superlink",
        f"127.0.0.1:{port}",
        "--root-certificates",
        str(tmp_path / "gate-ca.crt"),
    ]
    node += ["--auth-supernode-private-key", str(site.flower_key), "--port", str(free_port())]
    env = flower_environment(site.folder)

    with process_group(gate, env, tmp_path / "gate.log"), process_group(node, env, tmp_path / "node.log") as supernode:
        assert wait_until(lambda: "A" in activations(home.path / PRESENCE)), (tmp_path / "node.log").read_text()
        run("server.cli", "revoke", "A", "--home", home.path)
        assert wait_until(lambda: supernode.poll() is not None)

    assert wait_until(lambda: not Enrolment(home).registry.roll.retired)
    events = [json.loads(line) for line in (home.path / "audit.jsonl").read_text().splitlines()]
    refused = [event for event in events if event["event"] == "refused"]
    assert refused[-1]["reason"] == "no certificate of an approved site"
    coordinator.send_signal(signal.SIGTERM)
    assert coordinator.wait(timeout=TIMEOUT_S) == 0


@pytest.mark.slow
def test_killed_it_leaves_no_process_and_comes_up_again_with_its_sites(federation, tmp_path):
    home, up = federation
    coordinator = up()
    site = enrol(home, tmp_path / "site-A")
    assert wait_until(lambda: Enrolment(home).registry.roll.entry("A").node)
    registry, below = Enrolment(home).registry, children(coordinator.pid)
    node = registry.roll.entry("A").node
    assert len(below) >= 4
    # As if it had been killed after Flower had registered the key, and before that was written down.
    registry.change(lambda roll: roll.with_entry(roll.entry("A").model_copy(update={"node": None})))

    coordinator.kill()
    coordinator.wait()

    assert wait_until(lambda: not any(map(is_alive, below)))
    up()
    context = ssl.create_default_context(cafile=site.authority)
    context.load_cert_chain(site.certificate, site.key)
    said = httpx.get(f"https://{home.federation.address}/federation/hello", verify=context).json()
    assert said["site"] == "A"
    assert wait_until(lambda: registry.roll.entry("A").node == node)


@pytest.mark.slow
def test_a_superlink_that_dies_is_started_again_and_a_second_up_is_refused(federation, tmp_path):
    home, up = federation
    coordinator = up()
    (superlink,) = [
        pid for pid in children(coordinator.pid) if b"server.engine" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]

    second = subprocess.run(
        command("server.cli", "up", "--home", home.path), env=environment(), capture_output=True, text=True, check=False
    )
    os.kill(superlink, signal.SIGKILL)

    assert second.returncode == 1
    assert "is up already" in second.stderr
    assert wait_until(lambda: (tmp_path / "up.log").read_text().count("SuperLink is up") == 2)
    coordinator.send_signal(signal.SIGINT)
    assert coordinator.wait(timeout=TIMEOUT_S) == 0


@pytest.mark.slow
def test_without_the_superlinks_database_it_comes_up_and_registers_its_sites_anew(federation, tmp_path):
    home, up = federation
    first = up()
    enrol(home, tmp_path / "site-A")
    registry = Enrolment(home).registry
    assert wait_until(lambda: registry.roll.entry("A").node)
    before = registry.roll.entry("A").node
    first.terminate()
    assert first.wait(timeout=TIMEOUT_S) == 0
    for file in home.folder("link").glob("state.db*"):
        file.unlink()

    up()

    assert wait_until(lambda: registry.roll.entry("A").node not in (None, before))
