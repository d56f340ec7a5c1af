"""What a history of noisy releases costs, as the epsilon of (epsilon, delta)-differential privacy; Opacus's importer.

The unit is one patient, added or removed. A release is a sum of clipped gradients, one for each patient of a Poisson
draw, with Gaussian noise. Costs compose over rounds, runs and federations, so that the whole history is always asked
about at once: an accountant that begins anew each round reports a fraction of what was spent.
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from opacus.accountants import PRVAccountant, RDPAccountant

PRV_UP_TO = 100.0
"""Epsilon beyond which the tighter accountant takes minutes to tell one meaningless promise from another."""


ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, 64, 80, 96, 128, 160, 192, 256, 384, 512]
"""Of Rényi divergences, of which the best counts; an epsilon of 0.1 takes some above 100, and Opacus stops at 63."""


@dataclass(frozen=True, slots=True)
class Releases:
    """So many noisy sums of one kind, each over a Poisson draw of its own."""

    noise: float
    """Standard deviation of the noise, in multiples of the norm to which each patient's gradient is clipped."""
    rate: float
    """Probability with which a patient is drawn, in (0, 1]."""
    count: int


NO_NOISE = Releases(noise=0.0, rate=1.0, count=1)
"""Training that promises nothing; its epsilon is infinite."""

History = Iterable[Releases]


def epsilon_of(history: History, *, delta: float) -> float:
    """Return the smallest epsilon that can be promised for all of ``history``, in any order, at ``delta``.

    The smaller of two upper bounds: Rényi differential privacy (Mironov et al. 2019, arXiv:1908.10530), and numerical
    composition (Gopi et al. 2021, arXiv:2106.02848), which is up to 15 % tighter. The central-limit accountant is
    none: it reports less than is spent.

    >>> round(epsilon_of([Releases(noise=1.0, rate=0.02, count=1000)], delta=1e-5), 2)
    3.91
    >>> epsilon_of([], delta=1e-5)
    0.0
    """
    return _epsilon_of(merged(history), delta)


@lru_cache(maxsize=256)
def _epsilon_of(found: tuple[Releases, ...], delta: float) -> float:
    if not found:
        return 0.0
    bound = rdp_epsilon(found, delta=delta)
    tighter = prv_epsilon(found, delta=delta, error=max(0.01, 0.002 * bound)) if bound <= PRV_UP_TO else None
    return bound if tighter is None else min(bound, tighter)


def merged(history: History) -> tuple[Releases, ...]:
    """Return the history with one entry for each kind of release: order costs nothing, and long histories cost time.

    >>> merged([Releases(1.0, 0.1, 2), Releases(2.0, 0.1, 1), Releases(1.0, 0.1, 3)])
    (Releases(noise=1.0, rate=0.1, count=5), Releases(noise=2.0, rate=0.1, count=1))
    """
    counts: Counter[tuple[float, float]] = Counter()
    for releases in history:
        counts[releases.noise, releases.rate] += releases.count
    return tuple(Releases(noise, rate, count) for (noise, rate), count in counts.items() if count)


def rdp_epsilon(history: History, *, delta: float) -> float:
    """Return the epsilon by Rényi differential privacy; infinite without noise."""
    accountant = RDPAccountant()
    accountant.history = [(each.noise, each.rate, each.count) for each in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an order at the edge of those tried gives a bound all the same
        epsilon = float(accountant.get_epsilon(delta, alphas=ORDERS))
    return math.inf if math.isnan(epsilon) else epsilon


def prv_epsilon(history: History, *, delta: float, error: float = 0.01) -> float | None:
    """Return the epsilon by numerical composition, at most ``error`` above the true one, or nothing where it fails.

    It is known to fail for much or hardly any noise (meta-pytorch/opacus#591, #601, #604).
    """
    accountant = PRVAccountant()
    accountant.history = [(each.noise, each.rate, each.count) for each in history]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # logarithms of what lies outside a density's support, which is masked
        try:
            epsilon = float(accountant.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError, OverflowError, MemoryError):
            return None
    return epsilon if math.isfinite(epsilon) and epsilon > 0 else None


def noise_of_shared_draw(*noises: float) -> float:
    r"""Return the noise of the one release that several on one draw amount to: :math:`(\sum \sigma_i^{-2})^{-1/2}`.

    Given the draw, they are Gaussian mechanisms composed (Dong et al. 2019, arXiv:1905.02383, cor. 3.3), and the draw
    amplifies their privacy once. Charged as releases on draws of their own, they would seem to cost far less.

    >>> round(noise_of_shared_draw(1.0, 1.0), 4)
    0.7071
    """
    return 1 / math.sqrt(sum(noise**-2 for noise in noises))
