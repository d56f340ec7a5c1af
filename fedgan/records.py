"""What crosses a boundary: small frozen records, and nothing that needs a network or a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from typing import Self

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Named tensors of a model."""


@dataclass(frozen=True, slots=True)
class ModelStep:
    """From one global model to the next, in the bits in which it travels; exact, to the bit, for who has the first."""

    base: str
    """Digest of the weights that it starts from."""
    moved: Weights
    """By how much tensors move, encoded as by ``fedgan.federated.compression``."""
    replaced: Weights
    """Other tensors that changed, as they now are."""


@dataclass(frozen=True)
class GlobalModel:
    """The coordinator's model after ``round`` completed rounds; 0 is untrained. Its weights never change in place."""

    round: int
    weights: Weights
    memory: Weights = field(default_factory=dict)
    """What the coordinator alone remembers from round to round, as a server optimiser's moments; it never travels."""
    step: ModelStep | None = None
    """How it came from the model before, if it may travel as that."""

    @cached_property
    def digest(self) -> str:
        """Return the digest of its weights, of which a round asks several times."""
        return digest_of(self.weights)

    def remembering(self, memory: Weights) -> Self:
        """Return the same model with another memory."""
        same = replace(self, memory=memory)
        same.__dict__.update({name: found for name, found in self.__dict__.items() if name == "digest"})
        return same


def digest_of(weights: Weights) -> str:
    """Return the SHA-256 of named tensors, in hex: of names, types, shapes and every bit of their values.

    >>> digest_of({"w": torch.zeros(2)}) == digest_of({"w": torch.zeros(2, 1)})
    False
    """
    found = sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().contiguous().cpu()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@dataclass(frozen=True, slots=True)
class ScanCounts:
    """How many distinct training scans a site has, by what they can teach."""

    normal: int = 0
    abnormal: int = 0
    unlabelled: int = 0
    by_disease: tuple[int, ...] = ()
    """Abnormal scans that show each disease."""

    @property
    def labelled(self) -> int:
        """Return how many are known to be normal or abnormal."""
        return self.normal + self.abnormal


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What the coordinator asks of every site in one round.

    With ``local_steps`` 0 a site only scores the model on its validation patients and sends no delta.
    """

    model: GlobalModel
    local_steps: int
    terms: str = ""
    """``fedgan.settings.Terms`` of the run, as YAML; empty where sites know the run's settings anyway."""


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """What one site answers: how it would move the weights, and how many scans say so.

    ``metrics`` are bounded figures by name: mean losses of the round (``loss/...``) and scores of the
    model as it was *received*, on the site's validation patients (``validation/...``).
    """

    site: str
    round: int
    digest: str
    """Of the weights that it received."""
    delta: Weights
    counts: ScanCounts
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """Why one site did not train: the class of the refusal, never its details."""

    site: str
    round: int
    reason: str


Answer = SiteUpdate | SiteFailure


@dataclass(frozen=True, slots=True)
class SiteLevel:
    """What a federation has spent, by then and over all its runs, of the privacy of each site as a whole."""

    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """How much each site counted in one round: by site and network, its share of that network's step, in [0, 1].

    Only networks that were sent after the round are in it.
    """

    shares: Mapping[str, Mapping[str, float]]
    """By what each site's step was multiplied: less than its share if its step was shortened."""
    planned: Mapping[str, Mapping[str, float]]
    """The shares if every site that was ever heard of had taken part, and none had been left out."""
    site_level: SiteLevel | None = None
    """Only under ``privacy=site``; then nobody but the coordinator may see the shares."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Scans of one step; a site without a kind of scan has none of it (N = 0).

    Shapes: ``abnormal``, ``normal`` and ``unlabelled`` (N, 1, H, W) in [-1, 1], each with its own N;
    ``diseases`` (N, K) in {0, 1}, the diseases of each abnormal scan.
    """

    abnormal: Tensor
    normal: Tensor
    diseases: Tensor
    unlabelled: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the same scans on ``device``."""
        return Batch(
            self.abnormal.to(device), self.normal.to(device), self.diseases.to(device), self.unlabelled.to(device)
        )
