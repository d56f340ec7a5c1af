"""Which tensors a site sends, and after which rounds; what it does not send stays with it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fedgan.records import Weights


@dataclass(frozen=True, slots=True)
class Sharing:
    """What leaves a site; coordinator and sites hold the same one."""

    rounds: int
    """Of the run: after the last, all that is ever sent is sent."""
    every: Mapping[str, int]
    """Tensor to the number of rounds from one sending to the next; a tensor that is never sent is missing."""
    kept: frozenset[str] = frozenset()
    """Tensors that a site always goes on with by itself, sent or not."""

    def sent_after(self, number: int) -> frozenset[str]:
        """Return which tensors a site sends when it has trained in round ``number``, counted from 0.

        >>> sorted(Sharing(9, {"generator": 1, "critic": 2}).sent_after(0))
        ['generator']
        >>> sorted(Sharing(9, {"generator": 1, "critic": 2}).sent_after(1))
        ['critic', 'generator']
        """
        last = number + 1 >= self.rounds
        return frozenset(name for name, rounds in self.every.items() if last or (number + 1) % rounds == 0)

    def still_own(self, own: Weights, since: int, number: int) -> Weights:
        """Return which tensors a site goes on with in round ``number`` of those it kept for round ``since``.

        What all have sent in a round that the site missed is the coordinator's again.
        """
        sent = {name for missed in range(since, number) for name in self.sent_after(missed)}
        return {name: tensor for name, tensor in own.items() if name in self.kept or name not in sent}

    def own_after(self, number: int) -> frozenset[str]:
        """Return with which tensors a site goes on by itself after round ``number``."""
        return frozenset(self.every) - self.sent_after(number) | self.kept
