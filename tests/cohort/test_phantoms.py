"""Phantoms: reproducible, exactly masked, alike in the task and unlike in the scanner."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import max_pool2d

from fedgan.cohort.cohort import ABNORMAL, NORMAL, Cohort
from fedgan.cohort.phantoms import MASK_FRACTION, phantom_cohort, phantom_twins
from fedgan.errors import SettingsError

DISEASES = ("diffuse", "nodular")


def cohort_of(site: str = "A", *, patients: int = 40, images: int = 2, size: int = 64, seed: int = 3) -> Cohort:
    return phantom_cohort(site, patients=patients, images_per_patient=images, size=size, diseases=DISEASES, seed=seed)


@pytest.fixture(scope="module")
def twins() -> tuple[Cohort, Cohort]:
    return phantom_twins("A", patients=40, images_per_patient=2, size=64, diseases=DISEASES, seed=3)


def test_the_same_arguments_give_the_same_cohort():
    first, again = cohort_of(), cohort_of()

    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    assert (first.patients, first.splits) == (again.patients, again.splits)


def test_another_seed_gives_other_patients():
    assert not torch.equal(cohort_of(seed=3).masks, cohort_of(seed=4).masks)


def test_drawing_phantoms_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()

    cohort_of(patients=6)

    assert torch.equal(torch.get_rng_state(), before)


@settings(max_examples=15, deadline=None)
@given(
    patients=st.integers(6, 20),
    images=st.integers(1, 3),
    size=st.sampled_from([32, 64]),
    num_diseases=st.integers(1, 6),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_cohort_keeps_the_contract(patients: int, images: int, size: int, num_diseases: int, seed: int):
    diseases = tuple(f"disease-{number}" for number in range(num_diseases))

    cohort = phantom_cohort("B", patients=patients, images_per_patient=images, size=size, diseases=diseases, seed=seed)

    count = patients * images
    assert cohort.images.shape == (count, 1, size, size)
    assert cohort.images.dtype == torch.float32
    assert cohort.images.isfinite().all()
    assert cohort.images.abs().max() <= 1
    assert cohort.masks.shape == (count, size, size)
    assert torch.equal(cohort.masks.flatten(1).any(dim=1), cohort.status == ABNORMAL)
    assert torch.equal(cohort.diseases.sum(dim=1), (cohort.status == ABNORMAL).float())
    assert cohort.has_mask.all()
    assert len(set(cohort.patients)) == patients
    assert len(set(zip(cohort.patients, cohort.splits, cohort.status.tolist(), strict=True))) == patients
    assert len(set(zip(cohort.splits, cohort.status.tolist(), strict=True))) == 6


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_split_has_both_classes_in_balance_and_every_disease(split):
    cohort = cohort_of(patients=120).split(split)

    assert (cohort.status == ABNORMAL).sum() == (cohort.status == NORMAL).sum()
    assert cohort.diseases.any(dim=0).all()


def test_patients_are_split_60_to_15_to_25():
    cohort = cohort_of(patients=120, images=1)

    assert [len(cohort.split(name)) for name in ("train", "val", "test")] == [72, 18, 30]


def test_a_patients_place_in_the_cohort_does_not_tell_the_class():
    status = cohort_of(patients=120, images=1).status.float()

    assert 0.3 < status[:60].mean() < 0.7


def test_a_scan_far_from_its_mask_is_that_of_the_healthy_twin(twins):
    cohort, healthy = twins
    change = (cohort.images - healthy.images)[:, 0].abs()
    near = max_pool2d(cohort.masks[:, None].float(), 15, stride=1, padding=7)[:, 0] > 0

    assert change[~near].max() < 0.1
    assert change[~near].mean() < 0.002
    assert change[cohort.masks].mean() > 0.2


def test_a_mask_ends_where_the_change_falls_to_the_stated_fraction_of_its_peak(twins):
    cohort, healthy = twins
    abnormal = cohort.status == ABNORMAL
    change, masks = (cohort.images - healthy.images)[abnormal, 0].abs(), cohort.masks[abnormal]

    outside, inside = (change * ~masks).amax(dim=(1, 2)), (change * masks).amax(dim=(1, 2))

    assert (outside / inside).median() == pytest.approx(MASK_FRACTION, abs=0.1)
    assert (outside / inside).max() < 0.7


def test_a_normal_patient_is_its_own_healthy_twin(twins):
    cohort, healthy = twins
    normal = cohort.status == NORMAL

    assert torch.equal(cohort.images[normal], healthy.images[normal])
    assert not healthy.masks.any()
    assert (healthy.status == NORMAL).all()


def test_the_brightest_pixels_of_a_scan_are_not_in_a_lesion():
    cohort = cohort_of(patients=120)
    abnormal = cohort.take((cohort.status == ABNORMAL).nonzero()[:, 0].tolist())
    scans, masks = abnormal.images.flatten(1), abnormal.masks.flatten(1)

    brightest = scans.topk(20, dim=1).indices

    assert masks.gather(1, brightest).float().mean() < 0.05


def test_lesions_cover_a_few_percent_of_the_picture():
    cohort = cohort_of(patients=120)

    areas = cohort.masks[cohort.status == ABNORMAL].float().mean(dim=(1, 2))

    assert 0.02 < areas.median() < 0.04


def test_slices_of_a_patient_are_alike_but_not_equal():
    cohort = cohort_of()
    first, second = cohort.images[0::2], cohort.images[1::2]

    same_patient = (first - second).abs().mean()
    other_patient = (first - second.roll(1, dims=0)).abs().mean()

    assert 0 < same_patient < 0.6 * other_patient


def test_a_nodule_is_hollow_and_a_diffuse_lesion_is_not(twins):
    cohort, healthy = twins
    change = (cohort.images - healthy.images)[:, 0].abs()
    masks = cohort.masks[:, None].float()
    within = [-max_pool2d(-masks, 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0 for pixels in (1, 2, 3)]
    shell, core = within[0] & ~within[1], within[2]

    diffuse, nodular = (
        change[core & ill[:, None, None]].mean() / change[shell & ill[:, None, None]].mean()
        for ill in cohort.diseases.bool().T
    )

    assert nodular < 0.9
    assert diffuse > 1


def test_sites_differ_in_the_scanner_whatever_the_seed():
    def brightness(site: str, seed: int) -> float:
        return cohort_of(site, patients=60, images=1, seed=seed).images.mean().item()

    between = abs(brightness("A", 1) - brightness("B", 1))
    within = max(abs(brightness(site, 1) - brightness(site, 2)) for site in "AB")

    assert between > 2 * within


def test_sites_do_not_differ_in_the_task():
    cohorts = [cohort_of(site, patients=120) for site in "ABC"]

    areas = [cohort.masks.float().mean() for cohort in cohorts]
    shares = [cohort.diseases.mean(dim=0) for cohort in cohorts]

    assert max(areas) < 1.5 * min(areas)
    assert all(torch.equal(share, shares[0]) for share in shares)


def test_too_few_patients_for_every_split_are_refused():
    with pytest.raises(SettingsError, match="site A: 5 phantom patients are too few"):
        cohort_of(patients=5)
