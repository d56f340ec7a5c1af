r"""Training that no single patient can change much: DP-SGD (Abadi et al. 2016, arXiv:1607.00133) for both players.

A player's step is one release: every patient is drawn with the same probability, on his own; each drawn patient's
gradient is clipped to norm C; normal noise of standard deviation :math:`\sigma C` is added to their sum, which is
divided by a constant. The unit is a patient with all his scans, added or removed. What keeps this true:

* A patient's loss looks at his own scans alone, whatever its terms and forward passes, and gives one gradient, found by
  ``fedgan.privacy.gradients`` without hooks, so that spectral norms and gradient penalties stay possible.
* Players never share a draw, so that each release is charged by itself.
* Draws and noise come from ``fedgan.privacy.chance``. An empty draw is a step of noise alone.
* Spectral-norm vectors rest during a step, or the number of patients drawn would show in them.
* All is computed in float32: in bfloat16, who else is drawn moves a patient's clipped gradient by hundredths of C.
* A gradient that is not finite counts as zero; a refusal would tell that somebody's was not.

What comes of the noisy gradients, as Adam's moments and moving averages, costs nothing more. How long a step takes does
tell how many were drawn, and so does a site that stops because a task took longer than it allows.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.optim import Optimizer

from fedgan.gan.method import Method
from fedgan.gan.training import OnStep, Players
from fedgan.privacy.accounting import Releases
from fedgan.privacy.chance import secret_normal, secret_stream, secret_uniform
from fedgan.privacy.gradients import Loss, gradients_of
from fedgan.records import Batch, ScanCounts

Patient = Callable[[torch.Generator], Batch]
"""Makes a batch of one patient's scans, drawing on a stream of his own."""


@dataclass(frozen=True, slots=True)
class Mechanism:
    """How a run draws patients and what it does to their gradients, in every release."""

    noise: float
    """Standard deviation of the noise, in multiples of ``clip``."""
    clip: float
    """Largest Euclidean norm of a patient's gradient, over all parameters of a player."""
    rate: float
    """Probability with which a patient is drawn."""
    patients: float
    """What sums are divided by: a constant, because the number drawn must not show."""
    critic_steps: int = 1
    """Releases of the critics in one local step; the generators then have one."""

    def releases(self, steps: int) -> Releases:
        """Return what so many local steps release."""
        return Releases(self.noise, self.rate, steps * (self.critic_steps + 1))


def train_privately(
    method: Method,
    players: Players,
    patients: Sequence[Patient],
    mechanism: Mechanism,
    *,
    steps: int,
    on_step: OnStep = lambda step, losses: None,
) -> None:
    """Take local steps, which are ``mechanism.releases(steps)``; ``method`` is built for batches of one patient."""
    networks = cast("nn.Module", method).eval()
    critics, generators = (trained(method, _moved_by(each)) for each in (players.critics, players.generators))
    of_critics, of_generators = _loss_of_critics(method), _loss_of_generators(method)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for step in range(1, steps + 1):
            for _ in range(mechanism.critic_steps):
                gradients = gradients_of(of_critics, critics, drawn(patients, mechanism.rate))
                release(players.critics, critics, gradients, mechanism)
                refresh_spectral_norms(networks)
            gradients = gradients_of(of_generators, generators, drawn(patients, mechanism.rate))
            release(players.generators, generators, gradients, mechanism)
            method.follow()
            on_step(step, {})
    networks.train()


def trained(method: Method, player: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Return the player's parameters of the networks that some term trains, whoever is drawn; others never move."""
    scans = method.driven_by(ScanCounts(1, 1, 1))
    named = cast("nn.Module", method).named_parameters()
    driven = {parameter for name, parameter in named if any(scans.get(name.partition(".")[0], ()))}
    return [parameter for parameter in player if parameter in driven]


def drawn(patients: Sequence[Patient], rate: float) -> Iterator[Batch]:
    """Yield scans of each patient with probability ``rate``, independently of the others: a Poisson draw."""
    chosen = secret_uniform(len(patients)) < rate
    return (patients[index](secret_stream()) for index in chosen.nonzero()[:, 0].tolist())


def release(
    optimizer: Optimizer, moved: Sequence[nn.Parameter], gradients: Iterable[Tensor], mechanism: Mechanism
) -> None:
    """Take a step of ``optimizer`` down the noisy sum of the patients' clipped gradients; see ``noisy_sum``."""
    noisy = noisy_sum(gradients, moved, mechanism)
    optimizer.zero_grad(set_to_none=True)
    parts = torch.split(noisy / mechanism.patients, [parameter.numel() for parameter in moved])
    for parameter, part in zip(moved, parts, strict=True):
        parameter.grad = part.view_as(parameter)
    optimizer.step()


def clipped(gradients: Tensor, clip: float) -> Tensor:
    """Return each row shortened to norm ``clip`` if it is longer, or nothing but zeros if it is not finite.

    Shapes: ``gradients`` (..., numbers), a patient a row; result likewise, in float64.

    >>> clipped(torch.tensor([3.0, 4.0]), 1.0).norm() <= 1
    tensor(True)
    >>> clipped(torch.tensor([[float("nan"), 1.0], [0.0, 1.0]]), 2.0)
    tensor([[0., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    norms = torch.linalg.vector_norm(gradients, dim=-1, keepdim=True, dtype=torch.float64)
    share = (clip / norms * (1 - 1e-6)).clamp(max=1)  # rounding must not lengthen it again
    return torch.where(norms.isfinite(), gradients * share, 0)


def noisy_sum(gradients: Iterable[Tensor], moved: Sequence[nn.Parameter], mechanism: Mechanism) -> Tensor:
    """Return the sum of the clipped ``gradients`` and of the noise, added in float64 and then rounded to float32.

    Shapes: of ``gradients`` (numbers,) or (patients, numbers), of the result (numbers,): those of ``moved``.
    """
    size = sum(parameter.numel() for parameter in moved)
    total = torch.zeros(size, dtype=torch.float64, device=moved[0].device)
    for some in gradients:
        total += clipped(some, mechanism.clip).view(-1, size).sum(dim=0)
    noise = mechanism.noise * mechanism.clip * secret_normal(size).to(total.device)
    return (total + noise).float()


def refresh_spectral_norms(networks: nn.Module) -> None:
    """Take one power iteration of each spectral norm (Miyato et al. 2018, arXiv:1802.05957), from its weight alone."""
    with torch.no_grad():
        for module in networks.modules():
            if is_parametrized(module):
                module.train()
                for name in cast("nn.ModuleDict", module.parametrizations):
                    getattr(module, name)
                module.eval()


def _loss_of_critics(method: Method) -> Loss:
    def terms(batch: Batch, rng: torch.Generator) -> Iterable[Tensor]:
        with torch.no_grad():
            scene = method.imagine(batch, rng, for_critics=True)
        return method.critic_terms(scene, rng).values()

    return Loss(method, terms)


def _loss_of_generators(method: Method) -> Loss:
    def terms(batch: Batch, rng: torch.Generator) -> Iterable[Tensor]:
        return method.generator_terms(method.imagine(batch, rng), rng).values()

    return Loss(method, terms)


def _moved_by(optimizer: Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])
