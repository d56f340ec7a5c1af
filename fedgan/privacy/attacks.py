"""What an attacker achieves: telling who was trained on (membership), and seeing scans in gradients (inversion).

He is given all that a promise allows him: the networks before and after training, everybody's scans, and of a single
step the gradient itself with all chance but the noise. What he then finds bounds from below what a run gives away.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.stats import binom
from torch import Tensor, nn

from fedgan.gan.method import Method
from fedgan.privacy.chance import secret_uniform
from fedgan.privacy.dp_sgd import Patient
from fedgan.records import Batch

CONFIDENCE = 0.95
"""With which a bound on epsilon holds."""

MOST_TRIED = 500
"""Patients of a site whose coins are tossed; any others are trained on."""

SHARES = (1.0, 0.5, 0.125)
"""Of the patients, how many are guessed about: all, or those at both ends; chosen before any score is seen."""

LOOKS = 4
"""How often each patient's loss is found, each time with other chance."""

STEPS, STEP = 300, 0.1
"""Of a reconstruction: how many, and the first one's length in units of [-1, 1]."""

SMOOTH = 1e-3
"""Weight of a reconstruction's total variation beside a cosine."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """How often an attacker said of a patient that he was trained on, or that he was left out, and was right."""

    patients: int
    """Who might have been guessed about: each was kept or left out by a fair coin."""
    made: int
    right: int


def toss(patients: int) -> tuple[bool | None, ...]:
    """Return whether each patient is kept, by fair coins that nobody can replay; None where no coin is tossed."""
    tried = set(secret_uniform(patients).argsort()[:MOST_TRIED].tolist())
    heads = (secret_uniform(patients) < 0.5).tolist()
    return tuple(kept if number in tried else None for number, kept in enumerate(heads))


def loss_of(method: Method, batch: Batch, rng: torch.Generator) -> Tensor:
    """Return what critics descend for one patient's scans, or generators where critics learn nothing of them.

    Critics are looked at first because real scans are what they learn by heart (Hayes et al. 2019, arXiv:1705.07663).
    """
    terms = method.critic_terms(method.imagine(batch, rng, for_critics=True), rng)
    terms = terms or method.generator_terms(method.imagine(batch, rng), rng)
    return sum(terms.values(), torch.zeros(()))


def losses_of(method: Method, patients: Sequence[Patient]) -> Tensor:
    """Return each patient's loss, the mean over ``LOOKS`` draws of chance that are the same for all: (P,) float64."""
    rng = torch.Generator()
    looks = [
        [loss_of(method, patient(rng.manual_seed(look)), rng).item() for look in range(LOOKS)] for patient in patients
    ]
    return torch.tensor(looks, dtype=torch.float64).view(-1, LOOKS).mean(dim=1)


def member_scores(before: Tensor, after: Tensor, kinds: Sequence[Hashable]) -> Tensor:
    """Return how much like one who was trained on each patient looks: by how much training lowered his loss.

    That is how far the weights have moved along his gradients, added up over their path; the loss before stands for how
    hard his scans are (Watson et al. 2022, arXiv:2111.08440). It is told in standard deviations among patients of the
    same kind, as some kinds' losses fall farther.

    Shapes: losses and result (P,).

    >>> member_scores(torch.tensor([3.0, 3.0, 9.0]), torch.tensor([1.0, 2.0, 1.0]), ["ill", "ill", "well"])
    tensor([ 1., -1.,  0.])
    """
    scores = before - after
    for kind in set(kinds):
        same = torch.tensor([other == kind for other in kinds])
        centred = scores[same] - scores[same].mean()
        scores[same] = centred / centred.std(correction=0).clamp(min=1e-12)
    return scores


def guess(scores: Tensor, kept: Tensor, share: float) -> Guesses:
    """Guess of half of that ``share``, who score highest, that they were kept, and of the other half the opposite.

    >>> guess(torch.tensor([0.9, 0.1, 0.8, 0.4]), torch.tensor([True, False, False, True]), 0.5)
    Guesses(patients=4, made=2, right=2)
    """
    each = int(share * len(scores) / 2)
    order = scores.argsort()
    right = int((~kept[order[:each]]).sum() + kept[order[len(order) - each :]].sum())
    return Guesses(len(scores), 2 * each, right)


