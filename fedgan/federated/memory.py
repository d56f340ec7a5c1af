"""What a site keeps from round to round: tensors that it does not send, its optimisers' moments.

One safetensors file for the round that it is needed in, written atomically. The file before stays until the next one,
because a coordinator that was stopped may ask for a round again: whatever a site is asked twice, it answers alike.
"""

import os
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedgan.errors import SiteMemoryError
from fedgan.records import Weights

OWN, MOMENTS, RESIDUAL = "own/", "moments/", "residual/"
"""What the names of kept tensors begin with."""


class Memory(Protocol):
    """Where a site remembers."""

    def recall(self, number: int) -> tuple[int, Weights]:
        """Return what was kept for round ``number`` (from 0) or for the last one before it, and for which."""
        ...

    def keep(self, number: int, tensors: Weights) -> None:
        """Keep tensors for round ``number``, and for those after it until there is something newer."""
        ...


class NoMemory:
    """A site that begins every round with what it is sent; a ``Memory``."""

    def recall(self, number: int) -> tuple[int, Weights]:
        """Return nothing."""
        return number, {}

    def keep(self, number: int, tensors: Weights) -> None:
        """Forget."""


class FolderMemory:
    """A site's memory in a folder of its own; a ``Memory``."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which is made when there is something to keep."""
        self.folder = folder

    def recall(self, number: int) -> tuple[int, Weights]:
        """Return what was kept for round ``number`` or for the last one before it, and for which.

        Raises:
            SiteMemoryError: the file is damaged or cannot be read.
        """
        known = [kept for kept in self._numbers() if kept <= number]
        if not known:
            return number, {}
        file = self._file(max(known))
        try:
            return max(known), load_file(file)
        except (OSError, SafetensorError) as error:
            raise SiteMemoryError(
                f"{file} cannot be read ({error}); delete it, and the site goes on with what it is sent"
            ) from error

    def keep(self, number: int, tensors: Weights) -> None:
        """Keep tensors for round ``number``; what only earlier rounds needed is forgotten.

        Raises:
            SiteMemoryError: the disk is full or the folder cannot be written; what was kept stays.
        """
        if not tensors:
            return
        partial = self.folder / "memory.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(self._file(number))
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise SiteMemoryError(f"{self.folder} cannot be written ({error}); the site must make room") from error
        before = max((old for old in self._numbers() if old < number), default=number)
        for old in self._numbers():
            if old not in (number, before):
                self._file(old).unlink()

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def _numbers(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob("*.safetensors") if file.stem.isdecimal()]
