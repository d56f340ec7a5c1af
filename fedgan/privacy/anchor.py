"""The small file that names a ledger's newest line, and so tells an older ledger from the one that was written."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

BEGINNING = "0" * 64
"""The digest before the first line's."""


class Anchor:
    """The number and the digest of a line, written atomically."""

    def __init__(self, path: Path) -> None:
        """Take the file, which is made before the first line of a ledger."""
        self.path = path

    def drop(self, number: int, digest: str) -> None:
        """Name line ``number`` as the newest.

        Raises:
            OSError: the file cannot be written.
        """
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.path.with_name(f"{self.path.name}.partial")
        with os.fdopen(os.open(partial, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            json.dump([number, digest], file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def fault_in(self, digests: Sequence[str]) -> str | None:
        """Return what speaks against a ledger whose lines have these digests, or None.

        It may have more lines than the anchor knows of: a crash came between a line and its anchor.

        Raises:
            OSError: the file cannot be read.
        """
        if not self.path.exists():
            return "its anchor is missing" if digests else None
        known = [BEGINNING, *digests]
        try:
            number, digest = json.loads(self.path.read_text(encoding="utf-8"))
            if len(digests) < number:
                return f"it ends at line {len(digests)}, before line {number} that was written"
            return None if known[number] == digest else f"line {number} is not the one that was written"
        except (ValueError, TypeError):
            return "its anchor is damaged"
