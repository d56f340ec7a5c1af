"""From settings to how a run's updates are combined."""

from functools import partial

from fedgan import settings as asked
from fedgan.federated.aggregation import FedAvg, GanFedAvg
from fedgan.federated.coordinator import Aggregation
from fedgan.federated.rules import Rule, median, trimmed_mean, weighted_mean
from fedgan.federated.server_step import Adaptive, Momentum, Move, as_agreed
from fedgan.federated.shares import ShareRule
from fedgan.federated.tensors import entries
from fedgan.gan.method import Method


def build_aggregation(
    settings: asked.GanFedAvg | asked.FedAvg,
    optimizer: asked.NoServerOptimizer | asked.ServerMomentum | asked.ServerAdam,
    method: Method,
) -> Aggregation:
    """Return what combines the updates of ``method``'s networks.

    Raises:
        ModelError: a tensor of the networks is of no known kind.
    """
    found = entries(method)
    if settings.kind == "fedavg":
        return FedAvg(found)
    return GanFedAvg(
        entries=found,
        driven_by=method.driven_by,
        share_rule=ShareRule(settings.exponent, settings.cap, settings.floor),
        rule=_rule(settings),
        suspects=settings.suspects if settings.rule == "krum" else None,
        norm_ratio=settings.norm_ratio,
        clip=settings.clip,
        move=_move(optimizer),
        average_decay=settings.average_decay,
    )


def _rule(settings: asked.GanFedAvg) -> Rule:
    match settings.rule:
        case "median":
            return median
        case "trimmed":
            return partial(trimmed_mean, cut=settings.suspects)
        case _:
            return weighted_mean


def _move(optimizer: asked.NoServerOptimizer | asked.ServerMomentum | asked.ServerAdam) -> Move:
    match optimizer:
        case asked.ServerMomentum():
            return Momentum(optimizer.rate, optimizer.momentum)
        case asked.ServerAdam():
            return Adaptive(optimizer.rate, optimizer.betas, optimizer.epsilon)
        case _:
            return as_agreed
