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
from fedgan.processes import flower_environment, free_port, wait_until_open
from fedgan.records import GlobalModel, RoundTask
from fedgan.settings import Terms

START_S = 240.0

PHANTOMS = {"kind": "phantoms", "patients": 16, "images_per_patient": 1, "seed": 0}
POLICY = {"scans": PHANTOMS, "device": "cpu", "threads": 1}

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


def run(*words: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", *words], **options)


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


def happened(home: Path, event: str, times: int = 1) -> bool:
    return sum(line["event"] == event for line in audited(home)) >= times


def processes_of(home: Path) -> dict[int, str]:
    """Return the command lines of all that runs for a home, by process, even of what only its environment tells."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            line, env = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended
            continue
        if line and str(home).encode() in line + env:
            found[int(folder.name)] = line.replace(b"\0", b" ").decode(errors="replace")
    return found


def process_of(home: Path, word: str) -> int | None:
    return next((number for number, line in processes_of(home).items() if word in line), None)


def memory_mib(home: Path) -> float:
    """Return the memory of all processes of a home in MiB, each with its share of what it shares."""
    kib = 0
    for number in processes_of(home):
        rows = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        kib += next(int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return kib / 1024


@pytest.fixture
def coordinator(tmp_path):
    """Keep a federation of two invited sites up, and end it."""
    home, port = tmp_path / "federation", free_port()
    done("server.cli", "init", "--home", str(home), "--sites", "A,B", "--address", f"127.0.0.1:{port}")
    up = run("server.cli", "up", "--home", str(home))
    wait_until_open(port, up, home / "audit.jsonl")
    yield home
    up.terminate()
    up.wait(60)


@pytest.fixture
def join(coordinator, tmp_path):
    """Enrol sites, and start those that have a policy."""
    running = []

    def started(site: str, policy: dict[str, object] = POLICY) -> tuple[Path, subprocess.Popen[bytes]]:
        home = tmp_path / f"site-{site}"
        invitation = coordinator / "invitations" / f"{site}.txt"
        enrolling = run("client.cli", "--site", site, "--home", str(home), "enrol", str(invitation))
        wait_for(lambda: f"{site} " in waiting(coordinator), f"{site} asking")
        done("server.cli", "approve", site, "--yes", "--home", str(coordinator))
        assert enrolling.wait(120) == 0
        (home / "policy.yaml").write_text(yaml.safe_dump({**yaml.safe_load(DEFAULT), **policy}))
        with (home / "said.txt").open("w") as said:
            process = run("client.cli", "--site", site, "--home", str(home), stdout=said, stderr=said)
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
def test_a_site_whose_parts_died_answers_rounds_and_one_with_other_code_approved_does_not(
    coordinator, join, tiny_terms, tmp_path
):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "terms.yaml").write_text(dump(tiny_terms))
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, text in {**FILES, "server_app.py": SERVER_APP}.items():
        (bundle / name).write_text(text)
    digest = digest_of_bundle(bundle)
    approving, joined = join("A", {**POLICY, "bundles": [digest]})
    refusing, _ = join("B", POLICY)
    for home in (approving, refusing):
        wait_for(lambda home=home: happened(home, "joined"), f"{home.name} joining")
    print(f"memory of an idle site: {memory_mib(approving):.0f} MiB")  # noqa: T201  a figure for the record

    die_and_come_back(approving)
    env = flower_environment(coordinator / "link")
    ask_flower(env, "run", str(bundle), "federation", "--run-config", f'run="{folder}"')
    wait_for((folder / "said.json").exists, "the run", 400)

    said = json.loads((folder / "said.json").read_text())
    assert sorted(map(tuple, said)) == [("FlowerError", 0), ("FlowerError", 1), ("update", 0), ("update", 1)]
    assert "BundleRefused" in {event.get("reason") for event in audited(refusing)}
    assert not happened(refusing, "task")
    assert_same_as_simulated(tiny_terms, folder)
    assert "left to Flower's own program" not in (approving / "logs/superexec.log").read_text()

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


def die_and_come_back(home: Path) -> None:
    """Kill a site's worker and SuperNode, and wait until there are others."""
    wait_for(lambda: process_of(home, "client.worker") is not None, "the worker")
    first = {word: process_of(home, word) for word in ("client.worker", "flower-supernode")}
    for number in first.values():
        os.kill(number, signal.SIGKILL)
    wait_for(lambda: happened(home, "joined", 2), "joining again")  # Flower refuses the key for a minute
    wait_for(lambda: process_of(home, "client.worker") not in (None, first["client.worker"]), "a new worker")


@pytest.mark.slow
def test_a_site_that_is_revoked_stops_and_says_why(coordinator, join):
    home, process = join("A")
    wait_for(lambda: happened(home, "joined"), "joining")

    done("server.cli", "revoke", "A", "--home", str(coordinator))

    assert process.wait(120) == 1
    assert "does not let this site in" in (home / "said.txt").read_text()
    assert processes_of(home) == {}


@pytest.mark.slow
def test_a_site_that_is_told_to_stop_leaves_nothing_behind(join):
    home, process = join("A")
    wait_for(lambda: happened(home, "joined"), "joining")

    process.send_signal(signal.SIGINT)

    assert process.wait(60) == 0
    assert processes_of(home) == {}
    assert [event["event"] for event in audited(home)] == ["enrolled", "joined", "left"]