def likelihood(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    r"""Return the most likely that so many guesses are right of what is (epsilon, delta)-private for each patient.

    :math:`P[W \geq v] + 2 m \delta \max_i P[v - i \leq W < v] / i` for v right of r guesses about m patients in one
    run, with :math:`W \sim \mathrm{Bin}(r, 1 / (1 + e^{-\epsilon}))` (Steinke et al. 2023, arXiv:2305.08846, thm 5.2).

    >>> likelihood(Guesses(10, 10, 10), epsilon=0, delta=0) == 2**-10
    True
    """
    rate = 1 / (1 + math.exp(-epsilon))
    below = np.arange(1, guesses.right + 1)
    reached = binom.pmf(guesses.right - below, guesses.made, rate).cumsum() / below
    slack = 2 * guesses.patients * delta * reached.max(initial=0)
    return min(1.0, float(binom.sf(guesses.right - 1, guesses.made, rate) + slack))


def epsilon_at_least(guesses: Guesses, *, delta: float, error: float = 1 - CONFIDENCE) -> float:
    """Return the epsilon below which so many right guesses have less than ``error`` likelihood, or 0.

    >>> round(epsilon_at_least(Guesses(100, 100, 100), delta=0), 2)
    3.49
    """

    def excess(epsilon: float) -> float:
        return likelihood(guesses, epsilon=epsilon, delta=delta) - error

    if excess(0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 0, high))


def best_guess(scores: Tensor, kept: Tensor, *, delta: float) -> tuple[Guesses, float]:
    """Return the guesses that tell most, of those about each of ``SHARES``, and their lower bound on epsilon.

    As many are tried, each has only its part of the error.
    """
    error = (1 - CONFIDENCE) / len(SHARES)
    tried = [guess(scores, kept, share) for share in SHARES]
    bounds = [epsilon_at_least(guesses, delta=delta, error=error) for guesses in tried]
    best = bounds.index(max(bounds))
    return tried[best], bounds[best]


def most_shown(patients: int, *, delta: float) -> float:
    """Return the lower bound on epsilon of an attacker who is right about all of so many patients: none is higher.

    >>> round(most_shown(100, delta=1e-3), 1)
    2.4
    """
    ranks = torch.arange(patients)
    return best_guess(ranks, ranks >= patients // 2, delta=delta)[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One step on one patient's scan, which an attacker can repeat with any other scan in its place."""

    method: Method
    batch_of: Callable[[Tensor], Batch]
    """Puts a scan (1, 1, H, W) where the patient's was."""
    moved: Sequence[nn.Parameter]
    """What the step moves."""

    @classmethod
    def on(cls, method: Method, batch_of: Callable[[Tensor], Batch], scan: Tensor) -> "Step":
        """Return the step that ``method`` takes on a scan of its kind."""
        parameters = [*method.critics(), *method.generators()]
        loss = loss_of(method, batch_of(scan), torch.Generator().manual_seed(0))
        gradients: Sequence[Tensor | None] = torch.autograd.grad(loss, parameters, allow_unused=True)
        moved = [parameter for parameter, found in zip(parameters, gradients, strict=True) if found is not None]
        return cls(method, batch_of, moved)

    def gradient(self, scan: Tensor) -> Tensor:
        """Return the gradient of the step as one vector, which can be differentiated by the scan."""
        loss = loss_of(self.method, self.batch_of(scan), torch.Generator().manual_seed(0))
        parts = torch.autograd.grad(loss, self.moved, create_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])


def reconstruct(step: Callable[[Tensor], Tensor], seen: Tensor, like: Tensor, *, steps: int = STEPS) -> Tensor:
    """Return a scan whose gradient has the direction of the one that was ``seen``, starting from grey.

    Gradient matching (Zhu et al. 2019, arXiv:1906.08935) by cosine and total variation, with the signs of its own
    gradient (Geiping et al. 2020, arXiv:2003.14053, eq. 4).

    Args:
        step: from a scan to the gradient that it gives.
        seen: the gradient in question, as it is or as it was released.
        like: any scan of the same shape, of which only that counts.
        steps: of the search.

    Shapes: scans (1, 1, H, W) in [-1, 1].
    """
    scan = torch.zeros_like(like).requires_grad_()
    search = torch.optim.Adam([scan], STEP)
    ever_shorter = torch.optim.lr_scheduler.CosineAnnealingLR(search, steps)
    for _ in range(steps):
        apart = 1 - torch.nn.functional.cosine_similarity(step(scan), seen, dim=0)
        rough = scan.diff(dim=-1).abs().mean() + scan.diff(dim=-2).abs().mean()
        (slope,) = torch.autograd.grad(apart + SMOOTH * rough, scan)
        scan.grad = slope.sign()
        search.step()
        ever_shorter.step()
        with torch.no_grad():
            scan.clamp_(-1, 1)
    return scan.detach()


def psnr(scan: Tensor, recovered: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB of scans in [-1, 1].

    >>> round(psnr(torch.zeros(1, 4), torch.full((1, 4), 0.2)), 3)
    20.0
    """
    return 10 * math.log10(4 / max(1e-12, float((scan - recovered).square().mean())))
