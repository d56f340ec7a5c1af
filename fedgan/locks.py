"""One process at a time: a lock on a file, which the system takes back from whoever dies."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedgan.errors import FedganError


@contextmanager
def held(path: Path, otherwise: FedganError) -> Iterator[None]:
    """Hold the lock at ``path`` until the block ends, or raise ``otherwise`` if another process holds it."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise otherwise from error
        yield


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock at ``path``."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
