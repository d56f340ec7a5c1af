"""A private federation that is killed again and again: each time its ledgers show all that was spent, and hardly more.

``FEDGAN_KILLS`` says how often it is killed, ``FEDGAN_SEED`` when.
"""

import json
import os
import random
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedgan.config import read
from fedgan.privacy.build import simulated_ledger
from fedgan.privacy.ledger import Ledger
from fedgan.processes import process_group, tail_of
from fedgan.run_folder import RunFolder
from fedgan.settings import Simulation

KILLS = int(os.environ.get("FEDGAN_KILLS", "3"))
SEED = int(os.environ.get("FEDGAN_SEED", secrets.randbelow(10**6)))

SITES = ("A", "B")

WAIT_S = 120.0
"""For a few lines, and for what must be started before the first, on a busy machine."""

MOST_LINES = 12
"""That ledgers may be given until the next kill, all sites' together: three rounds."""

SETTINGS = (
    "experiment=tiny",
    "name=killed",
    f"data.sites=[{','.join(SITES)}]",
    "rounds=500",
    "threads=1",
    "privacy=patient",
    "privacy.cohort=12",
    "privacy.patients=12",
    "privacy.delta=0.005",
    "privacy.ceiling=100",
)


class Federation:
    """A simulated federation in a process group of its own, and what its kills leave on disk."""

    def __init__(self, runs: Path) -> None:
        self.runs, self.run = runs, runs / "killed"

    def train_and_die(self, lines: int, share: float) -> None:
        """Begin the run or go on with it, and kill it after so many lines of ledgers and a ``share`` of the next."""
        told = ["--resume", str(self.run)] if self.run.exists() else [*SETTINGS, f"runs={self.runs}"]
        before = self.lines()
        command, log = [sys.executable, "-m", "fedgan.cli", *told], self.runs / "said.txt"
        with process_group(command, dict(os.environ), log) as process:
            self.wait_for(before + 1, process)
            began = time.monotonic()
            self.wait_for(before + lines, process)
            time.sleep(share * (time.monotonic() - began) / lines)
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL

    def wait_for(self, lines: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + WAIT_S
        while self.lines() < lines:
            assert process.poll() is None, tail_of(self.runs / "said.txt")
            assert time.monotonic() < deadline
            time.sleep(0.001)

    def lines(self) -> int:
        """Return how many lines all ledgers have, by their anchors."""
        return sum(json.loads(path.read_bytes())[0] for path in self.run.glob("sites/*/ledger.anchor"))

    def kept(self) -> RunFolder:
        return RunFolder(self.run, {})

    def ledgers(self) -> dict[str, Ledger]:
        privacy = read(self.run / "config.yaml", Simulation).privacy
        folder = self.kept()
        return {site: simulated_ledger(privacy, site=site, folder=folder.memory_of(site)) for site in SITES}


def rounds_charged(ledger: Ledger) -> list[int]:
    """Return the number (from 0) of the round that each charge was for."""
    return [line.round for line in ledger.lines() if line.settles is None]


@pytest.mark.slow
def test_a_ledger_never_shows_less_than_was_spent_and_at_most_a_round_more_for_each_kill(tmp_path):
    print(f"FEDGAN_SEED={SEED} FEDGAN_KILLS={KILLS}")  # noqa: T201  to play it again
    chance = random.Random(SEED)  # noqa: S311  when to kill is no secret
    federation, spent = Federation(tmp_path), dict.fromkeys(SITES, 0.0)

    for kills in range(1, KILLS + 1):
        federation.train_and_die(chance.randint(1, MOST_LINES), chance.random())

        history, ledgers = federation.kept().history, federation.ledgers()
        charged = {site: rounds_charged(ledger) for site, ledger in ledgers.items()}
        for site, ledger in ledgers.items():
            said = [entry.privacy[site]["epsilon"] for entry in history]
            assert set(charged[site]) >= set(range(len(history)))
            assert len(history) <= len(charged[site]) <= len(history) + kills
            assert max([spent[site], *said]) <= ledger.spent()
            spent[site] = ledger.spent()
        print(f"{kills} kill(s), {len(history)} rounds kept, charged {[len(charged[site]) for site in SITES]}")  # noqa: T201
