"""One process at a time: a lock on a file, which the system takes back from whoever dies."""

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from fedgan.errors import FedganError

LOOK_S = 0.2
"""Between two looks whether a lock has been let go."""


@contextmanager
def held(path: Path, otherwise: FedganError, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the lock at ``path`` until the block ends, or raise ``otherwise`` if another process keeps hold of it."""
    deadline = time.monotonic() + patience_s
    with path.open("a") as lock:
        while not _taken(lock, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise otherwise
            time.sleep(LOOK_S)
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock at ``path``."""
    with path.open("a") as lock:
        return not _taken(lock, fcntl.LOCK_SH)


def _taken(lock: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
