"""A model's reading of a cohort, and the two figures by which a site validates."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.gan.disease_map import Drawing, draw_maps
from fedgan.results.reading import draw, read, validate
from fedgan.simulation import networks_for


@pytest.fixture
def networks(tiny):
    return networks_for(tiny())


@pytest.fixture
def cohort():
    return phantom_cohort("A", patients=8, images_per_patient=1, size=32, diseases=("diffuse", "nodular"), seed=0)


def of_status(cohort, *wanted):
    return cohort.take([row for row, status in enumerate(cohort.status.tolist()) if status in wanted])


def unlabelled(cohort, rows):
    """Nobody has looked at the scans of ``rows``."""
    chosen = torch.tensor([row in rows for row in range(len(cohort))])
    return replace(cohort, status=cohort.status.masked_fill(chosen, UNLABELLED), has_mask=cohort.has_mask & ~chosen)


def test_a_map_looks_for_every_disease_whatever_the_scans_label(networks, cohort):
    maps = draw(networks, cohort, drawing=Drawing(smoothing=1.0))

    everything = draw_maps(networks, cohort.images, torch.ones(len(cohort), 2), drawing=Drawing(smoothing=1.0))
    assert torch.equal(maps.evidence, everything.evidence)


def test_a_reading_is_one_map_and_its_mean_for_each_scan_beside_the_truth(networks, cohort):
    reading = read(networks, cohort, drawing=Drawing(smoothing=0))

    assert reading.cohort is cohort
    assert torch.equal(reading.image_scores, reading.maps.mean(dim=(1, 2)))
    (last,) = read(networks, cohort.take([7]), drawing=Drawing(smoothing=0)).maps
    assert torch.allclose(reading.maps[7], last, atol=1e-5)


def test_a_site_validates_with_the_average_precision_of_pixels_and_the_auroc_of_scans(networks, cohort):
    reading = read(networks, cohort, drawing=Drawing(smoothing=1.0))

    found = validate(networks, cohort, drawing=Drawing(smoothing=1.0))

    assert found == {
        "pixel_ap": pytest.approx(average_precision_score(cohort.masks.ravel(), reading.maps.ravel())),
        "image_auroc": pytest.approx(roc_auc_score(cohort.status == ABNORMAL, reading.image_scores)),
    }


@pytest.mark.parametrize(("statuses", "figures"), [((), set()), ((NORMAL,), set()), ((ABNORMAL,), {"pixel_ap"})])
def test_a_site_validates_with_what_its_scans_can_tell(networks, cohort, statuses, figures):
    assert set(validate(networks, of_status(cohort, *statuses), drawing=Drawing(smoothing=1.0))) == figures


def test_without_masks_a_site_validates_by_its_scans(networks, cohort):
    without_masks = replace(cohort, has_mask=cohort.status == NORMAL, masks=torch.zeros_like(cohort.masks))

    assert set(validate(networks, without_masks, drawing=Drawing(smoothing=1.0))) == {"image_auroc"}


def test_scans_that_nobody_labelled_change_no_figure(networks, cohort):
    rows = {0, 1, 6}

    found = validate(networks, unlabelled(cohort, rows), drawing=Drawing(smoothing=1.0))

    others = cohort.take([row for row in range(len(cohort)) if row not in rows])
    assert found == pytest.approx(validate(networks, others, drawing=Drawing(smoothing=1.0)))
    assert set(found) == {"pixel_ap", "image_auroc"}
