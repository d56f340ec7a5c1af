"""How the coordinator moves trained tensors by what the sites agreed on; nothing else may go through here.

Running variances would become negative and spectral-norm vectors lose their length under any momentum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from fedgan.records import Weights

Move = Callable[[str, Tensor, Weights], tuple[Tensor, Mapping[str, Tensor]]]
"""From a tensor's name, the sites' mean step (float64) and the memory: the step to take and what to remember."""


def as_agreed(name: str, step: Tensor, memory: Weights) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Take the mean step itself: FedAvg (McMahan et al. 2017, arXiv:1602.05629)."""
    return step, {}


@dataclass(frozen=True, slots=True)
class Momentum:
    """FedAvgM (Hsu et al. 2019, arXiv:1909.06335): the sum of past steps, each worth ``momentum`` of the next."""

    rate: float
    momentum: float

    def __call__(self, name: str, step: Tensor, memory: Weights) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the step and the momentum to remember."""
        key = f"momentum/{name}"
        kept = memory[key].double().view_as(step) * self.momentum + step if key in memory else step
        return self.rate * kept, {key: kept.float()}


@dataclass(frozen=True, slots=True)
class Adaptive:
    """FedAdam (Reddi et al. 2021, arXiv:2003.00295, alg. 2): steps measured by their own size over the rounds."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    """Called tau there: what a step is measured by at least."""

    def __call__(self, name: str, step: Tensor, memory: Weights) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the step and the two moments to remember."""
        (first, second), (slow, slower) = (f"momentum/{name}", f"variance/{name}"), self.betas
        mean = (1 - slow) * step
        square = (1 - slower) * step.square()
        if first in memory:
            mean += slow * memory[first].double().view_as(step)
            square += slower * memory[second].double().view_as(step)
        else:
            square += slower * self.epsilon**2
        return self.rate * mean / (square.sqrt() + self.epsilon), {first: mean.float(), second: square.float()}
