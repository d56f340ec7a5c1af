"""Central differential privacy: noise at the coordinator that hides a site's part in a run from all who see its models.

The unit is all that one site sends in a run, added or removed. The coordinator is trusted: it sees each update as it
is. A player's mean step is a sum over sites, each site's step shortened to one norm and counted by a constant share,
whoever else answers. Each player has a norm of its own: with one for both, the noise would drown the player that moves
less, and with the players' norms equal it would be the same.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from fedgan.errors import BudgetExhausted
from fedgan.privacy.accounting import Releases
from fedgan.privacy.chance import secret_normal
from fedgan.privacy.ledger import Charge, Ledger
from fedgan.records import GlobalModel


@dataclass(frozen=True, slots=True)
class SiteNoise:
    """How far one site can move each player, and the noise that hides it."""

    noise: float
    """Standard deviation, in multiples of the sensitivity."""
    clips: Mapping[str, float]
    """By player, the Euclidean norm to which a site's step of all its trained tensors is shortened."""
    sites: int
    """How many are expected; constant, however many answer."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How many times a site counts, by name, at least once; sites without a weight count once."""

    def share_of(self, site: str) -> float:
        """Return by what a site's step is multiplied, whoever else answers.

        >>> SiteNoise(1.0, {}, sites=4, weights={"A": 2.0}).share_of("A")
        0.4
        """
        return self.weights.get(site, 1.0) / self._whole

    def sensitivity_of(self, player: str) -> float:
        """Return by how far any one site can move the mean step of a player: the largest share times its norm.

        >>> SiteNoise(1.0, {"critic": 0.5}, sites=4, weights={"A": 2.0}).sensitivity_of("critic")
        0.2
        """
        return self._largest_share * self.clips[player]

    def shortened(self, norm: float, player: str) -> float:
        """Return the factor that shortens a step of that norm to what is allowed, 1 if it is short enough.

        >>> SiteNoise(1.0, {"critic": 0.5}, sites=4).shortened(2.0, "critic")
        0.25
        """
        return min(1.0, self.clips[player] / norm) if norm else 1.0

    def hide(self, mean: Tensor, player: str) -> Tensor:
        """Return a part of a player's mean step, in float64, with noise that nobody can replay: (M,)."""
        return mean + self.noise * self.sensitivity_of(player) * secret_normal(mean.numel())

    def noise_to_signal(self, *, rounds: int, num_parameters: int) -> float:
        r"""Return :math:`\sigma s \sqrt{d / T}`: how long a run's noise is beside the longest signal there can be.

        The signal adds up over the T rounds where all sites' steps, of the norm to which they are shortened, point the
        same way; the noise in d parameters does as a random walk does; s is the largest share. Far above 1 the run ends
        where chance leads it.

        >>> SiteNoise(2.0, {}, sites=100).noise_to_signal(rounds=25, num_parameters=1_000_000)
        4.0
        """
        return self.noise * self._largest_share * math.sqrt(num_parameters / rounds)

    @property
    def _largest_share(self) -> float:
        return max([1.0, *self.weights.values()]) / self._whole

    @property
    def _whole(self) -> float:
        return sum(self.weights.values()) + max(0, self.sites - len(self.weights))


@dataclass(frozen=True, slots=True)
class SiteAccount:
    """What a federation has spent of its sites' privacy: one noisy mean step of a player is one release."""

    ledger: Ledger
    run: str
    noise: SiteNoise
    """Of each release."""

    def reserve(self, model: GlobalModel, players: int) -> float:
        """Charge the round that follows ``model`` before its noise is drawn; return the epsilon spent with it.

        A round that a crash cuts off is charged again when it is repeated: an account may say too much, never less
        than was spent.

        Raises:
            BudgetExhausted: it would go over the coordinator's ceiling.
            LedgerError: as of ``Ledger.reserve``.
        """
        digest, releases = model.digest, self._releases(players)
        try:
            self.ledger.reserve(Charge(self.run, model.round, digest, releases, mechanism="gaussian, one site"))
        except BudgetExhausted as refusal:
            raise BudgetExhausted(
                f"privacy.ceiling: at site level {self.ledger.spent():.3g} is spent of epsilon {self.ledger.ceiling:g} "
                "over all runs, and a round more would go over it; the coordinator must give a larger ceiling, or end"
            ) from refusal
        return self.ledger.spent()

    def affords(self, players: int) -> bool:
        """Return whether the ceiling allows one more round with a release of each of so many players.

        Raises:
            LedgerError: as of ``Ledger.reserve``.
        """
        return self.ledger.spent(self._releases(players)) <= self.ledger.ceiling

    def _releases(self, players: int) -> Releases:
        return Releases(self.noise.noise, rate=1.0, count=players)
