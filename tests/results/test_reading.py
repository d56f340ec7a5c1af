"""A model's reading of a cohort, and the figures by which a site validates."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from fedgan.assembly import networks_for
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.gan.disease_map import Drawing, draw_maps
from fedgan.results.evaluation import Reading
from fedgan.results.reading import aucp, draw, figures_of, image_auroc, read, validate


@pytest.fixture
def networks(tiny):
    return networks_for(tiny())


@pytest.fixture
def cohort():
    return phantom_cohort("A", patients=8, images_per_patient=1, size=32, diseases=("diffuse", "nodular"), seed=0)


def of_status(cohort, *wanted):
    return cohort.take([row for row, status in enumerate(cohort.status.tolist()) if status in wanted])


def chance(number, *, seed=0):
    """Return so many scores in [0, 1)."""
    return torch.rand(number, generator=torch.Generator().manual_seed(seed))


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
        "aucp": found["image_auroc"],
    }


@pytest.mark.parametrize(("statuses", "figures"), [((), set()), ((NORMAL,), set()), ((ABNORMAL,), {"pixel_ap"})])
def test_a_site_validates_with_what_its_scans_can_tell(networks, cohort, statuses, figures):
    scans = of_status(cohort, *statuses)

    assert set(validate(networks, scans, drawing=Drawing(smoothing=1.0))) == figures_of(scans) == figures


def test_the_pseudo_auc_sets_known_normals_against_all_others(cohort):
    reading = Reading(torch.zeros(cohort.masks.shape), chance(len(cohort)), cohort)
    hidden = replace(reading, cohort=unlabelled(cohort, {0, 1, 6}))

    found = aucp(hidden)

    assert found == roc_auc_score(hidden.cohort.status != NORMAL, reading.image_scores)
    assert found != image_auroc(hidden)


def test_the_pseudo_auc_looks_at_no_mask_nor_at_who_is_known_to_be_abnormal(cohort):
    reading = Reading(torch.zeros(cohort.masks.shape), chance(len(cohort)), cohort)
    nothing_known = replace(
        cohort,
        status=cohort.status.masked_fill(cohort.status == ABNORMAL, UNLABELLED),
        masks=torch.zeros_like(cohort.masks),
        has_mask=torch.zeros_like(cohort.has_mask),
        diseases=torch.zeros_like(cohort.diseases),
    )

    assert aucp(replace(reading, cohort=nothing_known)) == aucp(reading)
    assert figures_of(nothing_known) == {"aucp"}


@pytest.mark.parametrize("seed", range(5))
def test_normals_among_the_others_shrink_the_pseudo_auc_towards_chance_and_keep_its_order(cohort, seed):
    twice = cohort.take([*range(8), *range(8)])
    reading = Reading(torch.zeros(twice.masks.shape), chance(8, seed=seed).repeat(2), twice)
    again = (twice.status == NORMAL) & (torch.arange(16) >= 8)
    half_known = replace(reading, cohort=replace(twice, status=twice.status.masked_fill(again, UNLABELLED)))

    found = aucp(half_known)

    assert found == pytest.approx(8 / 12 * image_auroc(reading) + 4 / 12 * 1 / 2)


def test_without_known_normals_or_without_others_there_is_no_pseudo_auc(cohort):
    for scans in (of_status(cohort, ABNORMAL), of_status(cohort, NORMAL), cohort.take([])):
        assert aucp(Reading(torch.zeros(scans.masks.shape), torch.zeros(len(scans)), scans)) is None


def test_without_masks_a_site_validates_by_its_scans(networks, cohort):
    without_masks = replace(cohort, has_mask=cohort.status == NORMAL, masks=torch.zeros_like(cohort.masks))

    assert set(validate(networks, without_masks, drawing=Drawing(smoothing=1.0))) == {"image_auroc", "aucp"}


def test_scans_that_nobody_labelled_change_no_figure_of_labels(networks, cohort):
    rows = {0, 1, 6}

    found = validate(networks, unlabelled(cohort, rows), drawing=Drawing(smoothing=1.0))

    others = cohort.take([row for row in range(len(cohort)) if row not in rows])
    expected = validate(networks, others, drawing=Drawing(smoothing=1.0))
    assert {name: found[name] for name in ("pixel_ap", "image_auroc")} == pytest.approx(
        {name: expected[name] for name in ("pixel_ap", "image_auroc")}
    )
    assert set(found) == {"pixel_ap", "image_auroc", "aucp"}
