"""A bell between two processes of one machine: a file whose time of change is all that it says.

Looking at it costs next to nothing, so that who listens hears a ring at once and need not ask a server all the time.
A ring can get lost: who listens also asks by itself now and then.
"""

import os
import time
from contextlib import suppress
from pathlib import Path

LOOK_S = 0.05
"""Between two looks."""


def ring(path: Path) -> None:
    """Ring the bell at ``path``, if the file can be written."""
    with suppress(OSError):
        path.touch(mode=0o600)
        os.utime(path, ns=(time.time_ns(),) * 2)  # the file system's own clock may not tell two rings apart


def changed_ns(path: Path) -> int:
    """Return when a file was last written; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class Bell:
    """Hears when the bell at a path rings."""

    def __init__(self, path: Path) -> None:
        """Listen from now on; whether it has rung before is not known, so that the first wait is none."""
        self._path = path
        self._known = -1

    def wait(self, most_s: float) -> None:
        """Wait until it has rung since the last time, and no longer than ``most_s``."""
        deadline = time.monotonic() + most_s
        while (known := changed_ns(self._path)) == self._known and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left_s))
        self._known = known
