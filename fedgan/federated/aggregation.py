"""Check the updates of a round and turn them into the next global model."""

from collections.abc import Sequence

import torch

from fedgan.errors import UpdateRejected
from fedgan.records import GlobalModel, SiteUpdate


def aggregate(model: GlobalModel, updates: Sequence[SiteUpdate]) -> GlobalModel:
    r"""Return :math:`w + \sum_k \frac{n_k}{n} \Delta_k` (McMahan et al. 2017, arXiv:1602.05629, alg. 1).

    Every site's :math:`\Delta` counts by its training images. Sums run in float64, sites in order of name, so that the
    order of arrival changes nothing.

    Raises:
        UpdateRejected: an update is of another round, shape or type, is not finite, or claims no images.
    """
    for update in updates:
        check(model, update)
    total = sum(update.num_images for update in updates)
    ordered = sorted(updates, key=lambda update: update.site)
    weights = {}
    for name, before in model.weights.items():
        moved = before.double()
        for update in ordered:
            moved = moved + update.delta[name].double() * (update.num_images / total)
        weights[name] = moved.to(before.dtype)
    return GlobalModel(round=model.round + 1, weights=weights)


def check(model: GlobalModel, update: SiteUpdate) -> None:
    """Refuse an update that cannot be averaged into ``model``.

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
