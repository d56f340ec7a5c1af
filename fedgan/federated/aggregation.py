"""Fold the updates of a round into the next global model, tensor by tensor, each as what it is.

What is trained is averaged by how many scans trained it at each site; spectral-norm vectors are found anew; running
statistics are pooled as moments; counters stay integers. Memory does not grow with the number of sites, as long as
their deltas are not in memory: a part of one tensor is looked at at a time. Sites are taken in order of name, so that
the order of arrival changes nothing, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from fedgan.federated.agreement import agreements, apart, inner_products, remember
from fedgan.federated.compression import Encoding, names_in, reader
from fedgan.federated.next_model import advance, next_model, parts_of
from fedgan.federated.rules import Rule, multi_krum, weighted_mean
from fedgan.federated.screening import Norms, expected_of, judge, judge_agreement, leave_out, measure, medians
from fedgan.federated.server_step import Move, Plain
from fedgan.federated.shares import ShareRule, shares
from fedgan.federated.sharing import Sharing
from fedgan.federated.tensors import Entry, Role
from fedgan.records import Answer, Contribution, GlobalModel, ScanCounts, SiteUpdate, Weights

COUNTS = "counts/"
"""What the coordinator's memory calls the scan counts of each site that it has heard of."""

ALIKE = ShareRule(exponent=0.0)

WHOLE: Norms = {}
"""The factors of a site whose step is not shortened."""


@dataclass(frozen=True, slots=True)
class _Voice:
    """What one site says in a round, and what its say depends on."""

    site: str
    delta: Weights
    counts: ScanCounts
    driven: Mapping[str, Sequence[int]]
    """Network to numbers of scans that train its terms."""
    factor: Norms
    """To what part of it its step is shortened, by ``Entry.moves_with``, if at all."""


