"""GAN-aware FedAvg as a Flower strategy: for anyone's GAN in Flower's stock loop, without the rest of this project.

``docs/flower_gan.py`` is a whole app with it. Our own coordinator does not use it: it has a loop of its own, which
resumes, keeps no update in memory and asks for more.
"""

import logging
import math
from collections.abc import Collection, Iterable, Mapping

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from torch import Tensor, nn

from fedgan.federated.aggregation import GanFedAvg as Combination
from fedgan.federated.rules import Rule, weighted_mean
from fedgan.federated.server_step import Move, Plain
from fedgan.federated.shares import ShareRule
from fedgan.federated.tensors import entries
from fedgan.records import GlobalModel, ScanCounts, SiteUpdate, Weights

log = logging.getLogger(__name__)


class Networks(nn.Module):
    """A GAN's networks by name, and which player trains each; its state is what travels.

    >>> gan = Networks(generators={"G": nn.Linear(1, 1)}, discriminators={"D": nn.Linear(1, 1)})
    >>> list(gan.state_dict())
    ['G.weight', 'G.bias', 'D.weight', 'D.bias']
    """

    def __init__(
        self,
        *,
        generators: Mapping[str, nn.Module],
        discriminators: Mapping[str, nn.Module],
        averages: Mapping[str, tuple[str, nn.Module]] | None = None,
    ) -> None:
        """Take the networks; ``averages`` names a moving average, the network that it follows, and its module."""
        super().__init__()
        self.players = dict(generators), dict(discriminators)
        self.followed = {name: network for name, (network, _) in (averages or {}).items()}
        modules = {name: module for name, (_, module) in (averages or {}).items()}
        for name, module in {**generators, **discriminators, **modules}.items():
            self.add_module(name, module)

    def generators(self) -> Iterable[nn.Parameter]:
        """Return what the generators' player moves."""
        return [parameter for network in self.players[0].values() for parameter in network.parameters()]

    def critics(self) -> Iterable[nn.Parameter]:
        """Return what the discriminators' player moves."""
        return [parameter for network in self.players[1].values() for parameter in network.parameters()]

    def averages(self) -> Mapping[str, str]:
        """Return which network follows which."""
        return self.followed

    def by_disease(self) -> Collection[str]:
        """Return nothing: which rows belong to which label is not known of anyone's GAN."""
        return ()


class GanFedAvg(FedAvg):
    """Flower's FedAvg with both networks averaged as what they are; see ``fedgan.federated.aggregation``.

    Clients answer with their arrays, as for FedAvg, under the names of ``Networks.state_dict()``. In their metrics
    ``num-examples/NETWORK`` says by how many examples a network was trained there (0: not at all), for each network
    where that is not ``num-examples``.
    """

    def __init__(
        self,
        networks: Networks,
        *,
        share_rule: ShareRule | None = None,
        rule: Rule = weighted_mean,
        move: Move | None = None,
        norm_ratio: float = 5.0,
        **sampling: float,
    ) -> None:
        """Take the networks, how they are combined, and what FedAvg takes, as ``fraction_train``.

        Raises:
            ModelError: a tensor of the networks is of no known kind.
        """
        super().__init__(**sampling)  # type: ignore[arg-type]
        found = entries(networks)  # type: ignore[arg-type]
        self.names = list(dict.fromkeys(entry.network for entry in found.values()))
        self.combination = Combination(
            found,
            lambda counts: {name: (count,) for name, count in zip(self.names, counts.by_disease, strict=True)},
            share_rule=share_rule or ShareRule(),
            rule=rule,
            move=move or Plain(),
            norm_ratio=norm_ratio,
        )
        self.followed = networks.averages()
        self.model = GlobalModel(0, {})

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model, and remember it: updates are differences from it."""
        self.model = GlobalModel(server_round - 1, _tensors(arrays), self.model.memory)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Combine what clients answered; who cannot be combined is logged with the reason, and left out."""
        valid, _ = self._check_and_log_replies(replies, is_train=True)
        answers = {f"{reply.metadata.src_node_id:020d}": reply for reply in valid}
        updates = [self._update(node, reply) for node, reply in answers.items()]
        self.model, judged = self.combination.judge(self.model, updates)
        accepted = [update for update in judged if isinstance(update, SiteUpdate)]
        if not accepted:
            return None, None
        self.model, contribution = self.combination.aggregate(self.model, accepted)
        for node, of_node in contribution.shares.items():
            log.info("node %s: %s", node, ", ".join(f"{name} {share:.3f}" for name, share in of_node.items()))
        contents = [answers[update.site].content for update in accepted]
        arrays = ArrayRecord({name: Array(tensor.numpy()) for name, tensor in self.model.weights.items()})
        return arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)

    def _update(self, node: str, reply: Message) -> SiteUpdate:
        """Return a reply as an update: how far each tensor moved, and by how many examples."""
        content = reply.content
        metrics = {name: value for record in content.metric_records.values() for name, value in record.items()}
        everything = metrics[self.weighted_by_key]
        told = [
            metrics.get(f"{self.weighted_by_key}/{self.followed.get(name, name)}", everything) for name in self.names
        ]
        counts = ScanCounts(_count(everything), by_disease=tuple(map(_count, told)))
        after = _tensors(next(iter(content.array_records.values())))
        delta = {name: _step(self.model.weights.get(name), tensor) for name, tensor in after.items()}
        return SiteUpdate(node, self.model.round, self.model.digest, delta, counts, {})


def _step(before: Tensor | None, after: Tensor) -> Tensor:
    """Return how far a tensor moved; what is not of the model's shape and type stays as it is, and is refused."""
    if before is None or (before.shape, before.dtype) != (after.shape, after.dtype):
        return after
    return after - before


def _count(value: object) -> int:
    """Return a count, or 0 for what is none: such a reply is refused."""
    return int(value) if isinstance(value, int | float) and math.isfinite(value) else 0


def _tensors(arrays: ArrayRecord) -> Weights:
    return {name: torch.from_numpy(array.numpy()) for name, array in arrays.items()}
