"""A run between hospitals, as its coordinator starts and follows it: submitted to the link, and again after a break.

The run itself is the folder. Whatever dies, this process, the link, or the one that trains, the rounds that were kept
are there, and training goes on after the last.
"""

import fcntl
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from fedgan.atomic import write_atomically
from fedgan.bundle import build_bundle
from fedgan.checkpoint import digest
from fedgan.config import dump, load, read
from fedgan.errors import EngineFailed, HomeError, RunFolderError, SettingsError
from fedgan.processes import flower_environment, process_group, wait_until_open
from fedgan.progress import LiveProgress
from fedgan.results.metrics import Metrics
from fedgan.results.release import lineage_of
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment, GanFedAvg
from fedgan.simulation import open_folder
from server.home import Home
from server.nodes import EnrolledNodes
from server.outcome import conclude
from server.releases import releases_in, signing_key
from server.superlink import CONNECTION, Superlink
from server.training import CURRENT, LOG, REFUSAL

LOOK_S = 0.5
"""Between two looks at the run's folder."""

ASK_S, ASK_SOON_S = 15.0, 3.0
"""Between two questions to Flower whether the run is still on, of which each starts a program; and near the end."""

ATTEMPTS = 3
"""How often in a row a run may break off without a further round before the person must look."""

OVER = "finished:"

Say = Callable[[str], None]


def begin(home: Home, overrides: Sequence[str]) -> Path:
    """Compose a run's settings, and return its folder, in which they now are.

    Raises:
        SettingsError: they are wrong, or more sites are needed than are approved.
        RunFolderError: there is a run of that name, or the folder cannot be made.
        HomeError: there is no federation in ``home``.
    """
    _ = home.federation
    settings = load("server", Deployment, overrides)
    if isinstance(settings.aggregation, GanFedAvg) and settings.aggregation.share in ("discriminator", "none"):
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
    settings = settings.model_copy(update={"name": name, "runs": path.parent})
    folder = open_folder(settings, path)
    folder.write("config.yaml", dump(settings))
    folder.audit.record(
        "run started", settings=digest(path / "config.yaml"), sites=sorted(EnrolledNodes(home).values())
    )
    return path


def carry_out(home: Home, path: Path, progress: LiveProgress, say: Say) -> Metrics:
    """Train the run in ``path`` to its end, conclude it, and release the model that is its result.

    Raises:
        HomeError: another run is on, or there is no federation in ``home``.
        EngineFailed: training broke off again and again, or was stopped.
        RunFolderError: the run's folder cannot be written.
    """
    settings = read(path / "config.yaml", Deployment)
    folder = open_folder(settings, path)
    with _one_at_a_time(home), _link_up(home, say) as link:
        _stop_runs(link)  # of a coordinator that was killed: two would train in one folder
        progress.arm("federated", rounds=settings.rounds, done=len(folder.history), steps=0)
        try:
            _train(home, link, folder, progress, say)
        except BaseException:
            _stop_runs(link)
            raise
    metrics = conclude(settings, folder)
    model = folder.kept(metrics.chosen_round)
    lineage = lineage_of(folder, model.round, rounds=settings.rounds, epsilon=folder.epsilon_spent(), chosen=True)
    releases_in(home).publish(model, lineage, signing_key(home))
    return metrics


def _train(home: Home, link: Superlink, folder: RunFolder, progress: LiveProgress, say: Say) -> None:
    """Submit the run, and again whenever it breaks off, until Flower says that it is completed."""
    failures = 0
    while failures < ATTEMPTS:
        before = len(folder.history)
        status = _follow(link, _submit(home, link, folder.path), folder, progress, say)
        if status == f"{OVER}completed":
            return
        if status == f"{OVER}stopped":
            raise EngineFailed(f"the run was stopped; go on with fed-server --resume {folder.path}")
        failures = 1 if len(folder.history) > before else failures + 1
        say(f"training broke off ({_reason(folder, status)}); it goes on after round {len(folder.history)}")
    raise EngineFailed(
        f"training broke off {ATTEMPTS} times without a further round: {_reason(folder, 'see the logs')}; when that is "
        f"mended, go on with fed-server --resume {folder.path}"
    )


def _reason(folder: RunFolder, otherwise: str) -> str:
    file = folder.path / REFUSAL
    return file.read_text(encoding="utf-8").strip() if file.exists() else otherwise


def _submit(home: Home, link: Superlink, path: Path) -> str:
    """Hand the run to Flower, as soon as the link is there, and return Flower's number for it."""
    bundle = build_bundle(home.folder("link") / "bundle")
    write_atomically(home.path / CURRENT, f"{path}\n")
    told = f"run={json.dumps(path.name)}"  # sites see it, so that it has no path in it
    return str(_patiently(link, "run", str(bundle), CONNECTION, "--run-config", told)["run-id"])


def _follow(link: Superlink, number: str, folder: RunFolder, progress: LiveProgress, say: Say) -> str:
    """Show what happens in the run until it is over, and return how it ended."""
    log, rounds = _Tail(folder.path / LOG), read(folder.path / "config.yaml", Deployment).rounds
    status, next_question = "", 0.0
    while not status.startswith(OVER):
        if time.monotonic() >= next_question:
            status = _patiently(link, "list", CONNECTION, "--run-id", number)["runs"][0]["status"]
            near_the_end = len(folder.history) == rounds or (folder.path / REFUSAL).exists()
            next_question = time.monotonic() + (ASK_SOON_S if near_the_end else ASK_S)
        folder.reload()
        for line in log.lines():
            say(line)
        for entry in folder.history:
            progress.round(entry.round, folder.score_of(entry.round - 1))
        time.sleep(LOOK_S)
    return status


def _patiently(link: Superlink, *words: str) -> dict[str, Any]:
    """Ask Flower, and again while its SuperLink is being started again."""
    for attempt in range(1, 31):
        try:
            return link.ask(*words)
        except EngineFailed:
            if attempt == 30:
                raise
            time.sleep(ASK_SOON_S)
    raise AssertionError


class _Tail:
    """What is added to a log from now on."""

    def __init__(self, path: Path) -> None:
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
def _one_at_a_time(home: Home) -> Iterator[None]:
    with (home.folder("link") / "run.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HomeError(
                f"another run of the federation in {home.path} is on; wait for its end, or end it"
            ) from error
        yield


@contextmanager
def _link_up(home: Home, say: Say) -> Iterator[Superlink]:
    """Give the federation's link, started for as long as the block takes if nobody keeps it up."""
    link = Superlink(home)
    if _is_up(home):
        yield link
        return
    log = home.folder("logs") / "up.log"
    command = [sys.executable, "-P", "-m", "server.cli", "up", "--home", str(home.path)]
    with process_group(command, flower_environment(home.folder("link")), log) as process:
        wait_until_open(home.federation.port, process, log)
        wait_until_open(home.federation.link_port, process, log)
        say(f"the link is up at {home.federation.address} until this run ends; fed-server up keeps it up")
        yield link


def _is_up(home: Home) -> bool:
    with (home.folder("link") / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _stop_runs(link: Superlink) -> None:
    """Stop whatever Flower still runs."""
    for run in _patiently(link, "list", CONNECTION)["runs"]:
        if not run["status"].startswith(OVER):
            link.ask("stop", run["run-id"], CONNECTION)
