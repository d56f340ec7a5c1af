"""What a round costs beyond training, over the network: this federation against Flower's own FedAvg on the same engine.

Three sites that do not train answer at once, with a model's worth of numbers that nothing can be spared of. Once they
are ours: fence, gate, SuperNode, relay and worker, with all that the coordinator checks, keeps, signs and releases;
once Flower's: its stock ServerApp, ClientApp and SuperNodes, with TLS and authenticated nodes, and no evaluation
(``idle_sites.py`` has both). The first round warms up; of the others the median counts.

    python tests/benchmarks/link_cost.py --megabytes 10 350 --lines tests/benchmarks/link_cost.jsonl
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median

import yaml
from idle_sites import FLOWER_APP
from safetensors.torch import save_file

from client.policy import DEFAULT
from fedgan.assembly import networks_for
from fedgan.config import load
from fedgan.federated.site import weights_of
from fedgan.identity import new_key, openssh_private, openssh_public
from fedgan.processes import flower_environment, free_port, process_group, tail_of, wait_until_open
from fedgan.settings import Deployment
from server.authority import Enrolment, found
from server.home import Home
from server.superlink import CONNECTION, Superlink

SITES = ("A", "B", "C")
WIDTHS = {10: 16, 350: 104}
"""Width of the networks of about so many megabytes."""

SETTINGS = ["model=taggan", "data.size=32", "data.diseases=[diffuse]", "select=last"]
SETTINGS += ["model.weights.cycle=1", "local_steps=1", "deadline_s=3600"]
SCANS = {"kind": "phantoms", "patients": 6, "images_per_patient": 1, "seed": 0}
ROUND_S = 3600.0


@dataclass(frozen=True, slots=True)
class Federation:
    """A federation that is up and training."""

    finished: Callable[[], int]
    """Returns how many rounds are finished."""
    coordinator: list[int]
    """Processes, without their children."""
    sites: list[int]


def settings_of(width: int, rounds: int, sites: Sequence[str] = SITES) -> list[str]:
    """Return a run's settings."""
    size = [f"model.width={width}", f"model.critic_width={width}", f"rounds={rounds}"]
    return [*SETTINGS, *size, f"quorum={len(sites)}"]


@contextmanager
def ours(folder: Path, width: int, rounds: int, sites: Sequence[str] = SITES) -> Iterator[Federation]:
    """Run this federation with sites that do not train."""
    script = str(Path(__file__).with_name("idle_sites.py"))
    words = settings_of(width, rounds, sites)
    with joined(folder, dict.fromkeys(sites, SCANS), words, lambda site, place: (script, site, str(place))) as running:
        yield running


@contextmanager
def joined(
    folder: Path,
    scans: Mapping[str, Mapping[str, object]],
    settings: Sequence[str],
    site_words: Callable[[str, Path], Sequence[str]],
) -> Iterator[Federation]:
    """Run this federation, by its own commands.

    Args:
        folder: of everything.
        scans: of each site, as its policy names them.
        settings: of the run.
        site_words: Python's words for a site that takes part, from its name and folder.
    """
    home = Home(folder / "federation")
    with ExitStack() as running:

        def keep(log: str, *words: str) -> subprocess.Popen[bytes]:
            command = [sys.executable, "-P", *words]
            return running.enter_context(process_group(command, flower_environment(folder), folder / f"{log}.log"))

        invited = found(home, name="cost", address=f"127.0.0.1:{free_port()}", sites=list(scans))
        up = keep("up", "-m", "server.cli", "up", "--home", str(home.path))
        wait_until_open(home.federation.port, up, folder / "up.log")
        taking_part = []
        for site, of_site in scans.items():
            place = folder / f"site-{site}"
            enrol = ["-m", "client.cli", "--site", site, "--home", str(place), "enrol"]
            enrolling = keep(f"enrol-{site}", *enrol, invited[site].encode())
            _approve(home, site, enrolling)
            policy = yaml.safe_load(DEFAULT) | {"scans": dict(of_site), "device": "cpu", "threads": 1}
            policy["models"]["width"] = max(WIDTHS.values())
            (place / "policy.yaml").write_text(yaml.safe_dump(policy))
            taking_part.append(keep(f"site-{site}", *site_words(site, place)).pid)
        run = keep("run", "-m", "server.cli", "run", "--home", str(home.path), *settings, "name=cost")
        history = home.path / "runs/cost/history.json"

        def finished() -> int:
            rounds = len(json.loads(history.read_text())) if history.exists() else 0
            if run.poll() is not None and not rounds:
                sys.exit(tail_of(folder / "run.log"))
            return rounds

        yield Federation(finished, [up.pid, run.pid], taking_part)


