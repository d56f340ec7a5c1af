"""What hospitals will see: processes die or stand still at any moment, and the run goes on from its last kept round.

``FEDGAN_KILLS`` says how many are killed, ``FEDGAN_STOPS`` how many are stopped, ``FEDGAN_SEED`` which and when.
"""

import json
import os
import random
import secrets
import signal
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedgan.audit import broken_links
from fedgan.processes import free_port, tail_of, wait_until_open
from fedgan.results.metrics import Round
from fedgan.run_folder import RunFolder
from server.current import CurrentRun
from server.demo import Stage, allow, enrol, has_last
from server.home import Home

KILLS = int(os.environ.get("FEDGAN_KILLS", "3"))
STOPS = int(os.environ.get("FEDGAN_STOPS", "2"))
SEED = int(os.environ.get("FEDGAN_SEED", secrets.randbelow(10**6)))

SITES = ("A", "B")

DEADLINE_S = 90
"""Seconds that sites have for a round, most of which a busy machine needs to start Flower's processes."""

LONGEST_PAUSE_S = 30.0
"""Between a kept round and the next outage, at most, and at most as long as two such rounds took."""

STOPPED_S = DEADLINE_S + 10
"""How long what is stopped stands still: longer than a round may last."""

STUCK_S = 600
"""Longest time to the next kept round: Flower takes a minute to see a loss, and another to take a site back."""

TINY = (
    "name=outages",
    "quorum=1",
    f"deadline_s={DEADLINE_S}",
    "local_steps=4",
    "precision=float32",
    "data.size=32",
    "data.diseases=[diffuse]",
    "model.width=4",
    "model.critic_width=4",
    "model.batch_size=2",
)

FORKED = "answers one task"
"""Stands for the command line of a process that a site's SuperExec forked, which is the same as the SuperExec's."""

AT_A_SITE = ("client.cli", "client.worker", "flower-supernode", "client.executor", FORKED, "")
AT_THE_COORDINATOR = ("server.cli up", "server.cli run", "server.engine", "flower-superexec", "flwr-serverapp", "")
"""What is killed, by a word of its command line; all at once, without one."""

SUPERLINK, SUPERNODE = "server.engine", "flower-supernode"
"""What is stopped, and goes on after a while."""


def processes_of(folder: Path, word: str = "") -> dict[int, str]:
    """Return the command lines of what runs for a folder and says ``word``, by process."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            line, env = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it is none, or has ended
            continue
        said = FORKED if is_fork(process, line) else line.replace(b"\0", b" ").decode(errors="replace")
        if line and f"{folder}".encode() in line + env and word in said and int(process.name) != os.getpid():
            found[int(process.name)] = said
    return found


def signalled(processes: Collection[int], number: signal.Signals) -> int:
    """Send a signal to processes, and return to how many."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)
    return len(processes)


def is_fork(process: Path, line: bytes) -> bool:
    """Return whether a process with this command line was forked by one with the same."""
    with suppress(OSError, IndexError):
        parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
        return b"client.executor" in line and (process.parent / parent / "cmdline").read_bytes() == line
    return False


class Outages:
    """A federation on this machine, of which somebody kills or stops parts, and starts again what a person would."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.stage = Stage(folder, print)
        self.folder = folder
        self.home = Home(folder / "federation")
        self.run = self.home.path / "runs/outages"
        self.running = running
        self.longest_s = DEADLINE_S + 60
        """Longest time that a round may take."""
        self.kept = {}
        self.started = {}
        self.commands = {"up": ("fed-server", "up", "--home", str(self.home.path))} | {
            f"site-{site}": ("fed-client", "--site", site, "--home", str(folder / f"site-{site}")) for site in SITES
        }

    def begin(self, rounds: int) -> None:
        self.stage.command("fed-server", "init", "--sites", ",".join(SITES), "--address", f"127.0.0.1:{free_port()}")
        self.start("up")
        for port in (self.home.federation.port, self.home.federation.link_port):
            wait_until_open(port, self.started["up"], self.folder / "up.log")
        enrol(self.stage, self.home, SITES)
        for site in SITES:
            allow(self.stage, site)
            self.start(f"site-{site}")
        follow = ("fed-server", "run", f"rounds={rounds}", *TINY, "--home", str(self.home.path))
        self.running.enter_context(self.stage.keep("run", *follow))
        # What is killed before is no run yet: its person has seen no line of it, and asks again.
        self.wait(lambda: CurrentRun(self.home).path is not None, "the run's beginning", STUCK_S)

    def start(self, name: str) -> None:
        self.started[name] = self.running.enter_context(self.stage.keep(name, *self.commands[name]))

    def kill(self, home: Path, word: str) -> int:
        """Kill what is to be killed, and return how many processes that were."""
        return signalled(processes_of(home, word), signal.SIGKILL)

    def stop(self, home: Path, word: str) -> int:
        """Let what is to be stopped stand still for a while, and return how many processes that were."""
        doomed = processes_of(home, word)
        if word == SUPERLINK and doomed:
            self.longest_s = DEADLINE_S + STOPPED_S + 60  # without it no round ends
        try:
            if number := signalled(doomed, signal.SIGSTOP):
                time.sleep(STOPPED_S)
        finally:
            signalled(doomed, signal.SIGCONT)
        return number

    def start_again(self) -> None:
        """Start again what a person must, and nothing else may have ended."""
        for name, process in self.started.items():
            if process.poll() is not None:
                assert process.returncode == -signal.SIGKILL, tail_of(self.folder / f"{name}.log")
                self.start(name)

    def look(self) -> int:
        """Return how many rounds are kept, of which none has changed or gone."""
        self.start_again()
        found = {entry.round: what_stays(entry) for entry in RunFolder(self.run, {}).history}
        assert self.kept.items() <= found.items()
        self.kept = found
        return len(found)

    def is_over(self) -> bool:
        return CurrentRun(self.home).path is None

    def wait_for_round(self, other: Callable[[], bool] = lambda: False) -> int:
        """Wait for the next kept round, the run's end or something ``other``; return how many were kept before."""
        kept = self.look()
        self.wait(lambda: other() or self.look() > kept or self.is_over(), f"round {kept + 1}", STUCK_S)
        return kept

    def last_seconds(self) -> float:
        """Return how long the last kept round took."""
        return RunFolder(self.run, {}).history[-1].seconds

    def wait(self, there: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.2)


