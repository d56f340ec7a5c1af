"""The shape of a GAN method: what one local step, a site and a map need of it, and nothing else."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedgan.records import Batch, ScanCounts

Scene = Any
"""What a method's generators made of a batch; only the method itself looks inside."""


class Method(Protocol):
    """Networks that play an adversarial game over batches; an ``nn.Module`` whose state is what travels."""

    def generators(self) -> Iterable[nn.Parameter]:
        """Return what the generators' player may move."""
        ...

    def critics(self) -> Iterable[nn.Parameter]:
        """Return what the critics' player may move."""
        ...

    def averages(self) -> Mapping[str, str]:
        """Return which network is the moving average of which, by name."""
        ...

    def driven_by(self, counts: ScanCounts) -> Mapping[str, tuple[int, ...]]:
        """Return by how many of a site's scans each network's terms are trained there: 0 for one that cannot be had.

        A number stands for the terms that look at the same scans, as all that look at normal ones.
        """
        ...

    def by_disease(self) -> Collection[str]:
        """Return the names of the tensors whose first axis is the diseases, each row trained by the scans of one."""
        ...

    def imagine(self, batch: Batch, rng: torch.Generator, *, for_critics: bool = False) -> Scene:
        """Run the generators for what both players look at, or for what critics look at alone."""
        ...

    def critic_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the weighted terms that the critics descend."""
        ...

    def generator_terms(self, scene: Scene, rng: torch.Generator) -> Mapping[str, Tensor]:
        """Return the weighted terms that the generators descend."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the named tensors that travel; as of ``nn.Module``."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> object:
        """Take named tensors over; as of ``nn.Module``."""
        ...

    def follow(self) -> None:
        """Move the generator's moving average one step."""
        ...

    def difference(self, images: Tensor, diseases: Tensor) -> Tensor:
        """Return the signed difference from the normal counterpart, by the averaged generator."""
        ...
