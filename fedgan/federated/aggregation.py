"""Check the updates of a round and turn them into the next global model."""

import math
import re
from collections.abc import Callable, Sequence

import torch

from fedgan.errors import UpdateRejected
from fedgan.records import GlobalModel, SiteUpdate

Aggregate = Callable[[GlobalModel, Sequence[SiteUpdate]], GlobalModel]
"""From a round's checked updates to the next global model."""

METRIC = re.compile(r"(loss|validation)/[a-z0-9_]{1,40}")


def fedavg(model: GlobalModel, updates: Sequence[SiteUpdate]) -> GlobalModel:
    r"""Return :math:`w + \sum_k \frac{n_k}{n} \Delta_k` (McMahan et al. 2017, arXiv:1602.05629, alg. 1).

    Every site's :math:`\Delta` counts by its training images. Sums run in float64, sites in order of name, so that the
    order of arrival changes nothing.
    """
    total = sum(update.num_images for update in updates)
    ordered = sorted(updates, key=lambda update: update.site)
    weights = {}
    for name, before in model.weights.items():
        moved = before.double()
        for update in ordered:
            moved = moved + update.delta[name].double() * (update.num_images / total)
        weights[name] = moved.to(before.dtype)
    return GlobalModel(round=model.round + 1, weights=weights)


AGGREGATIONS: dict[str, Aggregate] = {"fedavg": fedavg}
"""By the setting's name."""


def check(model: GlobalModel, update: SiteUpdate) -> None:
    """Refuse an update that cannot be averaged into ``model``, or whose metrics are not what was agreed on.

    Raises:
        UpdateRejected: as the message says, naming the site.
    """
    if update.round != model.round:
        raise UpdateRejected(
            f"site {update.site} answered for round {update.round + 1} in round {model.round + 1}; is it restarting?"
        )
    if update.num_images < 1:
        raise UpdateRejected(f"site {update.site} claims to have trained on no image; it must check its manifest")
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in model.weights.items()}
    if expected != {name: (tensor.shape, tensor.dtype) for name, tensor in update.delta.items()}:
        raise UpdateRejected(
            f"site {update.site} sent tensors that differ from the model's in name, shape or type; "
            "is it running the same model configuration?"
        )
    if not all(bool(torch.isfinite(tensor).all()) for tensor in update.delta.values()):
        raise UpdateRejected(f"site {update.site} sent values that are not finite; the site must look at its training")
    check_metrics(update)


def check_metrics(update: SiteUpdate) -> None:
    """Refuse metrics that are not finite figures under agreed names, scores of validation within [0, 1].

    Raises:
        UpdateRejected: as the message says, naming the site but never the metric, whose name may be anything.
    """
    for name, value in update.metrics.items():
        bounded = 0 <= value <= 1 if name.startswith("validation/") else math.isfinite(value)
        if not (METRIC.fullmatch(name) and bounded):
            raise UpdateRejected(f"site {update.site} sent a metric that is no bounded figure of an agreed name")
