"""The coordinator's part of a run between hospitals, in the process that Flower starts for it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid

from fedgan.bell import Bell
from fedgan.config import dump, read
from fedgan.errors import FedganError, RunFolderError
from fedgan.locks import held
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment, terms_of
from fedgan.simulation import open_folder, train_in_folder
from server.current import CurrentRun
from server.federation import FlowerFederation
from server.home import Home, home_at
from server.long_poll import ANSWERED, SENT, note_sent
from server.nodes import EnrolledNodes, Returns
from server.publishing import publish_kept
from server.releases import Releases, releases_in, signing_key
from server.reported import NeverLess

LOG, REFUSAL, WRITER = "log.txt", "refusal.txt", "writer.lock"
"""In a run's folder: what happens, for the person who follows it; why training ended before its time; and what the
process that trains holds locked."""

SPENT = "spent.json"
"""In the federation's folder: what sites have said to have spent."""

WRITER_S = 120.0
"""How long a process that trained this run and was told to stop may take to end."""


def train_between_hospitals(grid: Grid, name: str) -> None:
    """Train the run ``name`` from its last kept round to its last, and release each round as it is kept.

    Raises:
        FedganError: it cannot go on; the reason is in the run's ``refusal.txt`` too.
    """
    home = home_at(None)
    path = CurrentRun(home).path
    if path is None or path.name != name:
        raise RunFolderError(f"run {name} is no longer the one that goes on; start it with fed-server --resume")
    settings = read(path / "config.yaml", Deployment)
    folder = open_folder(settings, path)
    refusal = RunFolderError(f"{path}: another process trains this run; it must end first")
    with held(path / WRITER, refusal, patience_s=WRITER_S), _logged(path / LOG):
        (path / REFUSAL).unlink(missing_ok=True)
        federation = FlowerFederation(
            grid,
            EnrolledNodes(home),
            settings.deadline_s,
            folder.spool,
            quorum=settings.quorum,
            joined_anew=Returns(home),
            sent=partial(note_sent, home.path / SENT),
            wait=Bell(home.path / ANSWERED).wait,
        )
        try:
            train_in_folder(
                settings,
                folder,
                NeverLess(federation, home.path / SPENT),
                terms=dump(terms_of(settings)),
                watcher=_Releasing(home, settings, folder),
                accounts=home.path,
            )
        except FedganError as refusal:
            folder.write(REFUSAL, f"{refusal}\n")
            raise
        folder.spool.clear()


class _Releasing:
    """Releases each kept round to the sites; a ``Watcher``."""

    def __init__(self, home: Home, settings: Deployment, folder: RunFolder) -> None:
        self.releases: Releases = releases_in(home)
        self.key = signing_key(home)
        self.settings = settings
        self.folder = folder

    def arm(self, name: str, *, rounds: int, done: int, steps: int) -> None:
        """Be told that training begins."""

    def step(self, site: str, losses: Mapping[str, float]) -> None:
        """Be told of a step, which no site tells."""

    def round(self, number: int, score: float | None) -> None:
        """Release the round that was just kept."""
        publish_kept(self.releases, self.folder, number, self.key, rounds=self.settings.rounds, chosen=False)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Write what fedgan and server log into a file of the run, until the block ends."""
    to_file = logging.FileHandler(path, encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    loggers = [logging.getLogger(name) for name in ("fedgan", "server")]
    for logger in loggers:
        logger.addHandler(to_file)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(to_file)
        to_file.close()
