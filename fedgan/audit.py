"""One hash-chained JSON line per consequential event; never pixels, paths or patients.

Each line carries the SHA-256 of the line before it, so that a line changed, removed or moved shows, as long as one
comes after it. Who holds a later line's digest can tell whether the end is missing.
"""

import fcntl
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from fedgan.errors import RunFolderError

BEGINNING = "0" * 64


class Audit:
    """An append-only file of events, to which several processes may write."""

    def __init__(self, path: Path) -> None:
        """Continue the file at ``path``, or begin it at the first event."""
        self._path = path

    def record(self, event: str, **facts: object) -> None:
        """Append one event with its facts, which must be JSON.

        Raises:
            RunFolderError: the file cannot be written.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        try:
            with self._path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: each line must follow from the one before
                last = _last_line(file)
                line["previous"] = hashlib.sha256(last.rstrip(b"\n")).hexdigest() if last else BEGINNING
                # What a crash left unfinished is ended here, so that it breaks the chain for itself alone.
                torn = b"\n" if last and not last.endswith(b"\n") else b""
                file.write(torn + json.dumps(line, sort_keys=True).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"the audit cannot be written ({error.strerror}); free the disk, then resume"
            ) from error


def _last_line(file: BinaryIO) -> bytes:
    """Return the last line with its end, if it has one, by reading no more of the file than need be."""
    start = size = file.seek(0, os.SEEK_END)
    tail = b""
    while start and b"\n" not in tail[:-1]:
        start = max(0, start - 4096)
        file.seek(start)
        tail = file.read(size - start)
    return tail[tail[:-1].rfind(b"\n") + 1 :]


def broken_links(path: Path) -> list[int]:
    """Return the numbers (from 1) of the lines that do not follow from the line before them."""
    previous, broken = BEGINNING, []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            follows = json.loads(line)["previous"] == previous
        except (ValueError, KeyError, TypeError):
            follows = False
        if not follows:
            broken.append(number)
        previous = hashlib.sha256(line).hexdigest()
    return broken
