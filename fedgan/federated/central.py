"""Combine updates so that the models tell of no one site: each bounded by itself, summed, and hidden by noise.

Nothing reaches the next model but the noisy mean steps, and what can be made of them: server optimisers, moving
averages, spectral-norm vectors. No count of scans, no comparison with other sites, and no running statistic has a say,
for each would let one site move more than its bound.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgan.errors import NotFinite
from fedgan.federated.compression import Encoding, part_of
from fedgan.federated.next_model import advance, next_model, parts_of
from fedgan.federated.rules import weighted_mean
from fedgan.federated.screening import expected_of, judge
from fedgan.federated.server_step import Move, Plain
from fedgan.federated.sharing import Sharing
from fedgan.federated.tensors import Entry, Side
from fedgan.privacy.central import SiteAccount
from fedgan.records import Answer, Contribution, GlobalModel, SiteLevel, SiteUpdate


@dataclass(frozen=True, slots=True)
class NoisyFedAvg:
    """Checks and combines the updates of a run's rounds under central differential privacy; an ``Aggregation``."""

    entries: Mapping[str, Entry]
    follows: Mapping[str, str]
    """Each tensor of a moving average to the trained one that it follows."""
    sharing: Sharing
    """What is sent after each round: trained tensors alone."""
    account: SiteAccount
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """In how many bits each tensor travels, where that is not as it is."""
    model_encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """The same of the global model's own steps."""
    move: Move = field(default_factory=Plain)
    average_decay: float = 0.0
    """Share of the old value that the generators' moving averages keep in every round."""

    def judge(self, model: GlobalModel, answers: Sequence[Answer]) -> tuple[GlobalModel, list[Answer]]:
        """Return the answers, with a failure in place of each update of ``model`` that cannot be added.

        Each is judged by itself: one that is refused for what others sent would tell of them.
        """
        sent = {name: model.weights[name] for name in self._sent(model.round)}
        expected = expected_of(model, sent, self.encodings, self.entries)
        return model, judge(answers, expected, self.entries, ratio=float("inf"))

    def affords(self, number: int) -> bool:
        """Return whether the coordinator's ceiling allows round ``number``, counted from 0.

        Raises:
            LedgerError: the account cannot be trusted or read.
        """
        return self.account.affords(len(self._players(number)))

    def aggregate(self, model: GlobalModel, updates: Sequence[SiteUpdate]) -> tuple[GlobalModel, Contribution]:
        """Return the next model, and how much each site counted in it; ``updates`` are those of one round.

        Raises:
            BudgetExhausted: the account's ceiling allows no more; no noise has been drawn.
            LedgerError: the account cannot be trusted or written.
            NotFinite: an update that ``judge`` would have refused.
        """
        by_site = {update.site: update for update in updates}  # one step a site, whatever is said
        ordered = [by_site[site] for site in sorted(by_site)]
        players = self._players(model.round)
        factors = {player: [self._factor(update, player) for update in ordered] for player in players}
        epsilon = self.account.reserve(model, len(players))  # before the noise: a crash must never hide it
        weights, memory = dict(model.weights), dict(model.memory)
        for name in self._sent(model.round):
            player = self.entries[name].side
            weights[name], kept = advance(name, model, self.move, self._hidden(name, player, ordered, factors[player]))
            memory |= kept
        for name, followed in self.follows.items():
            weights[name] = torch.lerp(weights[followed], model.weights[name], self.average_decay)
        after = next_model(model, weights, memory, self.entries, self.model_encodings)
        return after, self._contribution(model.round, ordered, epsilon)

    def _hidden(
        self, name: str, player: Side, updates: Sequence[SiteUpdate], factors: Sequence[float]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield the parts of a tensor's mean step, hidden by noise."""
        for part in parts_of(range(updates[0].delta[name].numel())):
            mean = weighted_mean([part_of(update.delta, name, part) for update in updates], factors)
            yield part, self.account.noise.hide(mean, player)

    def _factor(self, update: SiteUpdate, player: Side) -> float:
        """Return by what a site's step of a player is multiplied, so that it is no longer than the player's bound."""
        square = torch.zeros((), dtype=torch.float64)
        for name in self._sent(update.round):
            if self.entries[name].side is player:
                for part in parts_of(range(update.delta[name].numel())):
                    square += part_of(update.delta, name, part).double().square().sum()
        norm = float(square.sqrt())
        if not norm < float("inf"):
            raise NotFinite(f"site {update.site} sent values that are not finite; the site must look at its training")
        noise = self.account.noise
        return noise.share_of(update.site) * noise.shortened(norm, player)

    def _sent(self, number: int) -> list[str]:
        """Return which tensors are released after round ``number``, counted from 0, in the model's order."""
        sent = self.sharing.sent_after(number)
        return [name for name in self.entries if name in sent]

    def _players(self, number: int) -> list[Side]:
        return players_in(self.sharing, self.entries, number)

    def _contribution(self, number: int, updates: Sequence[SiteUpdate], epsilon: float) -> Contribution:
        networks = dict.fromkeys(self.entries[name].network for name in self._sent(number))
        share_of = self.account.noise.share_of
        shares = {update.site: dict.fromkeys(networks, share_of(update.site)) for update in updates}
        return Contribution(shares, shares, SiteLevel(epsilon, self.account.ledger.delta))


def players_in(sharing: Sharing, entries: Mapping[str, Entry], number: int) -> list[Side]:
    """Return whose steps are released after round ``number``, counted from 0."""
    return list(dict.fromkeys(entries[name].side for name in entries if name in sharing.sent_after(number)))


def releases_of(sharing: Sharing, entries: Mapping[str, Entry]) -> int:
    """Return how many noisy mean steps a whole run releases: one a round of each player that is shared then."""
    return sum(len(players_in(sharing, entries, number)) for number in range(sharing.rounds))
