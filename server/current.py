"""The run that goes on: which it is, that only one process follows it, and that ``fed-server up`` does if nobody does.

The file that names it is all there is to it: it is there from the start of a run until that has been concluded, has
been stopped by a person, or broke off too often; whatever dies in between, the run is taken up.
"""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgan.atomic import write_atomically
from fedgan.errors import HomeError
from fedgan.locks import held, is_held
from fedgan.processes import flower_environment, process_group
from server.home import Home

log = logging.getLogger(__name__)

LOOK_S, AGAIN_S = 2.0, 60.0
"""Between two looks whether somebody follows the run; and before what could not be followed is taken up again."""


class CurrentRun:
    """The run of a home that goes on, if there is one."""

    def __init__(self, home: Home) -> None:
        """Take the federation in ``home``.

        Raises:
            HomeError: there is none.
        """
        self._home = home
        self._federation = home.federation.name
        self._file = home.folder("link") / "run.txt"
        self._lock = home.folder("link") / "run.lock"

    @property
    def path(self) -> Path | None:
        """Return the run's folder, or nothing if no run goes on."""
        try:
            return Path(self._file.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            return None

    def end(self) -> None:
        """Let no run go on."""
        self._file.unlink(missing_ok=True)

    @contextmanager
    def followed(self, path: Path) -> Iterator[None]:
        """Let the run in ``path`` go on, and be the only process that follows it until the block ends.

        Raises:
            HomeError: another process follows a run.
        """
        name = self.path.name if self.path else "another"
        refusal = HomeError(
            f"run {name} of the federation {self._federation} is on; wait for its end, or fed-server stop"
        )
        with held(self._lock, refusal):
            write_atomically(self._file, f"{path}\n")
            yield

    def keep_followed(self, until: threading.Event) -> None:
        """Take up the run whenever it has nobody to follow it, until the event."""
        pause_s = LOOK_S
        while not until.wait(pause_s):
            path = self.path
            pause_s = self._take_up(path, until) if path and not is_held(self._lock) else LOOK_S

    def _take_up(self, path: Path, until: threading.Event) -> float:
        """Follow the run until its end or the event, and return how long to wait before the next look, in seconds."""
        log_file = self._home.folder("logs") / "run.log"
        log.info("run %s is taken up, since nobody follows it; %s says how it goes", path.name, log_file)
        resume = ["run", "--resume", str(path), "--home", str(self._home.path)]
        env = flower_environment(self._home.folder("link"))
        with process_group([sys.executable, "-P", "-m", "server.cli", *resume], env, log_file) as process:
            while process.poll() is None and not until.wait(LOOK_S):
                pass
        return AGAIN_S if process.returncode and self.path else LOOK_S
