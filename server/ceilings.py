"""How often somebody may ask: a bucket of tokens for each, refilled as time passes."""

import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KNOWN = 4096
"""Of how many the levels are kept; beyond, the one who has not asked for longest is forgotten."""


class Ceiling:
    """At most ``burst`` requests at once and ``per_s`` a second for long, for each who asks.

    >>> ceiling = Ceiling(per_s=1, burst=2, clock=iter([0.0, 0.0, 0.0, 1.5]).__next__)
    >>> [ceiling.allows("192.0.2.7") for _ in range(4)]
    [True, True, False, True]
    """

    def __init__(self, *, per_s: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Take the two rates."""
        self._per_s = per_s
        self._burst = burst
        self._clock = clock
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, who: str) -> bool:
        """Return whether ``who`` may ask now, and count it if so."""
        now = self._clock()
        level, then = self._levels.pop(who, (self._burst, now))
        level = min(self._burst, level + (now - then) * self._per_s)
        allowed = level >= 1
        self._levels[who] = (level - allowed, now)
        if len(self._levels) > MOST_KNOWN:
            self._levels.popitem(last=False)
        return allowed
