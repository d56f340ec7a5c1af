"""One local step of an adversarial game, and a run of them; it knows no site, no file and no federation."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from fedgan.errors import Diverged
from fedgan.gan.method import Method
from fedgan.records import Batch

OnStep = Callable[[int, Mapping[str, float]], None]
"""Told the number of the step just taken (from 1) and its losses."""


@dataclass(frozen=True, slots=True)
class Players:
    """The two sides' optimisers, new each round; what they keep of the last one goes through ``moments_of``."""

    critics: Optimizer
    generators: Optimizer
    arithmetic: Callable[[], AbstractContextManager[object]]
    """Entered around every forward pass: mixed precision, or nothing."""


class ProximalAdam(Adam):
    r"""Adam on a loss with :math:`\frac\mu2\|w - w_0\|^2` of the weights it starts from.

    FedProx (Li et al. 2020, arXiv:1812.06127, eq. 2), which keeps sites of different scans from drifting apart.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], learning_rate: float, *, betas: tuple[float, float], prox: float
    ) -> None:
        """Start from the parameters as they are; ``prox`` is called mu there, and 0 is Adam itself."""
        self.prox = prox
        self.moved = list(parameters)
        self.start = [parameter.detach().clone() for parameter in self.moved] if prox else []
        super().__init__(self.moved, learning_rate, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; a parameter without a gradient stays where it is."""
        if self.prox:
            for parameter, start in zip(self.moved, self.start, strict=True):
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - start, alpha=self.prox)
        super().step()


def players_for(
    method: Method,
    *,
    learning_rate: float,
    critic_learning_rate: float,
    bfloat16: bool,
    betas: tuple[float, float] = (0.5, 0.99),
    prox: tuple[float, float] = (0.0, 0.0),
) -> Players:
    """Return Adam (Kingma and Ba 2015, arXiv:1412.6980) for both sides; ``prox`` of the generators, of the critics."""
    device = next(iter(method.generators())).device.type
    return Players(
        critics=ProximalAdam(method.critics(), critic_learning_rate, betas=betas, prox=prox[1]),
        generators=ProximalAdam(method.generators(), learning_rate, betas=betas, prox=prox[0]),
        arithmetic=partial(torch.autocast, device, torch.bfloat16, enabled=bfloat16),
    )


def moments_of(players: Players) -> Mapping[str, Tensor]:
    """Return a copy of both optimisers' state by name, on the CPU: steps taken, first and second moments."""
    return {
        f"{side}/{number}/{name}": tensor.detach().cpu().clone()
        for side, optimizer in (("critics", players.critics), ("generators", players.generators))
        for number, parameter in enumerate(optimizer.param_groups[0]["params"])
        for name, tensor in optimizer.state[parameter].items()
    }


def take_over(players: Players, moments: Mapping[str, Tensor], *, first: bool) -> None:
    """Let new optimisers go on with the ``moments`` of earlier ones, with their first moments only if asked to.

    The second moment says how long steps are; the first points where the site went last, away from where the others
    have moved the weights since.
    """
    for side, optimizer in (("critics", players.critics), ("generators", players.generators)):
        for number, parameter in enumerate(optimizer.param_groups[0]["params"]):
            start = f"{side}/{number}/"
            kept = {name.removeprefix(start): tensor for name, tensor in moments.items() if name.startswith(start)}
            if kept:
                optimizer.state[parameter] = {
                    name: (tensor if first or name != "exp_avg" else torch.zeros_like(tensor)).to(parameter.device)
                    for name, tensor in kept.items()
                }


def gan_step(method: Method, players: Players, batches: Sequence[Batch], rng: torch.Generator) -> Mapping[str, float]:
    """Take a step of the critics on each of ``batches``, then one of the generators on the last.

    Returns each term's value, of the critics on the last batch.

    Raises:
        Diverged: a loss is not a finite number.
    """
    *earlier, last = batches
    for batch in earlier:
        with torch.no_grad(), players.arithmetic():
            scene = method.imagine(batch, rng)
        with players.arithmetic():
            critic_terms = method.critic_terms(scene, rng)
        descend(players.critics, critic_terms)

    with players.arithmetic():
        scene = method.imagine(last, rng)
        critic_terms = method.critic_terms(scene, rng)
    descend(players.critics, critic_terms)

    with players.arithmetic():
        generator_terms = method.generator_terms(scene, rng)
    descend(players.generators, generator_terms)

    method.follow()
    terms = {f"critic_{name}": term for name, term in critic_terms.items()} | dict(generator_terms)
    return {name: term.item() for name, term in terms.items()}


def descend(optimizer: Optimizer, terms: Mapping[str, Tensor]) -> None:
    """Move one step down the sum of ``terms``; no terms, no step.

    Raises:
        Diverged: a term is not a finite number.
    """
    if not terms:
        return
    for name, term in terms.items():
        if not torch.isfinite(term):
            raise Diverged(
                f"the loss {name} became {term.item()}; the coordinator must start a run with a lower learning rate"
            )
    moved = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(torch.stack(list(terms.values())).sum(), inputs=moved)
    optimizer.step()


def train(
    method: Method,
    players: Players,
    batches: Iterable[Batch],
    *,
    rng: torch.Generator,
    critic_steps: int = 1,
    on_step: OnStep = lambda step, losses: None,
) -> Mapping[str, float]:
    """Take one local step on every ``critic_steps`` of ``batches`` and return each loss's mean over the steps.

    Raises:
        Diverged: a loss is not a finite number.
    """
    totals: dict[str, float] = defaultdict(float)
    step = 0
    for step, seen in enumerate(zip(*[iter(batches)] * critic_steps, strict=True), start=1):
        losses = gan_step(method, players, seen, rng)
        for name, loss in losses.items():
            totals[name] += loss
        on_step(step, losses)
    return {name: total / step for name, total in totals.items()}
