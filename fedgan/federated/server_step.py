"""How the coordinator moves trained tensors by what the sites agreed on; nothing else may go through here.

Running variances would become negative and spectral-norm vectors lose their length under any momentum.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Move(Protocol):
    """From the sites' mean step to the one that is taken. It is asked for parts of a tensor, each (M,) in float64."""

    @property
    def remembers(self) -> Mapping[str, float]:
        """Return what is remembered of each number from round to round, by name, and its value before the first."""
        ...

    def __call__(self, step: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Return the step to take, and what to remember, in the order of ``remembers``."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Take a share of the mean step: all of it is FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""

    share: float = 1.0

    @property
    def remembers(self) -> Mapping[str, float]:
        """Return nothing."""
        return {}

    def __call__(self, step: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Return the step."""
        return (self.share * step,) if self.share != 1 else (step,)


@dataclass(frozen=True, slots=True)
class Momentum:
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335): the sum of past steps, each worth ``momentum`` of the next."""

    rate: float
    momentum: float

    @property
    def remembers(self) -> Mapping[str, float]:
        """Return the sum of past steps."""
        return {"momentum": 0.0}

    def __call__(self, step: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Return the step, and the sum with it."""
        kept = self.momentum * remembered[0] + step
        return self.rate * kept, kept


@dataclass(frozen=True, slots=True)
class Adaptive:
    """FedAdam (Reddi et al. 2021, arXiv:2003.00295, alg. 2): steps measured by their own size over the rounds."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    """Called tau there: what a step is measured by at least."""

    @property
    def remembers(self) -> Mapping[str, float]:
        """Return the two moments."""
        return {"momentum": 0.0, "variance": self.epsilon**2}

    def __call__(self, step: Tensor, *remembered: Tensor) -> tuple[Tensor, ...]:
        """Return the step, and the two moments with it."""
        first, second = remembered
        mean = self.betas[0] * first + (1 - self.betas[0]) * step
        square = self.betas[1] * second + (1 - self.betas[1]) * step.square()
        return self.rate * mean / (square.sqrt() + self.epsilon), mean, square
