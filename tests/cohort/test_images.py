"""Files to scans, and scans to what the networks read."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from fedgan.cohort.images import prepare, prepare_boxes, prepare_mask, read_scan

RAMP = np.arange(12, dtype=np.uint8).reshape(3, 4)


def save_picture(folder: Path, pixels: np.ndarray, name: str = "scan.png", **options: object) -> Path:
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def save_volume(folder: Path, voxels: np.ndarray, affine: np.ndarray | None = None, name: str = "scan.nii.gz") -> Path:
    nib.save(nib.Nifti1Image(voxels, np.eye(4) if affine is None else affine), folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("pixels", "name", "options"),
    [
        (RAMP, "scan.png", {}),
        (RAMP.astype(np.uint16) * 5000, "scan.png", {}),
        (RAMP > 5, "scan.png", {}),
        (RAMP, "SCAN.TIF", {}),
        (RAMP.astype(np.uint16) * 5000, "scan.tiff", {"compression": "tiff_lzw"}),
        (RAMP.astype(np.float32) / 7 - 1, "scan.tif", {"compression": "tiff_deflate"}),
    ],
)
def test_a_picture_keeps_the_values_of_its_file(tmp_path, pixels, name, options):
    path = save_picture(tmp_path, pixels, name, **options)

    scan = read_scan(path)

    assert scan.pixels.dtype == np.float32
    assert np.array_equal(scan.pixels, pixels.astype(np.float32))
    assert scan.spacing_mm is None


def test_a_colour_picture_of_greys_is_read_as_grey(tmp_path):
    path = save_picture(tmp_path, np.repeat(RAMP[..., None], 3, axis=2))

    assert np.array_equal(read_scan(path).pixels, RAMP)


def test_an_opaque_picture_is_read_without_its_opacity(tmp_path):
    path = save_picture(tmp_path, np.stack([RAMP, np.full_like(RAMP, 255)], axis=-1))

    assert np.array_equal(read_scan(path).pixels, RAMP)


def test_an_axial_slice_lies_as_in_radiology_however_the_volume_is_stored(tmp_path):
    ras = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    path = save_volume(tmp_path, ras, np.diag([2.0, 3.0, 5.0, 1.0]))
    turned = np.array([[0, 0, 2, 0], [0, -3, 0, 6], [5, 0, 0, 0], [0, 0, 0, 1.0]])
    stored_otherwise = save_volume(tmp_path, ras.T[:, ::-1], turned, "turned.nii")

    scan = read_scan(path.with_name("scan.nii.gz#1"))
    same = read_scan(stored_otherwise.with_name("turned.nii#1"))

    right_front, left_back = scan.pixels[0, 0], scan.pixels[-1, -1]
    assert right_front == ras[1, 2, 1]
    assert left_back == ras[0, 0, 1]
    assert scan.spacing_mm == same.spacing_mm == (3.0, 2.0)
    assert np.array_equal(scan.pixels, same.pixels)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 1, 1)])
def test_a_file_with_one_slice_needs_no_slice_number(tmp_path, shape):
    path = save_volume(tmp_path, RAMP.T.reshape(shape))

    assert np.array_equal(read_scan(path).pixels, RAMP[::-1, ::-1])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.png", "no such file"),
        ("scan.dcm", r"\*\.dcm are not read"),
        ("volume.nii.gz", "name one axial slice"),
        ("volume.nii.gz#9", "slices 0 to 3"),
        ("series.nii.gz", "several volumes"),
        ("colour.png", "in colour"),
        ("glass.png", "transparent"),
        ("print.tif", "colours are CMYK"),
        ("pages.tif", "several pictures"),
        ("text.png", "is it damaged"),
        ("broken.tif", "not finite"),
    ],
)
def test_what_is_not_one_grey_picture_is_refused_with_its_reason(tmp_path, name, reason):
    save_volume(tmp_path, np.zeros((2, 3, 4), np.int16), name="volume.nii.gz")
    save_volume(tmp_path, np.zeros((2, 3, 1, 5), np.int16), name="series.nii.gz")
    save_picture(tmp_path, np.eye(3, dtype=np.uint8)[..., None] * np.array([0, 9, 0], np.uint8), "colour.png")
    save_picture(tmp_path, np.stack([RAMP, RAMP], axis=-1), "glass.png")
    Image.new("CMYK", (4, 3)).save(tmp_path / "print.tif")
    save_picture(tmp_path, RAMP, "pages.tif", save_all=True, append_images=[Image.fromarray(RAMP)])
    (tmp_path / "text.png").write_text("not a picture")
    save_picture(tmp_path, np.full((3, 4), np.nan, np.float32), "broken.tif")

    with pytest.raises(ValueError, match=reason):
        read_scan(tmp_path / name)


@pytest.mark.parametrize("name", ["scan.png", "scan.nii.gz"])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_never_more(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = save_picture(folder, RAMP, name) if name.endswith("png") else save_volume(folder, RAMP)
    sound = path.read_bytes()
    cut = data.draw(st.integers(0, len(sound) - 1))
    at = data.draw(st.integers(0, len(sound) - 1))

    path.write_bytes(
        sound[:at] + bytes([sound[at] ^ 0x55]) + sound[at + 1 :] if data.draw(st.booleans()) else sound[:cut]
    )

    try:
        assert read_scan(path).pixels.ndim == 2
    except ValueError as reason:
        assert str(reason)


SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=80)
BRIGHTNESS = st.floats(-1e4, 1e4, width=32)


@given(pixels=arrays(np.float32, SHAPES, elements=BRIGHTNESS), intensity=st.sampled_from(["range", "tissue_median"]))
def test_a_prepared_scan_is_square_and_within_bounds(pixels, intensity):
    try:
        image = prepare(pixels, size=32, intensity=intensity)
    except ValueError as reason:
        assert "empty" in str(reason)
        return

    assert image.shape == (32, 32)
    assert image.dtype == np.float32
    assert image.min() >= -1
    assert image.max() <= 1


@pytest.mark.parametrize("brightness", [-5, 0, 7])
@pytest.mark.parametrize("intensity", ["range", "tissue_median"])
def test_a_constant_picture_is_refused(intensity, brightness):
    with pytest.raises(ValueError, match="empty"):
        prepare(np.full((8, 8), brightness, np.float32), size=32, intensity=intensity)


def test_the_range_runs_from_black_to_white():
    pixels = np.repeat(np.array([[100.0, 300.0], [200.0, 100.0]], np.float32), 16, 0).repeat(16, 1)

    image = prepare(pixels, size=32, intensity="range")

    assert [image[0, 0], image[0, -1], image[-1, 0]] == pytest.approx([-1, 1, 0])


def test_the_tissue_median_is_the_unit_of_brightness_whatever_the_scanner():
    pixels = np.zeros((32, 32), np.float32)
    pixels[8:24, 8:24] = 50
    pixels[10:12, 10:14] = 400

    image = prepare(pixels, size=32, intensity="tissue_median")

    assert image[0, 0] == -1
    assert image[20, 20] == pytest.approx(-1 / 3)
    assert image[10, 10] == 1
    assert np.allclose(image, prepare(pixels * 7, size=32, intensity="tissue_median"))


def test_a_wide_picture_is_padded_with_background_and_keeps_its_proportions():
    pixels = np.tile(np.linspace(1, 2, 128, dtype=np.float32), (64, 1))

    image = prepare(pixels, size=64, intensity="tissue_median")

    assert (image[:16] == -1).all()
    assert (image[48:] == -1).all()
    assert (image[16:48] > -1).all()


@given(arrays(np.bool_, SHAPES))
def test_a_mask_is_empty_when_prepared_only_if_it_was_before(mask):
    assert prepare_mask(mask, size=32).any() == mask.any()


def test_a_small_lesion_keeps_the_pixel_that_it_covers_most():
    mask = np.zeros((256, 256), bool)
    mask[40, 47:50] = True

    prepared = prepare_mask(mask, size=64)

    assert np.argwhere(prepared).tolist() == [[10, 12]]


@given(
    shape=st.tuples(st.integers(40, 150), st.integers(40, 150)),
    corner=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    extent=st.tuples(st.integers(12, 20), st.integers(12, 20)),
)
def test_scan_mask_and_box_share_one_geometry(shape, corner, extent):
    (top, left), (height, width) = corner, extent
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True

    image = prepare(mask.astype(np.float32), size=64, intensity="range")
    prepared = prepare_mask(mask, size=64)
    ((x, y, w, h),) = prepare_boxes([(left, top, width, height)], shape=shape, size=64)

    rows, columns = np.nonzero(prepared)
    assert np.array_equal(prepared, image >= 0)
    assert [columns.min(), rows.min()] == pytest.approx([x, y], abs=1)
    assert [columns.max() + 1, rows.max() + 1] == pytest.approx([x + w, y + h], abs=1)
