"""A run between hospitals, as its coordinator starts and follows it: submitted to the link, and again after a break.

The run itself is the folder. Whatever dies, this process, the link, or the one that trains, the rounds that were kept
are there, and training goes on after the last.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from fedgan.assembly import first_model
from fedgan.bundle import build_bundle
from fedgan.config import dump, load, read
from fedgan.errors import EngineFailed, RunFolderError, SettingsError
from fedgan.locks import is_held
from fedgan.model_files import digest
from fedgan.processes import flower_environment, process_group, wait_until_open
from fedgan.progress import LiveProgress
from fedgan.results.metrics import Metrics
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment
from fedgan.simulation import open_folder
from server.current import CurrentRun
from server.home import Home
from server.nodes import EnrolledNodes
from server.outcome import conclude
from server.publishing import publish_kept
from server.releases import releases_in, signing_key
from server.superlink import CONNECTION, Superlink
from server.training import LOG, REFUSAL, WRITER

LOOK_S = 0.5
"""Between two looks at the run's folder."""

ASK_S, ASK_SOON_S = 60.0, 3.0
"""Between two questions to Flower, of which each starts a program, whether the run is still on: while a process trains
in its folder, and while none does."""

ATTEMPTS = 3
"""How often in a row a run may break off without a further round before the person must look."""

PATIENCE = 30
"""How often Flower is asked before its link is given up."""

OVER, STOPPED = "finished:", "finished:stopped"

Answered = TypeVar("Answered")

Say = Callable[[str], None]


def begin(home: Home, overrides: Sequence[str]) -> Path:
    """Compose a run's settings, and return its folder, in which they now are.

    Raises:
        SettingsError: they are wrong, the model to start from cannot be used, or more sites are needed than are
            approved.
        RunFolderError: there is a run of that name, or the folder cannot be made.
        HomeError: there is no federation in ``home``.
    """
    _ = home.federation
    settings = load("server", Deployment, overrides)
    if settings.own_generators:
        raise SettingsError("aggregation.share: sites with generators of their own can only be simulated as yet")
    approved = len(EnrolledNodes(home))
    if approved < settings.quorum:
        raise SettingsError(
            f"quorum: {settings.quorum} sites are needed and {approved} may take part; see fed-server list, approve "
            "more, or give another quorum="
        )
    name = settings.name or f"{settings.model.kind}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path = (settings.runs or home.path / "runs").absolute() / name
    if (path / "config.yaml").exists():
        raise RunFolderError(f"{path} holds a run already; resume it (--resume {path}) or give another name=")
    start = settings.start.absolute() if settings.start else None
    settings = settings.model_copy(update={"name": name, "runs": path.parent, "start": start})
    first_model(settings)
    folder = open_folder(settings, path)
    folder.write("config.yaml", dump(settings))
    folder.audit.record(
        "run started", settings=digest(path / "config.yaml"), sites=sorted(EnrolledNodes(home).values())
    )
    return path


def carry_out(home: Home, path: Path, progress: LiveProgress, say: Say) -> Metrics:
    """Train the run in ``path`` to its end, conclude it, and release the model that is its result.

    The run goes on, with ``fed-server up``, after whatever ends this process but Ctrl-C.

    Raises:
        HomeError: another run is on, or there is no federation in ``home``.
        EngineFailed: training broke off again and again, or was stopped.
        RunFolderError: the run's folder cannot be written.
    """
    settings = read(path / "config.yaml", Deployment)
    folder, run = open_folder(settings, path), CurrentRun(home)
    with run.followed(path), _link_up(home, say) as link:
        progress.arm("federated", rounds=settings.rounds, done=len(folder.history), steps=0)
        try:
            _Training(home, link, folder, settings.rounds, progress, say).train()
            metrics = conclude(settings, folder)
            publish_kept(
                releases_in(home),
                folder,
                metrics.chosen_round,
                signing_key(home),
                rounds=settings.rounds,
                chosen=True,
            )
        except KeyboardInterrupt:
            run.end()
            raise
        run.end()
    return metrics


