"""Before a private run: how much noise a wanted epsilon takes, and how many patients make sense of that much noise."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from fedgan.errors import SettingsError
from fedgan.privacy.accounting import PRV_UP_TO, Releases, epsilon_of, rdp_epsilon

LEAST_NOISE, MOST_NOISE = 0.2, 1000.0
"""Between which noise is looked for, in clipping norms."""

CLOSE_ENOUGH = 1.005
"""Ratio of too much noise to too little at which the search ends, on the side of too much."""

MOST_PATIENTS, MOST_RELEASES = 1_000_000, 10_000
"""Of a site, and of a run, that may be planned for."""

Cost = Callable[..., float]
"""From a history and ``delta`` to an epsilon."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How a private run looks at a site's patients."""

    cohort: int
    """Training patients of a site, as all may know; whoever has more or fewer is drawn from at the same rate."""
    patients: int
    """Of them, how many a draw has on average."""
    releases: int
    """Noisy gradients in the whole run, each over a draw of its own."""

    @property
    def rate(self) -> float:
        """Return the probability with which a patient is drawn."""
        return self.patients / self.cohort


@cache
def noise_for(epsilon: float, *, delta: float, draws: Draws) -> float:
    """Return the least noise, to half a percent, with which the whole run costs at most ``epsilon``.

    >>> 1.25 < noise_for(3.0, delta=1e-3, draws=Draws(cohort=100, patients=10, releases=100)) < 1.35
    True

    Raises:
        SettingsError: no noise up to ``MOST_NOISE`` is enough.
    """
    enough = _least_noise(rdp_epsilon, epsilon, delta, draws, between=(LEAST_NOISE, MOST_NOISE))
    if epsilon > PRV_UP_TO:
        return enough
    return _least_noise(epsilon_of, epsilon, delta, draws, between=(max(LEAST_NOISE, 0.75 * enough), enough))


def _least_noise(cost: Cost, epsilon: float, delta: float, draws: Draws, *, between: tuple[float, float]) -> float:
    """Return the least noise ``between`` two that ``cost`` finds affordable; the larger is, or there is none."""
    low, high = between

    def affordable(noise: float) -> bool:
        return cost([Releases(noise, draws.rate, draws.releases)], delta=delta) <= epsilon

    if not affordable(high):
        raise SettingsError(
            f"privacy: epsilon {epsilon:g} cannot be kept over {draws.releases} releases with any sensible noise; "
            "give a larger epsilon, or fewer rounds and steps"
        )
    while high / low > CLOSE_ENOUGH:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if affordable(middle) else (middle, high)
    return high


def noise_to_signal(noise: float, *, draws: Draws, num_parameters: int) -> float:
    r"""Return :math:`\sigma \sqrt{d / T} / B`: how long all of a run's noise is beside the longest signal there can be.

    The signal adds up over the T releases where every patient's gradient, of the length it is clipped to, points the
    same way; the noise in d parameters does as a random walk does. Far above 1 the run ends where chance leads it.

    >>> noise_to_signal(1.0, draws=Draws(1000, 100, 400), num_parameters=1_000_000)
    0.5
    """
    return noise * math.sqrt(num_parameters / draws.releases) / draws.patients


def smallest_cohort(epsilon: float, *, patients: int, releases: int, num_parameters: int) -> int | None:
    """Return about the fewest training patients of a site with which the noise does not outweigh the signal.

    At each size delta is a tenth of one over the patients, as is customary. Nothing is returned where a million are
    too few: then it takes larger draws, a smaller network, or a larger epsilon.
    """

    def sensible(cohort: int) -> bool:
        draws = Draws(cohort, patients, releases)
        return _drowns_nothing(epsilon, largest_delta(cohort), draws, num_parameters)

    return _fewest(sensible, patients, MOST_PATIENTS)


def fewest_releases(epsilon: float, *, delta: float, cohort: int, patients: int, num_parameters: int) -> int | None:
    """Return about the fewest noisy gradients of a whole run with which the noise does not outweigh the signal.

    More of them take more noise each, yet the signal gains on it, ever less: where ten thousand are too few, nothing is
    returned.
    """

    def sensible(releases: int) -> bool:
        return _drowns_nothing(epsilon, delta, Draws(cohort, patients, releases), num_parameters)

    return _fewest(sensible, 1, MOST_RELEASES)


def _drowns_nothing(epsilon: float, delta: float, draws: Draws, num_parameters: int) -> bool:
    """Return whether noise as long as the longest signal there can be, see ``noise_to_signal``, keeps ``epsilon``."""
    noise = draws.patients * math.sqrt(draws.releases / num_parameters)
    releases = Releases(min(noise, MOST_NOISE), draws.rate, draws.releases)
    return noise >= LEAST_NOISE and rdp_epsilon([releases], delta=delta) <= epsilon


def _fewest(sensible: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return about the least number that is ``sensible``, as all above it are, or nothing where ``high`` is not."""
    if not sensible(high):
        return None
    if sensible(low):
        return low
    while high > max(1.05 * low, low + 1):
        middle = math.isqrt(low * high - 1) + 1  # between the two, also where they are small
        low, high = (low, middle) if sensible(middle) else (middle, high)
    return high


def largest_delta(cohort: int) -> float:
    """Return the largest delta that can be called a promise to each of so many patients.

    >>> largest_delta(100)
    0.001
    """
    return 1 / (10 * cohort)
