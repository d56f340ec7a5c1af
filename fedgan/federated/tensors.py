"""What each tensor of a model is, and so how the tensors of several sites may be combined.

It is read off the modules that own the tensors, never guessed from names: what is of no known kind is refused, because
an average that is wrong for it would go unnoticed. Averaged spectral-norm vectors break the Lipschitz bound; averaged
counters stop being integers; a server optimiser over running variances drives them below zero.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    network: str
    """The method's network that it belongs to."""
    by_disease: bool = False
    """Whether its first axis is the diseases, each row trained by the scans of one."""
    normalises: str | None = None
    """Of a spectral-norm vector: the name of the weight that it belongs to."""
    axis: int = 0
    """Of a spectral-norm vector: the weight's axis that becomes the rows of the matrix."""

    @property
    def moves_with(self) -> str | None:
        """Return with which tensors its step is judged: its player's trained ones, or those of its moving average."""
        match self.role:
            case Role.WEIGHT | Role.AFFINE:
                return self.side.value
            case Role.AVERAGE:
                return f"{self.side.value}'s moving average"
        return None


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
        for name, role in _roles(module, frozen=followed is not None):
            if side is None:
                raise ModelError(f"{network}: trained by neither player or by both, so no site's weight holds for it")
            averaged = followed is not None and role in (Role.WEIGHT, Role.AFFINE)
            full = f"{network}.{name}"
            found[full] = Entry(
                Role.AVERAGE if averaged else role, side, network, by_disease=full in method.by_disease()
            )
        for vector, (weight, axis) in _vectors(module).items():
            found[f"{network}.{vector}"] = replace(
                found[f"{network}.{vector}"], normalises=f"{network}.{weight}", axis=axis
            )
    unknown = [name for name in method.state_dict() if name not in found]
    if unknown:
        raise ModelError(
            f"no way is known to combine these tensors of several sites: {', '.join(unknown)}; "
            "who writes the networks must have them trained, or keep them out of the state"
        )
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


def _roles(network: nn.Module, *, frozen: bool) -> Iterator[tuple[str, Role]]:
    """Yield each tensor of a network's state that is of a known kind; ``frozen`` parameters are if it follows one."""
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad or frozen:
                yield start + name, Role.AFFINE if isinstance(module, NORMS) else Role.WEIGHT
        for name in _statistics(module):
            yield start + name, Role.STATISTIC
        for name in _counters(module):
            yield start + name, Role.COUNTER
    for name in _vectors(network):
        yield name, Role.VECTOR


def _statistics(module: nn.Module) -> tuple[str, ...]:
    return ("running_mean", "running_var") if isinstance(module, _NormBase) else ()


def _counters(module: nn.Module) -> tuple[str, ...]:
    return ("num_batches_tracked",) if isinstance(module, _NormBase) else ()


def _vectors(network: nn.Module) -> Mapping[str, tuple[str, int]]:
    """Return each spectral-norm vector's weight and its axis of rows, in either of PyTorch's two ways to have them."""
    found: dict[str, tuple[str, int]] = {}
    for prefix, module in network.named_modules():
        start = f"{prefix}." if prefix else ""
        if isinstance(module, _SpectralNorm):  # as layers.0.parametrizations.weight.0
            weight = f"{prefix.rpartition('.')[0]}.original"
            found |= {f"{start}_{end}": (weight, module.dim) for end in "uv"}
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                found |= {f"{start}{hook.name}_{end}": (f"{start}{hook.name}_orig", hook.dim) for end in "uv"}
    return found