def _approve(home: Home, site: str, enrolling: subprocess.Popen[bytes]) -> None:
    """Approve a site as soon as it has asked, and wait until it is enrolled."""
    enrolment = Enrolment(home)
    while (request := enrolment.registry.roll.entry(site).request) is None and enrolling.poll() is None:
        time.sleep(0.2)
    enrolment.approve(site, request)
    if enrolling.wait():
        sys.exit(f"site {site} cannot be enrolled")
    while enrolment.registry.roll.entry(site).node is None:  # Flower is being told
        time.sleep(0.2)


@contextmanager
def flowers(folder: Path, width: int, rounds: int) -> Iterator[Federation]:
    """Run Flower's own federation, on the SuperLink that ours has."""
    home, ended = Home(folder / "federation"), threading.Event()
    found(home, name="cost", address=f"127.0.0.1:{free_port()}", sites=[])
    link = Superlink(home)
    link.prepare()
    with ExitStack() as running:
        pool = running.enter_context(ThreadPoolExecutor(2))
        running.callback(ended.set)
        pool.submit(link.run, ended)
        pool.submit(link.run_executor, ended)
        _wait_for(home.federation.link_port)
        nodes: list[int] = []
        for number, site in enumerate(SITES):
            key, private, public = new_key(), folder / site, folder / f"{site}.pub"
            private.write_bytes(openssh_private(key))
            public.write_bytes(openssh_public(key.public_key()))
            link.ask("supernode", "register", str(public), CONNECTION)
            command = [
                "flower-supernode",
                f"--superlink=127.0.0.1:{home.federation.link_port}",
                f"--root-certificates={home.authority_certificate}",
                f"--auth-supernode-private-key={private}",
                f"--node-config=partition-id={number} num-partitions={len(SITES)}",
                f"--port={free_port()}",
            ]
            env = flower_environment(home.folder(f"flower-{site}"))
            nodes.append(running.enter_context(process_group(command, env, folder / f"{site}.log")).pid)
        app, marks = folder / "app", folder / "marks.txt"
        app.mkdir()
        for name, text in FLOWER_APP.items():
            (app / name).write_text(text)
        weights = weights_of(networks_for(load("server", Deployment, settings_of(width, rounds))))
        save_file(dict(weights), folder / "model.safetensors")
        told = f"folder={json.dumps(str(folder))} rounds={rounds} sites={len(SITES)}"
        link.ask("run", str(app), CONNECTION, "--run-config", told)

        def finished() -> int:
            return len(marks.read_text().split()) - 1 if marks.exists() else 0

        yield Federation(finished, _processes(f"{home.path}/link/"), nodes)


ARMS = {"fedgan": ours, "flower": flowers}


def _wait_for(port: int) -> None:
    with subprocess.Popen(["sleep", "120"]) as patience:
        wait_until_open(port, patience, Path(os.devnull))
        patience.kill()


