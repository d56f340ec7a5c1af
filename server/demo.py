"""``fed-server demo``: a whole federation on this machine, by the same commands that hospitals use.

Three phantom sites are invited, enrolled and approved over real TLS, they train, a signed model is released to them,
and one of them draws a map with it. Every command is shown as it is given.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import yaml
from PIL import Image

from fedgan.atomic import write_atomically
from fedgan.cohort.cohort import ABNORMAL
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.errors import EngineFailed, HomeError
from fedgan.processes import flower_environment, free_port, process_group, tail_of, wait_until_open
from server.home import Home
from server.registry import Registry
from server.releases import releases_in
from server.running import Tail

SITES = ("A", "B", "C")

SIZE, DISEASE = 32, "diffuse"

SETTINGS = ("name=demo", "quorum=3", "local_steps=20", f"data.size={SIZE}", f"data.diseases=[{DISEASE}]")

WAIT_S = 300.0
"""For what takes seconds on a machine that has nothing else to do."""

LOOK_S = 0.1
"""Between two looks at what a command has said."""

MODULES = {"fed-server": "server.cli", "fed-client": "client.cli"}

Say = Callable[[str], None]


def demo(folder: Path, rounds: int, say: Say) -> Path:
    """Play a federation in ``folder``, which is made, and return the picture of the map that is drawn at its end.

    Raises:
        HomeError: the folder is there already.
        EngineFailed: a command failed; the message ends with what it said.
    """
    stage = Stage(folder, say)
    home = Home(folder / "federation")
    stage.command("fed-server", "init", "--sites", ",".join(SITES), "--address", f"127.0.0.1:{free_port()}")
    with ExitStack() as running:
        link = running.enter_context(stage.keep("up", "fed-server", "up"))
        for port in (home.federation.port, home.federation.link_port):
            wait_until_open(port, link, folder / "up.log")
        enrol(stage, home, SITES)
        for site in SITES:
            allow(stage, site)
            stage.command("fed-client", "--site", site, "check")
            running.enter_context(stage.keep(f"site-{site}", "fed-client", "--site", site))
        stage.command("fed-server", f"rounds={rounds}", *SETTINGS)
        _wait(lambda: all(has_last(home, folder / f"site-{site}") for site in SITES), "the sites have the last release")
        stage.show_end("site-A")
        for site in SITES:
            stage.command("fed-client", "--site", site, "model")
        picture = _phantom(folder)
        stage.command("fed-client", "--site", "A", "map", picture.name)
    say(f"Everything is in {folder}; the run's report is {home.path / 'runs/demo/report.html'}")
    return picture.with_name(f"{picture.stem}-map.png")


class Stage:
    """Gives commands in a folder of its own, and says each as a person would give it there."""

    def __init__(self, folder: Path, say: Say) -> None:
        """Make the folder.

        Raises:
            HomeError: it is there already.
        """
        try:
            folder.mkdir(parents=True)
        except FileExistsError as error:
            raise HomeError(f"{folder} is there already; delete it, or give another --folder") from error
        self.folder = folder
        self.say = say
        whole = flower_environment(folder)
        self.env = {name: value for name, value in whole.items() if name not in ("FEDGAN_HOME", "FLWR_HOME")}

    def command(self, *words: str) -> None:
        """Give a command, say what it says, and wait for its end.

        Raises:
            EngineFailed: it fails.
        """
        self.say(f"$ {' '.join(words)}")
        log = self.folder / "commands.log"
        tail, going_on = Tail(log), True
        with process_group(self._python(words), self.env, log, cwd=self.folder) as process:
            while going_on:
                going_on = process.poll() is None
                for line in tail.lines():
                    self.say(line)
                time.sleep(LOOK_S if going_on else 0)
        if process.returncode:
            last = " ".join(tail_of(log).splitlines()[-3:])
            raise EngineFailed(f"{' '.join(words)} ended with {process.returncode}; {last}")

    def keep(self, log: str, *words: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Give a command that goes on beside the next ones, until the block ends."""
        self.say(f"$ {' '.join(words)} > {log}.log &")
        return process_group(self._python(words), self.env, self.folder / f"{log}.log", cwd=self.folder)

    def show_end(self, log: str, lines: int = 4) -> None:
        """Say the last lines of what a command that goes on has said."""
        self.say(f"$ tail -n {lines} {log}.log")
        for line in tail_of(self.folder / f"{log}.log").splitlines()[-lines:]:
            self.say(line)

    def _python(self, words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-P", "-m", MODULES[words[0]], *words[1:]]


def enrol(stage: Stage, home: Home, sites: Sequence[str]) -> None:
    """Let each site ask for its certificate, approve it, and wait until it has it.

    Raises:
        EngineFailed: a command failed, or took far too long.
    """
    registry = Registry(home.sites)
    with ExitStack() as asking:
        for site in sites:
            words = ("fed-client", "--site", site, "enrol", f"federation/invitations/{site}.txt")
            asking.enter_context(stage.keep(f"enrol-{site}", *words))
        _wait(lambda: all(registry.roll.entry(site).request for site in sites), "the sites ask to be signed")
        for site in sites:
            stage.command("fed-server", "approve", site, "--yes")
        _wait(
            lambda: all((stage.folder / f"site-{site}/policy.yaml").exists() for site in sites),
            "the sites are signed, and have a policy to fill in",
        )
    for site in sites:
        for line in tail_of(stage.folder / f"enrol-{site}.log").splitlines()[-1:]:
            stage.say(line)


def allow(stage: Stage, site: str) -> None:
    """Write into a site's policy, which enrolment has left, as its hospital would, where its scans are: phantoms."""
    file = stage.folder / f"site-{site}" / "policy.yaml"
    policy = yaml.safe_load(file.read_text(encoding="utf-8"))
    policy["scans"] = {"kind": "phantoms", "patients": 60, "images_per_patient": 2, "seed": 0}
    policy["threads"] = 1
    write_atomically(file, yaml.safe_dump(policy, sort_keys=False), secret=True)
    stage.say(f"(site {site} says in {file.relative_to(stage.folder)} that its scans are phantoms)")


def has_last(home: Home, site: Path) -> bool:
    """Return whether a site's model is the last that has been released."""
    last, current = releases_in(home).last(), site / "models" / "current"
    return last is not None and current.exists() and current.readlink().name == last.folder.name


def _phantom(folder: Path) -> Path:
    """Write the scan of a phantom patient whom no site has seen."""
    cohort = phantom_cohort("A", patients=20, images_per_patient=1, size=SIZE, diseases=(DISEASE,), seed=99)
    scan = cohort.images[(cohort.status == ABNORMAL).nonzero()[0, 0], 0]
    picture = folder / "patient.png"
    Image.fromarray(((scan + 1) * 127.5).round().byte().numpy()).save(picture)
    return picture


def _wait(there: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not there():
        if time.monotonic() > deadline:
            raise EngineFailed(f"{what}: not within {WAIT_S:.0f} s; the logs in the folder may say why")
        time.sleep(0.2)
