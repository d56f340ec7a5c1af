"""Which tensors a site sends, and after which rounds; what it does not send stays with it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

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
    beside: Mapping[str, int] = field(default_factory=dict)
    """The same as ``every`` of tensors that the coordinator finds from those sent: these are not, but stay as long."""

    def sent_after(self, number: int) -> frozenset[str]:
        """Return which tensors a site sends when it has trained in round ``number``, counted from 0.

        >>> sorted(Sharing(9, {"generator": 1, "critic": 2}).sent_after(0))
        ['generator']
        >>> sorted(Sharing(9, {"generator": 1, "critic": 2}).sent_after(1))
        ['critic', 'generator']
        """
        return self._due_after(number, self.every)

    def still_own(self, own: Weights, since: int, number: int) -> Weights:
        """Return which tensors a site goes on with in round ``number`` of those it kept for round ``since``.

        What all have sent in a round that the site missed is the coordinator's again.
        """
        renewed = {name for missed in range(since, number) for name in self._due_after(missed, self._renewed)}
        return {name: tensor for name, tensor in own.items() if name in self.kept or name not in renewed}

    def own_after(self, number: int) -> frozenset[str]:
        """Return with which tensors a site goes on by itself after round ``number``."""
        return frozenset(self._renewed) - self._due_after(number, self._renewed) | self.kept

    @property
    def _renewed(self) -> Mapping[str, int]:
        """Return which tensors the coordinator ever renews, and how often."""
        return {**self.every, **self.beside}

    def _due_after(self, number: int, every: Mapping[str, int]) -> frozenset[str]:
        last = number + 1 >= self.rounds
        return frozenset(name for name, rounds in every.items() if last or (number + 1) % rounds == 0)
