"""Small files written so that a crash leaves the old one or the new one, never half; secrets for their owner alone."""

import os
import tempfile
from pathlib import Path

from fedgan.errors import HomeError


def write_atomically(path: Path, content: bytes | str, *, secret: bool = False) -> None:
    """Write ``content`` to ``path``, readable by its owner alone if it is ``secret``, in a folder made if need be.

    Raises:
        HomeError: the folder cannot be written, or the disk is full; what was there before stays.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        make_private(path.parent)
        handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # made with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o600 if secret else 0o644)
            Path(partial).replace(path)
        finally:
            Path(partial).unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        raise HomeError(f"{path} cannot be written ({error.strerror}); free the disk or check who owns it") from error


def make_private(folder: Path) -> None:
    """Make ``folder``, for its owner alone, if it is not there."""
    if not folder.is_dir():
        make_private(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
