"""A site joins a real federation on this machine: fence, SuperLink, gate, SuperNode, relay and worker, over TLS.

The coordinator's part is a ServerApp of this test's own, so that its bundle is one that a policy does not approve by
itself: one site approves it by its SHA-256, the other does not.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from client.policy import DEFAULT
from fedgan.assembly import build_site, networks_for
from fedgan.bundle import FILES, digest_of_bundle
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import dump
from fedgan.federated.site import weights_of
from fedgan.flower import ask_flower
from fedgan.processes import flower_environment, free_port
from fedgan.records import GlobalModel, RoundTask
from fedgan.settings import Terms

START_S = 240.0

SERVER_APP = """
import json, os, time
from pathlib import Path
from flwr.serverapp import ServerApp
from safetensors.torch import save_file
from fedgan.assembly import networks_for
from fedgan.config import read
from fedgan.federated.site import weights_of
from fedgan.federated.spool import Spool
from fedgan.records import GlobalModel, RoundTask, SiteUpdate
from fedgan.settings import Terms
from server.federation import FlowerFederation

app = ServerApp()


@app.main()
def main(grid, context):
    folder = Path(str(context.run_config["run"]))
    text = (folder / "terms.yaml").read_text()
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    nodes = {node: str(node) for node in grid.get_node_ids()}
    federation = FlowerFederation(grid, nodes, 300.0, Spool(folder / "spool"))
    model = GlobalModel(0, weights_of(networks_for(read(text, Terms))))
    said = []
    for number in range(2):
        for answer in federation.ask(RoundTask(GlobalModel(number, model.weights), 2, text)):
            if isinstance(answer, SiteUpdate):
                save_file(dict(answer.delta), folder / f"delta-{number}.safetensors")
                said.append(["update", number])
            else:
                said.append([answer.reason, number])
    partial = folder / "said.partial"
    partial.write_text(json.dumps(said))
    partial.replace(folder / "said.json")
"""


def run(*words: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", *words], env={**os.environ, **env})


def done(*words: str) -> str:
    return subprocess.run([sys.executable, "-m", *words], check=True, capture_output=True, text=True).stdout


def wait_for(condition: Callable[[], bool], what: str, seconds: float = START_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.2)


def audited(home: Path) -> list[dict[str, object]]:
    path = home / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def happened(home: Path, event: str) -> bool:
    return any(line["event"] == event for line in audited(home))


def processes_of(home: Path) -> list[str]:
    """Return the command lines of everything that runs for a home."""
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(home) in line:
                lines.append(line)
    return lines


def pss_mib(home: Path) -> dict[str, float]:
    """Return the memory of each process of a home, its share of what is shared, in MiB."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            line = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            env = (folder / "environ").read_bytes() if line else b""
            if str(home).encode() in b" ".join(line) + env:
                rollup = (folder / "smaps_rollup").read_text()
                kib = next(int(row.split()[1]) for row in rollup.splitlines() if row.startswith("Pss:"))
                found[" ".join(part.decode() for part in line[:4])[-60:] + f" {folder.name}"] = kib / 1024
        except (OSError, StopIteration):
            continue
    return found


@pytest.fixture
def coordinator(tmp_path):
    """Keep a federation of two invited sites up, and end it."""
    home, port = tmp_path / "federation", free_port()
    done("server.cli", "init", "--home", str(home), "--sites", "A,B", "--address", f"127.0.0.1:{port}")
    up = run("server.cli", "up", "--home", str(home))
    yield home
    up.terminate()
    up.wait(60)


@pytest.fixture
def join(coordinator, tmp_path):
    """Enrol sites, and start those that have a policy."""
    running = []

    def started(site: str, policy: dict[str, object]) -> tuple[Path, subprocess.Popen[bytes]]:
        home = tmp_path / f"site-{site}"
        invitation = coordinator / "invitations" / f"{site}.txt"
        enrolling = run("client.cli", "--site", site, "--home", str(home), "enrol", str(invitation))
        wait_for(lambda: f"{site} " in waiting(coordinator), f"{site} asking")
        done("server.cli", "approve", site, "--yes", "--home", str(coordinator))
        assert enrolling.wait(120) == 0
        (home / "policy.yaml").write_text(yaml.safe_dump({**yaml.safe_load(DEFAULT), **policy}))
        process = run("client.cli", "--site", site, "--home", str(home))
        running.append(process)
        return home, process

    yield started
    for process in running:
        process.terminate()
        process.wait(60)


def waiting(coordinator: Path) -> str:
    """Return the lines of sites that wait for approval."""
    listed = done("server.cli", "list", "--home", str(coordinator)).replace("│", " ").splitlines()
    return " ".join(" ".join(line.split()) + " " for line in listed if "waiting" in line)


@pytest.fixture
def tiny_terms(tiny):
    settings = tiny("aggregation.moments=both").model_dump()
    known = {name: settings[name] for name in Terms.model_fields if name != "data"}
    scans = {"size": 32, "diseases": settings["data"]["diseases"], "intensity": "range"}
    return Terms.model_validate({**known, "data": scans, "name": "tiny"})


@pytest.mark.slow
def test_a_site_answers_rounds_and_one_that_has_not_approved_the_code_does_not(coordinator, join, tiny_terms, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "terms.yaml").write_text(dump(tiny_terms))
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, text in {**FILES, "server_app.py": SERVER_APP}.items():
        (bundle / name).write_text(text)
    digest = digest_of_bundle(bundle)
    phantoms = {"kind": "phantoms", "patients": 16, "images_per_patient": 1, "seed": 0}
    policy = {"scans": phantoms, "device": "cpu", "threads": 1}
    approving, joined = join("A", {**policy, "bundles": [digest]})
    refusing, _ = join("B", policy)
    for home in (approving, refusing):
        wait_for(lambda home=home: happened(home, "joined"), f"{home.name} joining")
    idle = pss_mib(approving)
    print("idle site, MiB:", json.dumps(idle, indent=1), "sum", sum(idle.values()))  # noqa: T201

    env = flower_environment(coordinator / "link")
    ask_flower(env, "run", str(bundle), "federation", "--run-config", f'run="{folder}"')
    wait_for((folder / "said.json").exists, "the run", 400)

    said = json.loads((folder / "said.json").read_text())
    assert sorted(map(tuple, said)) == [("FlowerError", 0), ("FlowerError", 1), ("update", 0), ("update", 1)]
    assert "BundleRefused" in {event.get("reason") for event in audited(refusing)}
    assert not happened(refusing, "task")
    assert_same_as_simulated(tiny_terms, folder)

    joined.send_signal(signal.SIGKILL)
    joined.wait()
    wait_for(lambda: not processes_of(approving), "the end of a killed site's processes", 30)


def assert_same_as_simulated(terms: Terms, folder: Path) -> None:
    """Compare what came over the network with what a simulated site answers, bit for bit."""
    cohort = phantom_cohort("A", patients=16, images_per_patient=1, size=32, diseases=terms.data.diseases, seed=0)
    networks = networks_for(terms)
    before = weights_of(networks)
    site = build_site(terms, "A", cohort, networks, memory=folder / "memory")
    for number in range(2):
        expected = site.answer(RoundTask(GlobalModel(number, before), 2)).delta
        came = load_file(folder / f"delta-{number}.safetensors")
        assert all(torch.equal(came[name], tensor) for name, tensor in expected.items())
