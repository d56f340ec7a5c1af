"""What each tensor of a model is, and so how the tensors of several sites may be combined.

It is read off the modules that own the tensors, never guessed from names: what is of no known kind is refused, because
an average that is wrong for it would go unnoticed. Averaged spectral-norm vectors break the Lipschitz bound; averaged
counters stop being integers; a server optimiser over running variances drives them below zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from fedgan.errors import ModelError
from fedgan.gan.method import Method

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


class Role(StrEnum):
    """How a tensor may be combined."""

    WEIGHT = "weight"
    """Trained: a weighted mean."""
    AFFINE = "norm affine"
    """Trained scale or shift of a norm: a weighted mean, or kept at the site."""
    STATISTIC = "running statistic"
    """Mean or variance of what a norm has seen: never through a server optimiser, and the variance never below zero."""
    COUNTER = "counter"
    """An integer: the largest."""
    VECTOR = "spectral-norm vector"
    """Belongs to one weight: never averaged, found anew for the averaged weight."""
    AVERAGE = "moving average"
    """Follows a trained tensor: a weighted mean, by the weights of the network that it follows."""


class Side(StrEnum):
    """The player a tensor belongs to."""

    GENERATOR = "generator"
    CRITIC = "critic"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model's state."""

    role: Role
    side: Side


def entries(method: Method) -> Mapping[str, Entry]:
    """Return what each tensor of the method's state is, in the state's order.

    Raises:
        ModelError: a tensor is of no known kind, or its network is not one player's alone.
    """
    found: dict[str, Entry] = {}
    sides = _sides(method)
    for network, module in cast("nn.Module", method).named_children():
        followed = method.averages().get(network)
        side = sides.get(followed or network)
        for name, role in _roles(module):
            if side is None:
                raise ModelError(f"{network}: trained by neither player or by both, so no site's weight holds for it")
            averaged = followed is not None and role in (Role.WEIGHT, Role.AFFINE)
            found[f"{network}.{name}"] = Entry(Role.AVERAGE if averaged else role, side)
    unknown = [name for name in method.state_dict() if name not in found]
    if unknown:
        raise ModelError(f"no way is known to combine these tensors of several sites: {', '.join(unknown)}")
    return {name: found[name] for name in method.state_dict()}


def _sides(method: Method) -> Mapping[str, Side]:
    """Return whose each network is that one player alone trains."""
    players = {
        Side.GENERATOR: {id(parameter) for parameter in method.generators()},
        Side.CRITIC: {id(parameter) for parameter in method.critics()},
    }
    sides = {}
    for network, module in cast("nn.Module", method).named_children():
        trained = {id(parameter) for parameter in module.parameters()}
        owners = [side for side, parameters in players.items() if trained & parameters]
        if len(owners) == 1 and trained <= players[owners[0]]:
            sides[network] = owners[0]
    return sides


def _roles(network: nn.Module) -> Iterator[tuple[str, Role]]:
    """Yield each tensor of a network's state that is of a known kind."""
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, _ in module.named_parameters(recurse=False):
            yield start + name, Role.AFFINE if isinstance(module, NORMS) else Role.WEIGHT
        for name in _statistics(module):
            yield start + name, Role.STATISTIC
        for name in _counters(module):
            yield start + name, Role.COUNTER
        for name in _vectors(module):
            yield start + name, Role.VECTOR


def _statistics(module: nn.Module) -> tuple[str, ...]:
    return ("running_mean", "running_var") if isinstance(module, _NormBase) else ()


def _counters(module: nn.Module) -> tuple[str, ...]:
    return ("num_batches_tracked",) if isinstance(module, _NormBase) else ()


def _vectors(module: nn.Module) -> tuple[str, ...]:
    """Return the names of a module's spectral-norm vectors, in either of PyTorch's two ways to have one."""
    if isinstance(module, _SpectralNorm):
        return "_u", "_v"
    hooks = (hook for hook in module._forward_pre_hooks.values() if isinstance(hook, SpectralNorm))
    return tuple(f"{hook.name}_{end}" for hook in hooks for end in "uv")
