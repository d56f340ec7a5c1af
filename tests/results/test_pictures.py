"""Pictures of disease maps, checked by their pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedgan.results.pictures import Example, overlay, panel, save_map

TITLE, TILE, GAP = 24, 224, 8
RAMP = torch.linspace(-1, 1, 32).repeat(32, 1)
LESION = torch.zeros(32, 32)
LESION[8:16, 8:16] = 1
EXAMPLE = Example(
    site="A",
    title="patient 1",
    scan=RAMP,
    counterpart=RAMP,
    disease_map=0.9 * LESION,
    mask=LESION.roll(8, dims=1).bool(),
    abnormal=True,
    score=0.1,
)


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(int)


def tile(picture: Image.Image, number: int) -> np.ndarray:
    """Return the pixels of one of the first two tiles of a panel."""
    left = number * (TILE + GAP)
    return pixels(picture)[TITLE:, left : left + TILE]


def blue_pixels(picture: Image.Image) -> int:
    """Count the pixels in the hue of the mask's outline, which the scan and the colours of the map do not have."""
    red, _, blue = pixels(picture).transpose(2, 0, 1)
    return int((blue > red + 100).sum())


def white_pixels_in_colour(picture: Image.Image) -> int:
    left = 3 * TILE + 3 * GAP + 52
    return int((pixels(picture)[TITLE:, left : left + TILE].min(axis=2) > 200).sum())


def test_a_panel_is_five_tiles_and_a_scale_bar_wide():
    picture = panel(EXAMPLE, threshold=0.4)

    assert picture.mode == "RGB"
    assert picture.size == (5 * TILE + 4 * GAP + 52, TITLE + TILE)


@given(height=st.integers(8, 40), width=st.integers(8, 40))
@settings(max_examples=8, deadline=None)
def test_a_panel_keeps_the_shape_of_its_scan(height, width):
    blank = torch.zeros(height, width)
    example = replace(EXAMPLE, scan=blank, counterpart=blank, disease_map=blank, mask=None)

    picture = panel(example, threshold=None)

    assert picture.size == (5 * round(width * TILE / height) + 4 * GAP + 52, TITLE + TILE)


def test_scan_and_counterpart_share_one_window():
    darker = replace(EXAMPLE, counterpart=torch.full((32, 32), -0.5))

    same, different = panel(EXAMPLE, threshold=0.4), panel(darker, threshold=0.4)

    assert (tile(same, 0) == tile(same, 1)).all()
    assert (tile(different, 0) == tile(same, 0)).all()
    assert (tile(different, 1) == 64).all()


def test_the_window_is_not_stretched_to_a_pale_scan():
    pale = replace(EXAMPLE, scan=RAMP / 4)

    shown = tile(panel(pale, threshold=None), 0)

    assert shown.min() == pytest.approx(255 * 0.375, abs=2)
    assert shown.max() == pytest.approx(255 * 0.625, abs=2)


def test_the_outline_of_the_mask_is_drawn_only_where_there_is_a_mask():
    drawn = panel(EXAMPLE, threshold=None)
    missing = panel(replace(EXAMPLE, mask=None), threshold=None)
    empty = panel(replace(EXAMPLE, mask=torch.zeros(32, 32, dtype=torch.bool)), threshold=None)

    assert blue_pixels(drawn) > 50
    assert blue_pixels(missing) == 0
    assert blue_pixels(empty) == 0


def test_the_threshold_is_outlined_only_where_the_map_crosses_it():
    dark = replace(EXAMPLE, scan=-torch.ones(32, 32), mask=None)

    crossed, above, none = (white_pixels_in_colour(panel(dark, threshold=value)) for value in (0.4, 0.95, None))

    assert crossed > 50
    assert above == none == 0


def test_an_empty_mask_and_a_missing_one_read_differently():
    missing = panel(replace(EXAMPLE, mask=None), threshold=None)
    empty = panel(replace(EXAMPLE, mask=torch.zeros(32, 32, dtype=torch.bool)), threshold=None)

    assert missing.tobytes() != empty.tobytes()


def test_an_overlay_leaves_normal_tissue_as_it_was_and_colours_disease():
    picture = pixels(overlay(RAMP, LESION, height=32))

    untouched, coloured = picture[20:, :], picture[10:14, 10:14]
    assert (untouched == untouched[..., :1]).all()
    assert (untouched[0, 1:, 0] >= untouched[0, :-1, 0]).all()
    assert (coloured[..., 0] > coloured[..., 2] + 50).all()


def test_the_more_evidence_the_less_of_the_scan_shows_through():
    dark, bright = torch.full((8, 8), -1.0), torch.full((8, 8), 1.0)

    shown = [
        int(np.ptp([pixels(overlay(scan, torch.full((8, 8), level), height=8))[4, 4, 0] for scan in (dark, bright)]))
        for level in (0.0, 0.25, 0.5, 1.0)
    ]

    assert shown[0] == 255
    assert shown == sorted(shown, reverse=True)
    assert shown[-1] > 0


def test_a_saved_map_is_the_overlay_and_nothing_else(tmp_path: Path):
    save_map(tmp_path / "map.png", RAMP, LESION, height=64)

    with Image.open(tmp_path / "map.png") as saved:
        assert saved.format == "PNG"
        assert saved.info == {}
        assert (pixels(saved) == pixels(overlay(RAMP, LESION, height=64))).all()


def test_the_same_example_gives_the_same_bytes():
    first, second = (panel(EXAMPLE, threshold=0.4).tobytes() for _ in range(2))

    assert first == second
