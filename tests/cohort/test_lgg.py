"""Brain MR of four hospitals, read as a site would read it; the figures are those of the data's own description."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score

from fedgan.cohort.cohort import ABNORMAL, NORMAL, Cohort, pool
from fedgan.cohort.images import read_scan
from fedgan.cohort.manifest import load_cohorts, read_manifest
from fedgan.errors import CohortError
from fedgan.settings import ManifestData

PACK = Path(__file__).parents[3] / "shared" / "data" / "lgg-flair-128"

NORMAL_ABNORMAL = {
    "CS": {"train": (53, 82), "val": (9, 14), "test": (13, 12)},
    "DU": {"train": (288, 429), "val": (25, 60), "test": (36, 59)},
    "FG": {"train": (106, 131), "val": (7, 8), "test": (17, 41)},
    "HT": {"train": (95, 221), "val": (12, 22), "test": (36, 38)},
}


@pytest.fixture(scope="module")
def pack() -> Path:
    if not PACK.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "the LGG slices are not beside the project, in shared/data"
        )
    return PACK


def settings(pack: Path, cache: Path, *, where: str | None = "matched == 1") -> ManifestData:
    return ManifestData(
        kind="manifest",
        root=pack,
        manifest="manifest.csv",
        where=where,
        sites=None,
        diseases=("glioma",),
        size=64,
        hide_labels=0,
        hidden_abnormal=None,
        intensity="tissue_median",
        cache=cache,
    )


@pytest.fixture(scope="module")
def cohorts(pack: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cohort]:
    return load_cohorts(settings(pack, tmp_path_factory.mktemp("cache")))


def test_the_matched_slices_of_each_hospital_and_split_are_all_there(cohorts):
    counts = {
        site: {
            name: tuple(int((cohort.split(name).status == status).sum()) for status in (NORMAL, ABNORMAL))
            for name in ("train", "val", "test")
        }
        for site, cohort in cohorts.items()
    }

    assert counts == NORMAL_ABNORMAL


def test_a_patient_is_at_one_hospital_and_in_one_split(cohorts):
    places: dict[str, set[tuple[str, str]]] = {}
    for cohort in cohorts.values():
        for patient, site, split in zip(cohort.patients, cohort.sites, cohort.splits, strict=True):
            places.setdefault(patient, set()).add((site, split))

    assert all(len(place) == 1 for place in places.values())


def test_every_abnormal_slice_has_a_lesion_in_its_mask_and_no_normal_one_has(cohorts):
    for cohort in cohorts.values():
        assert cohort.has_mask.all()
        assert (cohort.masks.any(dim=(1, 2)) == (cohort.status == ABNORMAL)).all()


def test_the_hospitals_scanners_agree_on_the_brightness_of_tissue(cohorts):
    for cohort in cohorts.values():
        tissue = cohort.images[cohort.images > -0.8]

        assert tissue.median().item() == pytest.approx(-1 / 3, abs=0.1)


@pytest.mark.parametrize(("sigma", "floor"), [(0, 0.15), (1, 0.25), (2, 0.30)])
def test_brightness_alone_reaches_the_known_floor_on_the_test_slices(pack, cohorts, sigma, floor):
    masks = pool([cohort.split("test") for cohort in cohorts.values()]).masks.numpy()
    listed = read_manifest(pack / "manifest.csv", where="matched == 1 and split == 'test'", diseases=("glioma",))
    rows = sorted(listed, key=lambda row: row.site)

    stored = (read_scan(pack / row.file).pixels for row in rows)
    maps = [gaussian_filter(pixels.reshape(64, 2, 64, 2).mean(axis=(1, 3)), sigma) for pixels in stored]

    assert len(maps) == 252
    assert average_precision_score(masks.ravel(), np.ravel(maps)) == pytest.approx(floor, abs=0.02)


def test_brightness_in_units_of_tissue_is_a_higher_floor(cohorts):
    test = pool([cohort.split("test") for cohort in cohorts.values()])

    maps = [gaussian_filter(image, 2) for image in test.images[:, 0].numpy()]

    assert average_precision_score(test.masks.numpy().ravel(), np.ravel(maps)) == pytest.approx(0.384, abs=0.01)


def test_slices_that_show_nothing_are_refused_when_all_rows_are_asked_for(pack, tmp_path):
    with pytest.raises(CohortError) as refused:
        load_cohorts(settings(pack, tmp_path, where="site == 'CS'"))

    assert any("the picture is empty" in problem for problem in refused.value.problems)
