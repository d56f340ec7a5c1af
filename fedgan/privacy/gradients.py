"""One gradient for each patient, of a loss that sees his scans alone: of one after the other, or of several at once.

Both ways give the same, but for float32's rounding: less than a millionth of the gradient's norm. One plain backward
pass for each is the fastest for large scans on a processor. Small ones leave it idle between thousands of small
operations, so that patients with the same number of scans of each kind are taken together, by ``torch.func.vmap`` of
the gradient of one: code that is run so cannot mix them. Processor seconds of both players of
``model=tagsagan_private``: for 32 scans of 64 x 64, 0.91 one by one and 0.52 in groups of 16; for 8 of 128 x 128, 0.44
and 0.50 in groups of 4.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedgan.gan.method import Method
from fedgan.privacy.chance import secret_stream
from fedgan.records import Batch

PIXELS = {"cpu": 1 << 16, "cuda": 1 << 18}
"""Of the scans of all patients that are taken together, at most, by kind of device: it bounds the memory."""
NUMBERS = 1 << 24
"""Of their gradients, likewise."""
WORTHWHILE = {"cpu": 8, "cuda": 2}
"""Fewest patients who are taken together."""


class Loss(nn.Module):
    """A player's loss of one patient's scans; a module, so that ``functional_call`` can lend it other weights."""

    def __init__(self, method: Method, terms: Callable[[Batch, torch.Generator], Iterable[Tensor]]) -> None:
        """Sum the ``terms`` that a batch has with the networks of ``method``."""
        super().__init__()
        self.networks = cast("nn.Module", method)
        self.terms = terms

    def forward(self, batch: Batch, rng: torch.Generator) -> Tensor:
        """Return the loss, of which nothing depends where no term can be had of the patient's scans."""
        return torch.stack([batch.diseases.new_zeros(()), *self.terms(batch, rng)]).sum()


def gradients_of(loss: Loss, moved: Sequence[nn.Parameter], patients: Iterable[Batch]) -> Iterator[Tensor]:
    """Yield the gradients of all patients, some at a time: (patients, numbers in ``moved``)."""
    waiting: dict[tuple[torch.Size, ...], list[Batch]] = defaultdict(list)
    for patient in patients:
        alike = waiting[tuple(tensor.shape for tensor in _tensors(patient))]
        alike.append(patient)
        if len(alike) >= at_once(patient, moved):
            yield _found(loss, moved, alike)
            alike.clear()
    yield from (_found(loss, moved, alike) for alike in waiting.values() if alike)


def at_once(patient: Batch, moved: Sequence[nn.Parameter]) -> int:
    """Return of how many patients like this one the gradients are found together."""
    device = patient.diseases.device.type
    pixels = sum(scans.numel() for scans in (patient.abnormal, patient.normal, patient.unlabelled))
    many = min(PIXELS[device] // max(1, pixels), NUMBERS // max(1, _numbers(moved)))
    return many if many >= WORTHWHILE[device] else 1


def gradient_of(loss: Tensor, moved: Sequence[nn.Parameter]) -> Tensor:
    """Return the gradient of one patient's loss as one vector; a parameter that has no part in it counts as zero."""
    parts = torch.autograd.grad(loss, moved, allow_unused=True, materialize_grads=True)
    return torch.cat([part.reshape(-1) for part in parts])


def gradients_together(loss: Loss, moved: Sequence[nn.Parameter], patients: Sequence[Batch]) -> Tensor:
    """Return the gradients of patients with scans of the same shapes: (patients, numbers in ``moved``)."""
    stream = secret_stream()

    def of_one(weights: dict[str, Tensor], *tensors: Tensor) -> Tensor:
        found: Tensor = functional_call(loss, weights, (Batch(*tensors), stream))
        return found

    names = {parameter: name for name, parameter in loss.named_parameters()}
    weights = {names[parameter]: parameter.detach() for parameter in moved}
    stacked = [torch.stack(tensors) for tensors in zip(*map(_tensors, patients), strict=True)]
    with torch.no_grad():  # of what is outside of ``grad``
        found = vmap(grad(of_one), in_dims=(None, 0, 0, 0, 0), randomness="different")(weights, *stacked)
    return torch.cat([found[name].flatten(1) for name in weights], dim=1)


def _found(loss: Loss, moved: Sequence[nn.Parameter], patients: Sequence[Batch]) -> Tensor:
    if len(patients) > 1:
        return gradients_together(loss, moved, patients)
    of_one = loss(patients[0], secret_stream())
    return gradient_of(of_one, moved)[None] if of_one.requires_grad else of_one.new_zeros(1, _numbers(moved))


def _numbers(moved: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in moved)


def _tensors(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return batch.abnormal, batch.normal, batch.diseases, batch.unlabelled
