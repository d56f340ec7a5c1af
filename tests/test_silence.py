"""A link that drops all packets and never breaks: the round ends without its site, which later takes part again."""

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from fedgan.processes import free_port, tail_of, wait_until_open
from fedgan.results.metrics import Round
from fedgan.run_folder import RunFolder
from server.demo import Stage, allow, enrol
from server.home import Home

DEADLINE_S = 45
"""Seconds that sites have for a round: fewer than the minute after which Flower takes a silent site for gone."""

SILENT_S = 80
"""Longer than all that waits for a silent site: the deadline, Flower's minute, and that of gate and fence."""

BACK_S = 240
"""Within so many seconds a site has taken part again, or for the first time, even on a busy machine."""

HALF_WAY = 20_000
"""Bytes: more than what sites say between tasks takes, less than a task or an answer."""

RUN = (
    "name=silence",
    "rounds=1000",  # until the test has seen enough
    "quorum=1",
    f"deadline_s={DEADLINE_S}",
    "local_steps=4",
    "precision=float32",
    "data.size=32",
    "data.diseases=[diffuse]",
    "model.width=8",
    "model.critic_width=8",
    "model.batch_size=2",
)


class Link:
    """A way to a port of this machine that can fall silent: its connections stay open, and nothing arrives on them."""

    def __init__(self, to_port: int) -> None:
        self.to_port = to_port
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.left = dict.fromkeys(("up", "down"), math.inf)
        """How many bytes still arrive, by direction; then none in either."""
        self.speaks = threading.Event()
        self.speaks.set()
        self.known = [self.speaks]
        self.ends = [self.listening]

    def __enter__(self) -> "Link":
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in self.ends:
            end.close()
        for speaks in self.known:
            speaks.set()

    def accept(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                near, _ = self.listening.accept()
                far = socket.create_connection(("127.0.0.1", self.to_port))
                self.ends += near, far
                for way, source, target in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self.carry, args=(way, source, target, self.speaks), daemon=True).start()

    def carry(self, way: str, source: socket.socket, target: socket.socket, speaks: threading.Event) -> None:
        with suppress(OSError):  # an end was closed, or broke
            while data := source.recv(4096):
                self.left[way] -= len(data)
                if self.left[way] < 0:
                    speaks.clear()
                speaks.wait()
                target.sendall(data)
            speaks.wait()
            target.shutdown(socket.SHUT_WR)

    def speak_again(self, *, forgetful: bool) -> None:
        """Let all arrive again, or, if ``forgetful``, only what is sent on new connections."""
        self.left = dict.fromkeys(self.left, math.inf)
        if forgetful:
            self.speaks = threading.Event()
            self.known.append(self.speaks)
        self.speaks.set()


class Played:
    """A federation on this machine of two sites, one of them behind a link of the test's own."""

    def __init__(self, folder: Path, running: ExitStack) -> None:
        self.folder = folder
        self.running = running
        self.stage = Stage(folder, print)
        self.home = Home(folder / "federation")
        self.processes = {}

    def begin(self) -> Link:
        self.stage.command("fed-server", "init", "--sites", "A,B", "--address", f"127.0.0.1:{free_port()}")
        self.start("up", "fed-server", "up")
        for port in (self.home.federation.port, self.home.federation.link_port):
            wait_until_open(port, self.processes["up"], self.folder / "up.log")
        enrol(self.stage, self.home, ("A", "B"))
        link = self.running.enter_context(Link(self.home.federation.port))
        membership = self.folder / "site-A/site.json"
        membership.write_text(json.dumps({**json.loads(membership.read_text()), "address": f"127.0.0.1:{link.port}"}))
        for site in ("A", "B"):
            allow(self.stage, site)
            self.start(f"site-{site}", "fed-client", "--site", site)
        self.start("run", "fed-server", "run", *RUN)
        return link

    def start(self, name: str, *words: str) -> None:
        self.processes[name] = self.running.enter_context(self.stage.keep(name, *words))

    def rounds(self) -> Sequence[Round]:
        return RunFolder(self.home.path / "runs/silence", {}).history

    def wait(self, there: Callable[[], bool], what: str, seconds: float = BACK_S) -> None:
        """Wait while nothing ends."""
        deadline = time.monotonic() + seconds
        while not there():
            for name, process in self.processes.items():
                assert process.poll() is None, tail_of(self.folder / f"{name}.log")
            assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
            time.sleep(0.2)

    def wait_for_round(self, sites: Set[str]) -> Round:
        """Wait for the next round that is kept with these sites and no others, and return it."""
        kept = len(self.rounds())

        def found() -> list[Round]:
            return [entry for entry in self.rounds()[kept:] if set(entry.trained) == sites]

        self.wait(lambda: bool(found()), f"a round with {sorted(sites)}")
        print(f"{time.strftime('%H:%M:%S')} {found()[0].round} {found()[0].seconds:.0f} s, {found()[0].failed}")  # noqa: T201
        return found()[0]


@pytest.mark.slow
def test_a_link_that_falls_silent_holds_no_round_up_and_its_site_takes_part_again(tmp_path):
    with ExitStack() as running:
        federation = Played(tmp_path / "played", running)
        link = federation.begin()
        for way, forgetful in (("up", True), ("down", False)):
            federation.wait_for_round({"A", "B"})
            link.left[way] = HALF_WAY
            federation.wait(lambda: not link.speaks.is_set(), "silence", 60)
            silent = time.monotonic()
            late = federation.wait_for_round({"B"})
            federation.wait(lambda silent=silent: time.monotonic() > silent + SILENT_S, "its end", SILENT_S)
            link.speak_again(forgetful=forgetful)

            assert late.failed == {"A": "NoAnswer"}
            assert late.seconds < DEADLINE_S + 15
            federation.wait_for_round({"A", "B"})
