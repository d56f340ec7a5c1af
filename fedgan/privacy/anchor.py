"""The small file that names a ledger's newest line, and so tells an older ledger from the one that was written."""

import json
from collections.abc import Sequence
from pathlib import Path

from fedgan.atomic import write_atomically

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
            HomeError: the file cannot be written.
        """
        write_atomically(self.path, json.dumps([number, digest]), secret=True)

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
