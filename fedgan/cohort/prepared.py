"""Prepared scans on disk: files of equal records, made once and then mapped; named by key, never by path or patient."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Records = NDArray[np.void]


def record_of(size: int) -> "np.dtype[Any]":
    """Return the layout of one prepared scan: ``image`` and ``mask`` (size, size), and the stored picture's (H, W)."""
    return np.dtype([("image", "<f4", (size, size)), ("mask", "?", (size, size)), ("shape", "<i4", (2,))])


def kept_records(folder: Path, key: str, *, size: int, length: int, fill: Callable[[Records], None]) -> Records:
    """Return the ``length`` records kept under ``key``; where there are none, let ``fill`` make them.

    The records are mapped copy-on-write: writing to them never reaches the disk. They appear there whole or, when
    ``fill`` raises, not at all. Damaged records are made anew.
    """
    file = folder / f"{key}.npy"
    kept = _mapped(file, size=size, length=length)
    if kept is not None:
        return kept
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    unfinished = folder / f"{key}.{uuid4().hex}.unfinished"
    try:
        records = open_memmap(unfinished, mode="w+", dtype=record_of(size), shape=(length,))
        fill(records)
        records.flush()
        del records
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return open_memmap(file, mode="c")


def _mapped(file: Path, *, size: int, length: int) -> Records | None:
    try:
        records: NDArray[Any] = open_memmap(file, mode="c")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError):
        records = np.empty(0)
    if records.dtype == record_of(size) and records.shape == (length,):
        return records
    log.warning("the prepared scans kept under %s are damaged; making them anew", file.stem)
    return None
