"""What crosses a boundary: small frozen records, and nothing that needs a network or a file."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Named tensors of a model."""


@dataclass(frozen=True, slots=True)
class GlobalModel:
    """The coordinator's model after ``round`` completed rounds; 0 is untrained."""

    round: int
    weights: Weights


@dataclass(frozen=True, slots=True)
class RoundTask:
    """What the coordinator asks of every site in one round.

    With ``local_steps`` 0 a site only scores the model on its validation patients and sends no delta.
    """

    model: GlobalModel
    local_steps: int


@dataclass(frozen=True, slots=True)
class SiteUpdate:
    """What one site answers: how it would move the weights, and how many images say so.

    ``metrics`` are bounded figures by name: mean losses of the round (``loss/...``) and scores of the
    model as it was *received*, on the site's validation patients (``validation/...``).
    """

    site: str
    round: int
    delta: Weights
    num_images: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SiteFailure:
    """Why one site did not train: the class of the refusal, never its details."""

    site: str
    round: int
    reason: str


Answer = SiteUpdate | SiteFailure


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