Breaking = Callable[[Outages, Path, str], int]
"""Breaks what says a word at a home, and returns how many processes that were."""

MAY_BREAK = {Outages.kill: (AT_A_SITE, AT_THE_COORDINATOR), Outages.stop: ((SUPERNODE,), (SUPERLINK,))}
"""Words of what may break at a site, and at the coordinator."""

ROUNDS_EACH = {Outages.kill: 5, Outages.stop: 40}
"""For each outage so many that the run is hardly over before its last; others go on while a site stands still."""


def what_stays(entry: Round) -> tuple[object, ...]:
    return entry.round, entry.seconds, entry.trained, tuple(sorted(entry.failed.items()))


@pytest.mark.slow
def test_whatever_is_killed_the_run_goes_on_to_its_end_and_nothing_kept_is_lost(tmp_path):
    print(f"FEDGAN_SEED={SEED} FEDGAN_KILLS={KILLS}")  # noqa: T201  to play it again
    play(tmp_path / "played", Outages.kill, KILLS)


@pytest.mark.slow
def test_whatever_stands_still_for_longer_than_a_round_the_run_goes_on_to_its_end_and_nothing_kept_is_lost(tmp_path):
    print(f"FEDGAN_SEED={SEED} FEDGAN_STOPS={STOPS}")  # noqa: T201  to play it again
    play(tmp_path / "played", Outages.stop, STOPS)


def play(folder: Path, breaking: Breaking, times: int) -> None:
    """Let a federation run in which something breaks so many times, and look whether all is there at its end."""
    chance = random.Random(SEED)  # noqa: S311  what breaks is no secret
    rounds = 1 + ROUNDS_EACH[breaking] * times
    with ExitStack() as running:
        federation = Outages(folder, running)
        federation.begin(rounds)
        for _ in range(times):
            break_something(federation, chance, breaking)
        while not federation.is_over():
            federation.wait_for_round()
        federation.wait(
            lambda: federation.look() > 0 and all(has_last(federation.home, folder / f"site-{site}") for site in SITES),
            "the release",
            STUCK_S,
        )

    assert_whole(federation, rounds)
    federation.wait(lambda: not processes_of(folder), "the end of all processes", 30)


def break_something(federation: Outages, chance: random.Random, breaking: Breaking) -> None:
    """Kill or stop something that is there at a random moment of the next rounds; some of it comes and goes."""
    at_a_site, at_the_coordinator = MAY_BREAK[breaking]
    places = [(federation.folder / f"site-{site}", word) for site in SITES for word in at_a_site]
    places += [(federation.home.path, word) for word in at_the_coordinator] * len(SITES)
    longest = LONGEST_PAUSE_S
    if federation.look():
        federation.wait_for_round()
        longest = min(longest, 2 * federation.last_seconds())
    time.sleep(chance.uniform(0, longest))
    while True:
        home, word = chance.choice(places)
        kept = federation.wait_for_round(lambda home=home, word=word: bool(processes_of(home, word)))
        print(f"{time.strftime('%H:%M:%S')} {kept} kept; {breaking.__name__} at {home.name}: {word or 'everything'}")  # noqa: T201
        if breaking(federation, home, word):
            return


def assert_whole(federation: Outages, rounds: int) -> None:
    history = RunFolder(federation.run, {}).history
    assert [entry.round for entry in history] == list(range(1, rounds + 1))
    assert max(entry.seconds for entry in history) < federation.longest_s
    events = [json.loads(line) for line in (federation.run / "audit.jsonl").read_text().splitlines()]
    told = [event["round"] for event in events if event["event"] == "round kept"]
    assert told == sorted(set(told))
    assert [event["event"] for event in events].count("run concluded") == 1
    assert [broken_links(path) for path in federation.folder.rglob("audit.jsonl")] == [[]] * (len(SITES) + 2)
