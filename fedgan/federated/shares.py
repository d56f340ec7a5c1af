"""How much each site counts: shares of one network, from the scans that train it there."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShareRule:
    """From counts of scans to shares that sum to 1."""

    exponent: float = 1.0
    """A site counts by its number of scans to this power: 1 in proportion, 0 all alike."""
    cap: float = 1.0
    """Largest share of one site; with fewer sites than 1 / cap, all are alike."""
    floor: float = 0.0
    """Smallest share of a site that has scans at all; with more sites than 1 / floor, all are alike."""


def shares(counts: Sequence[float], rule: ShareRule) -> list[float]:
    r"""Return each site's share: :math:`\min(\max(\lambda n_k^\tau, floor), cap)` with the one scale that sums to 1.

    A site without scans has share 0; where no site has any, all have.

    >>> shares([10, 30, 0], ShareRule())
    [0.25, 0.75, 0.0]
    >>> shares([10, 10, 80], ShareRule(cap=0.5))
    [0.25, 0.25, 0.5]
    >>> shares([1, 49, 50], ShareRule(floor=0.1))[0]
    0.1
    """
    sizes = [float(count) ** rule.exponent if count else 0.0 for count in counts]
    num_sites = sum(size > 0 for size in sizes)
    if not num_sites:
        return [0.0] * len(sizes)
    low, high = min(rule.floor, 1 / num_sites), max(rule.cap, 1 / num_sites)

    def clipped(scale: float) -> list[float]:
        return [min(max(scale * size, low), high) if size else 0.0 for size in sizes]

    free = 1 / sum(sizes)
    if all(low <= free * size <= high for size in sizes if size):
        return [free * size for size in sizes]
    # The sum of clipped shares rises in straight pieces between the scales at which one of them meets a bound.
    bends = sorted(bound / size for size in sizes if size for bound in (low, high))
    after = next((bend for bend in bends if sum(clipped(bend)) >= 1), bends[-1])
    before = max((bend for bend in bends if sum(clipped(bend)) < 1), default=after)
    if before == after:
        return clipped(after)
    reached, ended = sum(clipped(before)), sum(clipped(after))
    return clipped(before + (after - before) * (1 - reached) / (ended - reached))
