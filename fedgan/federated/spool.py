"""Updates on disk instead of in memory: written as they arrive, read part by part when they are combined.

A round needs memory for one update, however many sites there are. Nothing here outlives the round.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fedgan.errors import RunFolderError
from fedgan.records import SiteUpdate


class Spooled(Mapping[str, Tensor]):
    """Named tensors in a safetensors file, each mapped into memory only where it is read."""

    def __init__(self, path: Path) -> None:
        """Take the file, which must stay until the last read."""
        self.path = path

    @cached_property
    def _file(self) -> Any:  # noqa: ANN401 - safetensors has no type for what it opens
        return safe_open(self.path, framework="pt")

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of that name."""
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(sorted(self._names))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._names)


class Spool:
    """A folder for the updates of one round."""

    def __init__(self, folder: Path) -> None:
        """Take a folder of its own."""
        self.folder = folder

    def clear(self) -> None:
        """Delete the updates of the round before."""
        for file in self.folder.glob("*.safetensors"):
            file.unlink()

    def put(self, update: SiteUpdate) -> SiteUpdate:
        """Return the same update with its delta on disk.

        Raises:
            RunFolderError: the disk is full or the folder cannot be written.
        """
        if not update.delta:
            return update
        delta = {name: tensor.contiguous() for name, tensor in update.delta.items()}
        return replace(update, delta=self._written(update.site, lambda path: save_file(delta, path)))

    def keep(self, site: str, packed: memoryview) -> Spooled:
        """Return the tensors of an update that is a safetensors file already, put on disk as it came.

        Raises:
            SafetensorError: it is none.
            RunFolderError: the disk is full or the folder cannot be written.
        """
        spooled = self._written(site, lambda path: path.write_bytes(packed))
        try:
            dict(spooled)  # what is damaged is told now, not in the middle of a sum; nothing is read for it
        except BaseException:
            spooled.path.unlink()
            raise
        return spooled

    def _written(self, site: str, write: Callable[[Path], object]) -> Spooled:
        path = self.folder / f"{site}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # never under the hands of who still reads it
            write(path)
        except (OSError, SafetensorError) as error:
            path.unlink(missing_ok=True)
            raise RunFolderError(
                f"an update cannot be kept until it is combined ({error}); free space on the disk of {self.folder}, "
                "then resume"
            ) from error
        return Spooled(path)