@dataclass(frozen=True, slots=True)
class GanFedAvg:
    """Checks and combines the updates of a run's rounds, each network by the scans that train it."""

    entries: Mapping[str, Entry]
    driven_by: Callable[[ScanCounts], Mapping[str, Sequence[int]]]
    """By how many of a site's scans each network's terms are trained."""
    sharing: Sharing | None = None
    """What is sent after each round; None is everything."""
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """In how many bits each tensor travels, where that is not as it is."""
    model_encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """The same of the global model's own steps."""
    share_rule: ShareRule = field(default_factory=ShareRule)
    rule: Rule = weighted_mean
    suspects: float | None = None
    """Share of the sites that may be wrong, and that Multi-Krum leaves out; None leaves out none."""
    norm_ratio: float = 5.0
    """How many times as far as the median site a site may move a player, before its update is refused."""
    refuse_apart: bool = True
    """Whether a site whose steps have agreed with no two others' is refused; see ``fedgan.federated.agreement``."""
    clip: float | None = None
    """Times the median norm to which longer updates are shortened; None shortens none."""
    move: Move = field(default_factory=Plain)
    average_decay: float = 0.0
    """Share of the old value that the generators' moving averages keep in every round."""

    def judge(self, model: GlobalModel, answers: Sequence[Answer]) -> tuple[GlobalModel, list[Answer]]:
        """Return the answers, with a failure in place of each update of ``model`` that must not count.

        The model comes back with what is remembered of how well sites agree, and of their scan counts.
        """
        sent = {name: model.weights[name] for name in self._sent(model)}
        expected = expected_of(model, sent, self.encodings, self.entries)
        fitting = judge(answers, expected, self.entries, ratio=self.norm_ratio)
        updates = _updates_in(fitting)
        found = agreements(updates, self.entries)
        counts = {f"{COUNTS}{update.site}": _to_tensor(update.counts) for update in updates}
        memory = {**model.memory, **remember(model.memory, found), **counts}
        again = self._apart(memory, found, updates) & self._apart(model.memory, found, updates)
        agreed = judge_agreement(fitting, again)
        return model.remembering(memory), leave_out(agreed, self._far(_updates_in(agreed)))

    def _apart(
        self, memory: Weights, found: Mapping[str, Mapping[str, float]], updates: Sequence[SiteUpdate]
    ) -> set[str]:
        one_class = {update.site for update in updates if not (update.counts.normal and update.counts.abnormal)}
        return apart(memory, found, one_class) if self.refuse_apart else set()

    def _sent(self, model: GlobalModel) -> list[str]:
        """Return which tensors updates of ``model`` have, in the model's order."""
        sent = self.sharing.sent_after(model.round) if self.sharing else model.weights
        return [name for name in model.weights if name in sent]

    def aggregate(self, model: GlobalModel, updates: Sequence[SiteUpdate]) -> tuple[GlobalModel, Contribution]:
        """Return the next model, and how much each site counted in it; ``updates`` are those of one round."""
        ordered = sorted(updates, key=lambda update: update.site)
        voices = self._voices(ordered)
        weights, memory, sent = dict(model.weights), dict(model.memory), self._sent(model)
        for name in sent:
            before = model.weights[name]
            match self.entries[name].role:
                case Role.WEIGHT | Role.AFFINE:
                    weights[name], kept = self._advance(name, model, voices, self.move)
                    memory |= kept
                case Role.AVERAGE:
                    weights[name], _ = self._advance(name, model, voices, Plain(1 - self.average_decay))
                case Role.STATISTIC:
                    weights[name] = self._pool(name, model.weights, voices)
                case Role.COUNTER:
                    weights[name] = torch.stack([before + voice.delta[name] for voice in voices]).amax(dim=0)
                case Role.VECTOR:
                    pass  # found anew once their weights have moved
        after = next_model(model, weights, memory, self.entries, self.model_encodings)
        return after, self._contribution(sent, voices, memory)

    def _advance(
        self, name: str, model: GlobalModel, voices: Sequence[_Voice], move: Move
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a tensor moved by what the sites agree on, and what to remember of it; who cannot train it is out."""
        return advance(name, model, move, self._agreed(name, model.weights[name], voices))

    def _agreed(self, name: str, before: Tensor, voices: Sequence[_Voice]) -> Iterator[tuple[slice, Tensor]]:
        group = self.entries[name].moves_with or ""
        for span, of_voice in self._spans(name, before, voices):
            heard = [(voice, share) for voice, share in zip(voices, of_voice, strict=True) if share]
            readers = [reader(voice.delta, name) for voice, _ in heard]
            of_each = [share * voice.factor.get(group, 1.0) for voice, share in heard]
            for part in parts_of(span) if heard else ():
                yield part, self.rule([read(part) for read in readers], of_each)

    def _spans(self, name: str, before: Tensor, voices: Sequence[_Voice]) -> Iterator[tuple[range, list[float]]]:
        """Yield the parts of a flat tensor that have shares of their own: all of it, or the row of each disease."""
        entry = self.entries[name]
        if not entry.by_disease:
            yield range(before.numel()), self._shares(entry.network, voices)
            return
        length = before.numel() // len(before)
        for row in range(len(before)):
            yield range(row * length, (row + 1) * length), self._shares_of_row(entry.network, row, voices)

    def _shares(self, network: str, voices: Sequence[_Voice]) -> list[float]:
        """Return each site's share of a network: the mean of its shares of all terms that any site can train.

        It keeps to the bounds of the run's rule, as each of these does.
        """
        driven = [voice.driven[network] for voice in voices]
        if self.rule is not weighted_mean:  # looks at each number by itself, not at shares
            return shares([sum(terms) for terms in driven], ALIKE)
        of_term = [shares(counts, self.share_rule) for counts in zip(*driven, strict=True) if any(counts)]
        of_all = [fmean(of_site) for of_site in zip(*of_term, strict=True)] or [0.0 for _ in voices]
        return shares(of_all, replace(self.share_rule, exponent=1.0))

    def _shares_of_row(self, network: str, row: int, voices: Sequence[_Voice]) -> list[float]:
        counts = [voice.counts.by_disease[row] if any(voice.driven[network]) else 0 for voice in voices]
        return shares(counts, self.share_rule if self.rule is weighted_mean else ALIKE)

    def _pool(self, name: str, before: Weights, voices: Sequence[_Voice]) -> Tensor:
        r"""Return a running mean or variance of all sites' scans.

        The mean is :math:`\mu = \sum_k s_k \mu_k`, the variance :math:`\sum_k s_k (\sigma_k^2 + (\mu_k - \mu)^2)`: the
        term between sites is what an average of variances leaves out. Rules that trust no mean take each by itself.
        """
        heard = [
            (voice, share)
            for voice, share in zip(voices, self._shares(self.entries[name].network, voices), strict=True)
            if share
        ]
        if not heard:
            return before[name]
        of_voice = [share for _, share in heard]

        def told(tensor: str) -> list[Tensor]:
            return [before[tensor].double() + voice.delta[tensor].double() for voice, _ in heard]

        pooled = self.rule(told(name), of_voice)
        if name.endswith("running_var"):
            if self.rule is weighted_mean:
                means = told(name.removesuffix("running_var") + "running_mean")
                middle = weighted_mean(means, of_voice)
                pooled += weighted_mean([(mean - middle).square() for mean in means], of_voice)
            pooled = pooled.clamp_min(0)
        return pooled.to(before[name].dtype)

    def _voices(self, ordered: Sequence[SiteUpdate]) -> list[_Voice]:
        """Return what the sites say."""
        factors = [WHOLE for _ in ordered] if self.clip is None else self._shortened(ordered, self.clip)
        return [
            _Voice(update.site, update.delta, update.counts, self.driven_by(update.counts), factor)
            for update, factor in zip(ordered, factors, strict=True)
        ]

    def _shortened(self, updates: Sequence[SiteUpdate], clip: float) -> list[Norms]:
        """Return by how much each update is shortened to reach at most ``clip`` times the median norm."""
        norms = [measure(update, self.entries) for update in updates]
        longest = {group: clip * usual for group, usual in medians(norms).items()}
        return [{group: min(1.0, longest[group] / norm) if norm else 1.0 for group, norm in of.items()} for of in norms]

    def _far(self, updates: Sequence[SiteUpdate]) -> set[str]:
        """Return the sites that Multi-Krum does not trust, by their updates' distances over all that moves."""
        if self.suspects is None or not updates:
            return set()
        updates = sorted(updates, key=lambda update: update.site)
        moved = [name for name in names_in(updates[0].delta) if self.entries[name].moves_with]
        spans = {name: range(updates[0].delta[name].numel()) for name in moved}
        products = inner_products([update.delta for update in updates], spans)
        squares = products.diagonal()
        distances = squares[:, None] + squares[None, :] - 2 * products
        count = min((len(updates) - 1) // 2, max(1, round(self.suspects * len(updates))))
        trusted = multi_krum(distances, suspects=count)
        return {update.site for number, update in enumerate(updates) if number not in trusted}

    def _contribution(self, sent: Sequence[str], voices: Sequence[_Voice], memory: Weights) -> Contribution:
        """Return how much each site counted in each network that was sent, and would have if all had answered."""
        counts = {key.removeprefix(COUNTS): _to_counts(kept) for key, kept in memory.items() if key.startswith(COUNTS)}
        known = [_Voice(site, {}, told, self.driven_by(told), WHOLE) for site, told in sorted(counts.items())]
        groups = {entry.network: group for name in sent if (group := (entry := self.entries[name]).moves_with)}
        return Contribution(shares=self._by_site(groups, voices), planned=self._by_site(groups, known))

    def _by_site(self, groups: Mapping[str, str], voices: Sequence[_Voice]) -> Mapping[str, Mapping[str, float]]:
        """Return by what each site's step of each network is multiplied."""
        of_network = {network: self._shares(network, voices) for network in groups}
        return {
            voice.site: {
                network: of_network[network][number] * voice.factor.get(group, 1.0) for network, group in groups.items()
            }
            for number, voice in enumerate(voices)
        }


def _updates_in(answers: Sequence[Answer]) -> list[SiteUpdate]:
    return [answer for answer in answers if isinstance(answer, SiteUpdate)]


def _to_tensor(counts: ScanCounts) -> Tensor:
    return torch.tensor([counts.normal, counts.abnormal, counts.unlabelled, *counts.by_disease])


def _to_counts(tensor: Tensor) -> ScanCounts:
    normal, abnormal, unlabelled, *by_disease = tensor.tolist()
    return ScanCounts(normal, abnormal, unlabelled, tuple(by_disease))


@dataclass(frozen=True, slots=True)
class FedAvg:
    """Averages every tensor of the state by the sites' labelled scans: right for classifiers, not for a GAN.

    What other frameworks do with any model (McMahan et al. 2017, arXiv:1602.05629, alg. 1), here to compare with.
    """

    entries: Mapping[str, Entry]

    def judge(self, model: GlobalModel, answers: Sequence[Answer]) -> tuple[GlobalModel, list[Answer]]:
        """Return the answers, with a failure in place of each update of ``model`` that cannot be added."""
        return model, judge(
            answers, expected_of(model, model.weights, {}, self.entries), self.entries, ratio=float("inf")
        )

    def aggregate(self, model: GlobalModel, updates: Sequence[SiteUpdate]) -> tuple[GlobalModel, Contribution]:
        """Return the next model, and how much each site counted in it."""
        ordered = sorted(updates, key=lambda update: update.site)
        of_site = shares([update.counts.labelled for update in ordered], ShareRule())
        weights = {
            name: (before + weighted_mean([update.delta[name] for update in ordered], of_site)).to(before.dtype)
            for name, before in model.weights.items()
        }
        networks = dict.fromkeys(entry.network for entry in self.entries.values())
        counted = {update.site: dict.fromkeys(networks, share) for update, share in zip(ordered, of_site, strict=True)}
        return GlobalModel(model.round + 1, weights), Contribution(counted, counted)
