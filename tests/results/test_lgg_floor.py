"""The known floor of the real glioma scans: how far a tumour's own brightness leads, to which a model is compared."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from fedgan.cohort.cohort import Cohort
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.evaluation import Reading, score

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "lgg-flair-128"
SIZE = 64


@pytest.fixture(scope="module")
def lgg():
    """The matched test scans, as the stored 8 bits give them."""
    if not FOLDER.is_dir():
        assert "CI" not in os.environ, "CI needs ../shared/data/lgg-flair-128"
        pytest.skip("../shared/data/lgg-flair-128 is not on this machine")
    with (FOLDER / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row["matched"] == "1"]
    masks = [resampled(row["mask"]) >= 0.5 if row["mask"] else np.zeros((SIZE, SIZE), dtype=bool) for row in rows]
    status = torch.tensor([int(row["label"] == "abnormal") for row in rows])
    return Cohort(
        disease_names=("glioma",),
        images=torch.from_numpy(np.stack([resampled(row["file"]) for row in rows]))[:, None] * 2 - 1,
        status=status,
        diseases=status.float()[:, None],
        masks=torch.from_numpy(np.stack(masks)),
        has_mask=torch.ones(len(rows), dtype=torch.bool),
        boxes=((),) * len(rows),
        patients=tuple(row["patient"] for row in rows),
        splits=("test",) * len(rows),
        sites=tuple(row["site"] for row in rows),
    )


def resampled(name):
    with Image.open(FOLDER / name) as picture:
        small = picture.convert("L").resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / 255


def test_the_matched_test_scans_are_the_known_ones(lgg):
    assert (len(lgg), int(lgg.status.sum())) == (252, 150)


@pytest.mark.parametrize(("sigma", "pixel_ap", "best_dice"), [(0, 0.15, 0.29), (1, 0.25, 0.39), (2, 0.30, 0.42)])
def test_brightness_reaches_the_known_floor(lgg, sigma, pixel_ap, best_dice):
    maps = torch.from_numpy(gaussian_filter((lgg.images[:, 0].numpy() + 1) / 2, (0, sigma, sigma))).clamp(0, 1)

    scores = score(Reading(maps, maps.mean((1, 2)), lgg), threshold=None, bootstrap=Bootstrap(resamplings=0, seed=0))

    assert scores.pixel_ap.value == pytest.approx(pixel_ap, abs=0.02)
    assert scores.best_dice.value == pytest.approx(best_dice, abs=0.02)
