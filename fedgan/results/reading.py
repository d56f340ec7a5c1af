"""A model's reading of a cohort: the maps it draws, ready to be scored or shown."""

import torch
from sklearn.metrics import roc_auc_score

from fedgan.cohort.cohort import ABNORMAL, UNLABELLED, Cohort
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
    """Return ``pixel_ap`` and ``image_auroc`` on a site's validation scans, each only where it can be had."""
    if not len(cohort):
        return {}
    reading = read(networks, cohort, drawing=drawing)
    labelled = cohort.status != UNLABELLED
    abnormal, scores = (cohort.status == ABNORMAL)[labelled], reading.image_scores[labelled]
    found = {"pixel_ap": pixel_ap(reading)}
    if bool(abnormal.any()) and not bool(abnormal.all()):
        found["image_auroc"] = float(roc_auc_score(abnormal.numpy(), scores.numpy()))
    return {name: value for name, value in found.items() if value is not None}
