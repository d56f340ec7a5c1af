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

from fedgan.errors import RunFolderError

BEGINNING = "0" * 64


class Audit:
    """An append-only file of events, for as many processes of this machine as there are."""

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
            with self._path.open("a", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed
                line["previous"] = self._last_digest()
                file.write(self._line_break() + json.dumps(line, sort_keys=True) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(
                f"the audit cannot be written ({error.strerror}); free the disk, then resume"
            ) from error

    def _line_break(self) -> str:
        """Return what ends a line that a crash left unfinished, so that it breaks the chain for itself alone."""
        torn = self._path.exists() and self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n")
        return "\n" if torn else ""

    def _last_digest(self) -> str:
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        return hashlib.sha256(lines[-1]).hexdigest() if lines else BEGINNING


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
