"""A model's reading of a cohort: the maps it draws, ready to be scored or shown."""

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.gan.disease_map import DiseaseMaps, Drawing, draw_maps
from fedgan.gan.method import Method
from fedgan.results.evaluation import Reading, pixel_ap


def draw(networks: Method, cohort: Cohort, *, drawing: Drawing) -> DiseaseMaps:
    """Draw the map of every scan for all diseases at once: which one a patient has is what is to be found out."""
    return draw_maps(networks, cohort.images, torch.ones_like(cohort.diseases), drawing=drawing)


def read(networks: Method, cohort: Cohort, *, drawing: Drawing) -> Reading:
    """Return the maps and scores of every scan beside the truth."""
    maps = draw(networks, cohort, drawing=drawing)
    return Reading(maps=maps.evidence, image_scores=maps.scores, cohort=cohort)


def validate(networks: Method, cohort: Cohort, *, drawing: Drawing) -> dict[str, float]:
    """Return ``pixel_ap``, ``image_auroc`` and ``aucp`` of a site's validation scans, each only where it can be had."""
    return _figures(read(networks, cohort, drawing=drawing))


def figures_of(cohort: Cohort) -> set[str]:
    """Return the names of the figures that ``validate`` can give of these validation scans, whatever the networks."""
    return set(_figures(Reading(torch.zeros(cohort.masks.shape), torch.zeros(len(cohort)), cohort)))


def image_auroc(reading: Reading) -> float | None:
    """Return the area under the ROC curve of the scans' scores, or None where one class has no scan."""
    labelled = reading.cohort.status != UNLABELLED
    return _auroc((reading.cohort.status == ABNORMAL)[labelled], reading.image_scores[labelled])


def aucp(reading: Reading) -> float | None:
    """Return the pseudo-AUC: AUROC with known normals as 0 and every other scan, unlabelled or abnormal, as 1.

    No mask is looked at, nor who is known to be abnormal. Where a share p of the others is in truth abnormal and the
    rest score as known normals do, it is :math:`p AUROC + (1 - p) / 2`: the best model by the one is the best by the
    other (AUCp, Siddiquee et al. 2026, arXiv:2606.08742; their others are test scans, ours never are).

    Returns:
        The area in [0, 1], or None where no scan is known to be normal, or all are.
    """
    return _auroc(reading.cohort.status != NORMAL, reading.image_scores)


def _figures(reading: Reading) -> dict[str, float]:
    found = {"pixel_ap": pixel_ap(reading), "image_auroc": image_auroc(reading), "aucp": aucp(reading)}
    return {name: value for name, value in found.items() if value is not None}


def _auroc(positive: Tensor, scores: Tensor) -> float | None:
    if not bool(positive.any()) or bool(positive.all()):
        return None
    return float(roc_auc_score(positive.numpy(), scores.numpy()))
