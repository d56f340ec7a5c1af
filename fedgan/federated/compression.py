"""Deltas in fewer bits: half precision, or eight bits with a scale for each block, and what that loses kept for later.

What is lost of one round is added to the next (error feedback: Seide et al. 2014; Karimireddy et al. 2019,
arXiv:1901.09847), so that nothing is lost in the long run. Scales by block after Dettmers et al. 2022
(arXiv:2110.02861): one large number costs its neighbours precision, and no others.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from fedgan.records import Weights

Encoding = Literal["none", "fp16", "int8"]

BLOCK = 1024
"""Numbers that share a scale."""

SCALE = "/scale"
"""Ends the name under which the scales of a tensor travel; no tensor of a module has a slash in its name."""

LARGEST_HALF = 65504.0


def encode(tensors: Weights, encodings: Mapping[str, Encoding]) -> dict[str, Tensor]:
    """Return tensors in fewer bits, as they travel; those without an encoding as they are."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match encodings.get(name, "none"):
            case "none":
                found[name] = tensor
            case "fp16":
                found[name] = tensor.clamp(-LARGEST_HALF, LARGEST_HALF).half()
            case "int8":
                found[name], found[f"{name}{SCALE}"] = _to_eight_bits(tensor)
    return found


def expected(tensors: Weights, encodings: Mapping[str, Encoding]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and type of what ``encode`` makes of such tensors, by name."""
    found: dict[str, tuple[torch.Size, torch.dtype]] = {}
    for name, tensor in tensors.items():
        match encodings.get(name, "none"):
            case "none":
                found[name] = tensor.shape, tensor.dtype
            case "fp16":
                found[name] = tensor.shape, torch.float16
            case "int8":
                found[name] = tensor.shape, torch.int8
                found[f"{name}{SCALE}"] = torch.Size([-(-tensor.numel() // BLOCK)]), torch.float32
    return found


def names_in(encoded: Weights) -> list[str]:
    """Return the names of the tensors themselves, without those of scales."""
    return [name for name in encoded if not name.endswith(SCALE)]


def reader(encoded: Weights, name: str) -> Callable[[slice], Tensor]:
    """Return what reads parts of a flat tensor as it was, or as near to it as its bits allow.

    >>> delta = encode({"w": torch.tensor([1.0, -0.5, 0.0])}, {"w": "int8"})
    >>> reader(delta, "w")(slice(0, 2))
    tensor([ 1.0000, -0.5039])
    """
    flat = encoded[name].reshape(-1)
    if flat.dtype != torch.int8:
        return flat.__getitem__
    scales = encoded[f"{name}{SCALE}"]

    def read(part: slice) -> Tensor:
        start, stop, _ = part.indices(len(flat))
        first, last = start // BLOCK, -(-stop // BLOCK)
        of_each = scales[first:last].repeat_interleave(BLOCK)[start - first * BLOCK :]
        return flat[part] * of_each[: stop - start]

    return read


def part_of(encoded: Weights, name: str, part: slice) -> Tensor:
    """Return one part of a flat tensor; see ``reader``."""
    return reader(encoded, name)(part)


def decode(encoded: Weights) -> dict[str, Tensor]:
    """Return all tensors as they were, or as near to it as their bits allow, in float32 where they were encoded."""
    return {name: _decoded(encoded, name) for name in names_in(encoded)}


def _decoded(encoded: Weights, name: str) -> Tensor:
    tensor = encoded[name]
    whole = part_of(encoded, name, slice(None)).view_as(tensor)
    return whole.float() if tensor.dtype == torch.float16 else whole


def with_feedback(
    delta: Weights, residual: Weights, encodings: Mapping[str, Encoding]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what travels of a delta and of what was lost before, and what is lost now."""
    return _encoded_one_by_one(delta.items(), residual, encodings)


def _encoded_one_by_one(
    tensors: Iterable[tuple[str, Tensor]], residual: Weights, encodings: Mapping[str, Encoding]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    encoded: dict[str, Tensor] = {}
    lost: dict[str, Tensor] = {}
    for name, tensor in tensors:
        whole = tensor + residual[name] if name in residual else tensor
        travels = encode({name: whole}, encodings)
        encoded |= travels
        if encodings.get(name, "none") != "none":
            lost[name] = whole - decode(travels)[name]
    return encoded, lost


def step_between(
    before: Weights, after: Weights, lost: Weights, encodings: Mapping[str, Encoding]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return how a model moves in the bits it travels in, and what is lost; see ``take_step``.

    Args:
        before: the model that moves.
        after: where it should get to.
        lost: what earlier steps lost.
        encodings: of the tensors that may lose something; of others nothing is said.
    """
    moving = (name for name in encodings if name in lost or after[name] is not before[name])
    return _encoded_one_by_one(((name, after[name] - before[name]) for name in moving), lost, encodings)


def take_step(before: Weights, moved: Weights) -> dict[str, Tensor]:
    """Return the tensors that a step moves: at the coordinator and at every site the same, to the bit."""
    return {name: before[name] + _decoded(moved, name) for name in names_in(moved)}


def _to_eight_bits(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return whole numbers from -127 to 127, and each block's scale."""
    flat = tensor.reshape(-1)
    short = -len(flat) % BLOCK
    blocks = torch.nn.functional.pad(flat, (0, short)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1) / 127
    whole = (blocks / scales.clamp_min(torch.finfo(scales.dtype).tiny)[:, None]).round().clamp(-127, 127).to(torch.int8)
    return whole.view(-1)[: len(flat)].view_as(tensor), scales
