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
from fedgan.records import Weights, digest_of

OWN, MOMENTS, RESIDUAL = "own/", "moments/", "residual/"
"""What the names of kept tensors begin with."""

MODEL = "model.safetensors"


class Memory(Protocol):
    """Where a site remembers."""

    def recall(self, number: int) -> tuple[int, Weights]:
        """Return what was kept for round ``number`` (from 0) or for the last one before it, and for which."""
        ...

    def keep(self, number: int, tensors: Weights) -> None:
        """Keep tensors for round ``number``, and for those after it until there is something newer."""
        ...

    def keep_model(self, weights: Weights) -> None:
        """Keep the global model that was received last, from which the next may come as a step."""
        ...

    def model_of(self, digest: str) -> Weights | None:
        """Return the kept model if that is its digest."""
        ...


def own_of(memory: Memory, number: int) -> Weights:
    """Return the tensors with which a site goes on by itself in round ``number``, by their names in the model."""
    return part_of(memory.recall(number)[1], OWN)


def part_of(kept: Weights, start: str) -> Weights:
    """Return what was kept under names that begin with ``start``, without it."""
    return {name.removeprefix(start): tensor for name, tensor in kept.items() if name.startswith(start)}


class NoMemory:
    """A site that begins every round with what it is sent; a ``Memory``."""

    def recall(self, number: int) -> tuple[int, Weights]:
        """Return nothing."""
        return number, {}

    def keep(self, number: int, tensors: Weights) -> None:
        """Forget."""

    def keep_model(self, weights: Weights) -> None:
        """Forget."""

    def model_of(self, digest: str) -> Weights | None:
        """Return nothing."""
        return None


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
        self._write(self._file(number), tensors)
        before = max((old for old in self._numbers() if old < number), default=number)
        for old in self._numbers():
            if old not in (number, before):
                self._file(old).unlink()

    def keep_model(self, weights: Weights) -> None:
        """Keep the global model that was received last, from which the next may come as a step.

        Raises:
            SiteMemoryError: the disk is full or the folder cannot be written; what was kept stays.
        """
        self._write(self.folder / MODEL, weights)

    def model_of(self, digest: str) -> Weights | None:
        """Return the kept model if that is its digest; a damaged file is as good as none."""
        try:
            found = load_file(self.folder / MODEL)
        except (OSError, SafetensorError):
            return None
        return found if digest_of(found) == digest else None

    def _write(self, path: Path, tensors: Weights) -> None:
        partial = self.folder / "memory.partial"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise SiteMemoryError(f"{self.folder} cannot be written ({error}); the site must make room") from error

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"

    def _numbers(self) -> list[int]:
        return [int(file.stem) for file in self.folder.glob("*.safetensors") if file.stem.isdecimal()]