@dataclass(frozen=True, slots=True)
class _Training:
    """A run at Flower, as often as it takes."""

    home: Home
    link: Superlink
    folder: RunFolder
    rounds: int
    progress: LiveProgress
    say: Say

    def train(self) -> None:
        """Train until the run is complete; whatever ends this before, nothing of it goes on at Flower."""
        try:
            self._repeat(CurrentRun(self.home))
        except BaseException:
            with suppress(EngineFailed):  # the link is gone too: what it has is stopped before the next submission
                self._stop_all()
            raise

    def _repeat(self, run: CurrentRun) -> None:
        """Submit the run, and again whenever it breaks off, until Flower says that it is completed."""
        failures = 0
        while failures < ATTEMPTS:
            before = len(self.folder.history)
            status = self._follow(_patiently(self._submit), run)
            if status == f"{OVER}completed":
                return
            if status == STOPPED:
                run.end()
                raise EngineFailed(f"the run was stopped; go on with fed-server --resume {self.folder.path}")
            failures = 1 if len(self.folder.history) > before else failures + 1
            self.say(f"training broke off ({self._reason(status)}); it goes on after round {len(self.folder.history)}")
        run.end()
        raise EngineFailed(
            f"training broke off {ATTEMPTS} times without a further round: {self._reason('see the logs')}; when that "
            f"is mended, go on with fed-server --resume {self.folder.path}"
        )

    def _reason(self, otherwise: str) -> str:
        file = self.folder.path / REFUSAL
        return file.read_text(encoding="utf-8").strip() if file.exists() else otherwise

    def _submit(self) -> str:
        """Hand the run to Flower, and nothing beside it, and return Flower's number for it."""
        self._stop_all()  # what a follower that was killed has left: two would train in one folder
        bundle = build_bundle(self.home.folder("link") / "bundle")
        told = f"run={json.dumps(self.folder.path.name)}"  # sites see it, so that it has no path in it
        return str(self.link.ask("run", str(bundle), CONNECTION, "--run-config", told)["run-id"])

    def _stop_all(self) -> None:
        """Stop whatever Flower still runs."""
        for run in self.link.ask("list", CONNECTION)["runs"]:
            if not run["status"].startswith(OVER):
                self.link.ask("stop", run["run-id"], CONNECTION)

    def _follow(self, number: str, run: CurrentRun) -> str:
        """Show what happens in the run until it is over, and return how it ended."""
        log, folder = Tail(self.folder.path / LOG), self.folder
        status, asked = "", time.monotonic()
        while not status.startswith(OVER):
            if run.path != folder.path:
                return STOPPED
            if time.monotonic() > asked + (ASK_S if is_held(folder.path / WRITER) else ASK_SOON_S):
                status = _patiently(lambda: self.link.ask("list", CONNECTION, "--run-id", number))["runs"][0]["status"]
                asked = time.monotonic()
            folder.reload()
            for line in log.lines():
                self.say(line)
            for entry in folder.history:
                self.progress.round(entry.round, folder.score_of(entry.round - 1))
            time.sleep(LOOK_S)
        return status


def _patiently(ask: Callable[[], Answered]) -> Answered:
    """Ask Flower, and again while its SuperLink is being started again."""
    for _ in range(PATIENCE - 1):
        with suppress(EngineFailed):
            return ask()
        time.sleep(ASK_SOON_S)
    return ask()


class Tail:
    """What is added to a log from now on."""

    def __init__(self, path: Path) -> None:
        """Begin after what is in ``path`` now."""
        self._path = path
        self._at = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Return the lines that have been finished since the last time."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, _, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + 1 if whole else 0
        return whole.decode(errors="replace").splitlines()


@contextmanager
def _link_up(home: Home, say: Say) -> Iterator[Superlink]:
    """Give the federation's link, started for as long as the block takes if nobody keeps it up."""
    link = Superlink(home)
    if is_held(home.up_lock):
        yield link
        return
    log = home.folder("logs") / "up.log"
    command = [sys.executable, "-P", "-m", "server.cli", "up", "--home", str(home.path)]
    with process_group(command, flower_environment(home.folder("link")), log) as process:
        wait_until_open(home.federation.port, process, log)
        wait_until_open(home.federation.link_port, process, log)
        say(f"the link is up at {home.federation.address} until this run ends; fed-server up keeps it up")
        yield link
