"""From settings to how a run's updates are combined."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from fedgan import settings as asked
from fedgan.errors import ModelError, SettingsError
from fedgan.federated.aggregation import FedAvg, GanFedAvg
from fedgan.federated.central import NoisyFedAvg
from fedgan.federated.compression import Encoding
from fedgan.federated.coordinator import Aggregation
from fedgan.federated.rules import Rule, median, trimmed_mean, weighted_mean
from fedgan.federated.server_step import Adaptive, Momentum, Move, Plain
from fedgan.federated.shares import ShareRule
from fedgan.federated.sharing import Sharing
from fedgan.federated.tensors import Entry, Role, Side, entries
from fedgan.gan.method import Method
from fedgan.privacy.central import SiteAccount
from fedgan.records import ScanCounts


def build_aggregation(
    settings: asked.Aggregation,
    optimizer: asked.ServerOptimizer,
    method: Method,
    sharing: Sharing,
    compress: asked.Compression,
    account: SiteAccount | None = None,
) -> Aggregation:
    """Return what combines the updates of ``method``'s networks, under noise if there is an ``account`` to charge.

    Raises:
        ModelError: a tensor of the networks is of no known kind, or one that noise cannot hide.
    """
    found = entries(method)
    if settings.kind == "fedavg":
        return FedAvg(found)
    encodings = build_encodings(compress, method)
    model_encodings = _encodings(found, generator=compress.model, critic=compress.model)
    if account:
        return NoisyFedAvg(
            entries=found,
            follows=follows(found, method),
            sharing=sharing,
            account=account,
            encodings=encodings,
            model_encodings=model_encodings,
            move=_move(optimizer),
            average_decay=settings.average_decay,
        )
    return GanFedAvg(
        entries=found,
        sharing=sharing,
        encodings=encodings,
        model_encodings=model_encodings,
        driven_by=method.driven_by,
        share_rule=ShareRule(settings.exponent, settings.cap, settings.floor),
        rule=_rule(settings),
        suspects=settings.suspects if settings.rule == "krum" else None,
        norm_ratio=settings.norm_ratio,
        refuse_apart=settings.refuse_apart,
        clip=settings.clip,
        move=_move(optimizer),
        average_decay=settings.average_decay,
    )


def follows(found: Mapping[str, Entry], method: Method) -> Mapping[str, str]:
    """Return which trained tensor each one of a moving average follows.

    Raises:
        ModelError: norms keep running statistics, which would have to be released too.
    """
    if any(entry.role is Role.STATISTIC for entry in found.values()):
        raise ModelError(
            "privacy=site: norms of this model keep running statistics, which no noise hides; give another"
        )
    averages = method.averages()
    return {
        name: f"{averages[entry.network]}{name.removeprefix(entry.network)}"
        for name, entry in found.items()
        if entry.role is Role.AVERAGE
    }


def build_sharing(
    settings: asked.Aggregation, method: Method, *, rounds: int, local_steps: int, num_diseases: int
) -> Sharing:
    """Return what of ``method``'s state leaves a site, and when: nothing of a network that no term trains.

    Raises:
        SettingsError: a network to be shared is not one of the method's.
        ModelError: a tensor of the networks is of no known kind.
    """
    found = entries(method)
    if settings.kind == "fedavg":
        return Sharing(rounds, dict.fromkeys(found, 1))
    steps = {Side.GENERATOR: settings.generator_every, Side.CRITIC: settings.discriminator_every}
    everything = ScanCounts(1, 1, 1, (1,) * num_diseases)
    trained = {network for network, scans in method.driven_by(everything).items() if any(scans)}
    shared = trained & _shared(settings.share, found, trained)
    local = (Role.STATISTIC, Role.COUNTER) if settings.statistics == "local" else ()
    return Sharing(
        rounds,
        {
            name: (steps[entry.side] or local_steps) // local_steps
            for name, entry in found.items()
            if entry.network in shared
        },
        kept=frozenset(
            name
            for name, entry in found.items()
            if entry.network in trained - shared or (entry.network in shared and entry.role in local)
        ),
    )


def trained_alone(sharing: Sharing, method: Method) -> Sharing:
    """Return the same sharing, but of what is no weight, or is made of weights, nothing leaves a site.

    Raises:
        ModelError: a tensor of the networks is of no known kind.
    """
    found = entries(method)
    trained = {name for name, entry in found.items() if entry.role in (Role.WEIGHT, Role.AFFINE)}
    every = {name: rounds for name, rounds in sharing.every.items() if name in trained}
    return replace(sharing, every=every, beside={name: sharing.every[name] for name in sharing.every.keys() - trained})


def build_encodings(settings: asked.Compression, method: Method) -> Mapping[str, Encoding]:
    """Return in how many bits each tensor of an update travels; statistics, counters and vectors as they are.

    Raises:
        ModelError: a tensor of the networks is of no known kind.
    """
    return _encodings(entries(method), generator=settings.generator, critic=settings.discriminator)


def _encodings(found: Mapping[str, Entry], *, generator: Encoding, critic: Encoding) -> Mapping[str, Encoding]:
    of_side: Mapping[Side, Encoding] = {Side.GENERATOR: generator, Side.CRITIC: critic}
    return {
        name: of_side[entry.side]
        for name, entry in found.items()
        if entry.role in (Role.WEIGHT, Role.AFFINE, Role.AVERAGE) and of_side[entry.side] != "none"
    }


def _shared(share: str | tuple[str, ...], found: Mapping[str, Entry], trained: Collection[str]) -> set[str]:
    """Return the names of the networks that travel; of a list, all generators that are trained must be among them."""
    sides = {entry.network: entry.side for entry in found.values()}
    match share:
        case "both":
            return set(sides)
        case "generator":
            return {network for network, side in sides.items() if side is Side.GENERATOR}
        case "discriminator":
            return {network for network, side in sides.items() if side is Side.CRITIC}
        case "none":
            return set()
    if unknown := set(share) - set(sides):
        raise SettingsError(
            f"aggregation.share: unknown network {', '.join(sorted(unknown))}; there are {', '.join(sides)}"
        )
    if stay := {network for network, side in sides.items() if side is Side.GENERATOR} & set(trained) - set(share):
        raise SettingsError(
            f"aggregation.share: also name {', '.join(sorted(stay))}, or give share=discriminator or none"
        )
    return set(share)


def _rule(settings: asked.GanFedAvg) -> Rule:
    match settings.rule:
        case "median":
            return median
        case "trimmed":
            return partial(trimmed_mean, cut=settings.suspects)
        case _:
            return weighted_mean


def _move(optimizer: asked.ServerOptimizer) -> Move:
    match optimizer:
        case asked.ServerMomentum():
            return Momentum(optimizer.rate, optimizer.momentum)
        case asked.ServerAdam():
            return Adaptive(optimizer.rate, optimizer.betas, optimizer.epsilon)
        case _:
            return Plain()