def _processes(word: str) -> list[int]:
    """Return the processes in whose command line ``word`` is."""
    return [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if word.encode() in _bytes(path)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


def _stats() -> dict[int, tuple[int, float]]:
    """Return each process's parent, and its processor seconds with those of the children that it has seen end."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        if fields := _bytes(path).rpartition(b")")[2].split():
            ticks = sum(map(int, fields[11:15]))
            found[int(path.parent.name)] = int(fields[1]), ticks / os.sysconf("SC_CLK_TCK")
    return found


def children(*roots: int) -> set[int]:
    """Return all that descends from ``roots``."""
    stats, found = _stats(), set(roots)
    while more := {pid for pid, (parent, _) in stats.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def processor_s(*roots: int) -> float:
    """Return the processor seconds of all that descends from ``roots``."""
    stats, family = _stats(), children(*roots)
    return sum(seconds for pid, (_, seconds) in stats.items() if pid in family)


def memory_mib(*roots: int) -> float:
    """Return the memory of ``roots`` and their descendants in MiB."""
    return sum(map(pss_mib, children(*roots)))


def pss_mib(pid: int) -> float:
    """Return the memory of a process in MiB, with its part of what it shares; 0 if it has ended."""
    rows = _bytes(Path(f"/proc/{pid}/smaps_rollup")).decode().splitlines()
    return sum(int(row.split()[1]) for row in rows if row.startswith("Pss:")) / 1024


def words_of(pid: int) -> list[str]:
    """Return the command line of a process; none if it has ended."""
    return _bytes(Path(f"/proc/{pid}/cmdline")).decode().split("\0")


@dataclass(frozen=True, slots=True)
class Line:
    """What one arm took; a line of the file."""

    arm: str
    megabytes: int
    commit: str
    wall_s: list[float]
    """Of each round."""
    processor_s: list[float]
    """Of each round, of all processes."""
    coordinator_mib: float
    """At most, of the coordinator's processes."""
    load: float
    """Of the machine when it ended, over five minutes."""
    machine: str
    date: str
    """UTC."""


def measure(arm: str, megabytes: int, rounds: int, commit: str) -> Line:
    """Run an arm."""
    with tempfile.TemporaryDirectory(prefix="link-cost-") as folder, ExitStack() as running:
        federation = running.enter_context(ARMS[arm](Path(folder), WIDTHS[megabytes], rounds))
        at, spent, peak = [], [], 0.0
        deadline = time.monotonic() + ROUND_S
        while len(at) < rounds:
            if time.monotonic() > deadline:
                sys.exit(f"{arm}: a round took more than {ROUND_S:.0f} s; see the logs")
            while len(at) < min(federation.finished(), rounds):
                at.append(time.monotonic())
                spent.append(processor_s(os.getpid()))
                print(f"{arm}, {megabytes} MB: round {len(at)}", file=sys.stderr, flush=True)
            peak = max(peak, memory_mib(*federation.coordinator))
            time.sleep(0.3)
    wall, processor = ([round(after - before, 2) for before, after in pairwise(of)] for of in (at, spent))
    date = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    return Line(arm, megabytes, commit, wall, processor, round(peak), os.getloadavg()[1], machine(), date)


def machine() -> str:
    """Return what is measured on: the cores that may be used, and the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, {memory:.0f} GiB"


def commit_here() -> str:
    """Return which commit is measured."""
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    """Measure what is not in the file yet, and print all of this commit's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", choices=WIDTHS, default=[10])
    parser.add_argument("--rounds", type=int, default=6, help="the first of which warms up")
    parser.add_argument("--lines", type=Path, default=Path("link_cost.jsonl"))
    arguments = parser.parse_args()
    commit = commit_here()
    for megabytes in arguments.megabytes:
        lines = [_line(arm, megabytes, commit, arguments) for arm in ARMS]
        for line in lines:
            spent = f"{median(line.wall_s):.1f} s, {median(line.processor_s):.1f} s of processor time a round"
            print(f"{line.arm}, {megabytes} MB: {spent}, {line.coordinator_mib:.0f} MiB at the coordinator", flush=True)
        wall, processor = (
            median(getattr(lines[0], name)) / median(getattr(lines[1], name)) for name in ("wall_s", "processor_s")
        )
        print(f"{megabytes} MB: ratio {wall:.2f} of wall time, {processor:.2f} of processor time", flush=True)


def _line(arm: str, megabytes: int, commit: str, arguments: argparse.Namespace) -> Line:
    """Return an arm's line, measured now if it is not in the file."""
    known = arguments.lines.read_text().splitlines() if arguments.lines.exists() else []
    for line in (Line(**json.loads(text)) for text in known):
        if (line.arm, line.megabytes, line.commit) == (arm, megabytes, commit):
            return line
    line = measure(arm, megabytes, arguments.rounds, commit)
    with arguments.lines.open("a") as file:
        file.write(json.dumps(asdict(line)) + "\n")
    return line


if __name__ == "__main__":
    main()
