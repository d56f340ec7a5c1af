"""From what a round's sites agree on to the next global model, whoever they are and however they were combined."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from fedgan.federated.compression import Encoding, step_between, take_step
from fedgan.federated.server_step import Move
from fedgan.federated.spectral import leading_vectors
from fedgan.federated.tensors import Entry
from fedgan.records import GlobalModel, ModelStep, Weights

PART = 2**17
"""Numbers of a tensor that are combined at a time: so few that sums in float64 stay near the processor."""

LOST = "lost/"
"""What the coordinator's memory calls that of the model's steps which did not fit into their bits."""


def parts_of(span: range) -> Iterator[slice]:
    """Yield the parts of a flat tensor's ``span`` that are combined at a time."""
    for start in span[::PART]:
        yield slice(start, min(start + PART, span.stop))


def advance(
    name: str, model: GlobalModel, move: Move, agreed: Iterable[tuple[slice, Tensor]]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a tensor moved by what the sites agree on, and what to remember of it.

    Args:
        name: of the tensor.
        model: that it is of.
        move: how it is moved.
        agreed: parts of the flat tensor with their steps, in float64; what is in no part stays as it is.
    """
    before = model.weights[name].reshape(-1)
    after = before.clone()
    kept = {
        key: model.memory[key].clone() if key in model.memory else torch.full_like(before, first)
        for key, first in ((f"{what}/{name}", first) for what, first in move.remembers.items())
    }
    for part, mean in agreed:
        step, *remembered = move(mean, *(tensor[part].double() for tensor in kept.values()))
        after[part] = before[part] + step
        for tensor, new in zip(kept.values(), remembered, strict=True):
            tensor[part] = new
    return after.view_as(model.weights[name]), kept


def next_model(
    model: GlobalModel,
    weights: dict[str, Tensor],
    memory: Weights,
    entries: Mapping[str, Entry],
    encodings: Mapping[str, Encoding],
) -> GlobalModel:
    """Return the model after ``model``, with its spectral-norm vectors found anew.

    Args:
        model: which was sent.
        weights: to which it shall move; one by one they become those that it moves to, so that only one is there twice.
        memory: what is remembered of the round.
        entries: what each tensor is.
        encodings: in how many bits the model's own steps travel; without any, it travels whole.
    """
    moved: dict[str, Tensor] = {}
    lost: dict[str, Tensor] = {}
    before = {name.removeprefix(LOST): tensor for name, tensor in memory.items() if name.startswith(LOST)}
    for name, encoding in encodings.items():
        travels, left = step_between(model.weights, weights, before, {name: encoding})
        weights |= take_step(model.weights, travels)
        moved |= travels
        lost |= left
    weights |= dict(_vectors(weights, entries))
    kept = {**memory, **{f"{LOST}{name}": tensor for name, tensor in lost.items()}}
    return GlobalModel(model.round + 1, weights, kept, _step(model, weights, moved) if encodings else None)


def _step(model: GlobalModel, weights: Weights, moved: Weights) -> ModelStep:
    replaced = {
        name: tensor
        for name, tensor in weights.items()
        if name not in moved and not torch.equal(tensor, model.weights[name])
    }
    return ModelStep(model.digest, moved, replaced)


def _vectors(weights: Weights, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Tensor]]:
    """Yield the spectral-norm vectors of weights that have just moved, and of those that never have."""
    for name, entry in entries.items():
        if entry.normalises and name.endswith("u"):
            left, right = leading_vectors(weights[entry.normalises], entry.axis, weights[name])
            yield name, left
            yield f"{name.removesuffix('u')}v", right
