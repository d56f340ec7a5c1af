"""One file to one prepared scan: decoding, brightness, geometry. Which files there are is the manifest's business."""

import errno
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import torch
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError, apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import DecompressionBombError
from torch.nn.functional import interpolate

from fedgan.cohort.cohort import Box

Pixels = NDArray[np.float32]

PICTURES = (".png", ".tif", ".tiff")
VOLUMES = (".nii", ".nii.gz")
GREY_OR_RGB = ("1", "L", "LA", "I;16", "I;16B", "I", "F", "RGB", "RGBA")

# What the decoders raise on files that were damaged at random.
_DAMAGE = (
    OSError, ValueError, TypeError, EOFError, SyntaxError, OverflowError, MemoryError, struct.error, zlib.error,
    DecompressionBombError, ImageFileError, HeaderDataError, WrapStructError, OrientationError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scan:
    """One decoded scan, as stored: ``pixels`` (H, W) in the file's own units.

    ``spacing_mm`` is the height and width of a stored pixel, None where the file does not say.
    """

    pixels: Pixels
    spacing_mm: tuple[float, float] | None


def file_and_slice(path: Path) -> tuple[Path, int | None]:
    """Return the file to open, and the number of the axial slice in it if ``path`` names one.

    >>> file_and_slice(Path("brain.nii.gz#42"))
    (PosixPath('brain.nii.gz'), 42)
    """
    name, mark, number = path.name.rpartition("#")
    if mark and number.isdecimal() and name.lower().endswith(VOLUMES):
        return path.with_name(name), int(number)
    return path, None


def read_scan(path: Path) -> Scan:
    """Decode the scan of a PNG, TIFF or NIfTI file; ``brain.nii.gz#42`` is slice 42 of a volume.

    Shapes: ``pixels`` (H, W) float32, all finite.

    Raises:
        Unreadable: the file is missing, or cannot be read now.
        ValueError: it is damaged, of another format, in colour, or holds more than one picture.
    """
    file, slice_number = file_and_slice(path)
    name = file.name.lower()
    if not name.endswith(PICTURES + VOLUMES):
        raise ValueError(f"files named *{file.suffix} are not read here; use PNG, TIFF or NIfTI")
    try:
        scan = _read_volume(file, slice_number) if name.endswith(VOLUMES) else _read_picture(file)
    except _Refused as refused:
        raise ValueError(str(refused)) from None
    except FileNotFoundError:
        raise Unreadable("there is no such file") from None
    except _DAMAGE as damage:
        kind = Unreadable if _passes(damage) else ValueError
        raise kind(f"the file cannot be decoded ({type(damage).__name__}); is it damaged?") from damage
    if not np.isfinite(scan.pixels).all():
        raise ValueError("some pixels are not finite numbers")
    return scan


class Unreadable(ValueError):
    """A file that may be sound, and cannot be read as things are."""


def _passes(damage: BaseException) -> bool:
    """Return whether the machine refused, and not the decoder; a damaged file may ask for a place that is none."""
    if isinstance(damage, OSError):
        return damage.errno not in (None, errno.EINVAL)
    return isinstance(damage, MemoryError)


class _Refused(Exception):
    """The file is sound, but not one grey picture."""


def _read_picture(file: Path) -> Scan:
    with Image.open(file) as opened:
        if getattr(opened, "n_frames", 1) > 1:
            raise _Refused("the file holds several pictures; export one file for each")
        picture = opened.convert("RGBA") if opened.mode == "P" else opened
        if picture.mode not in GREY_OR_RGB:
            raise _Refused(f"the picture's colours are {picture.mode}; export it in grey")
        pixels = np.asarray(picture, dtype=np.float32)
    if picture.mode.endswith("A"):
        if np.ptp(pixels[..., -1]) > 0:
            raise _Refused("the picture is partly transparent; export it in grey")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3:
        if np.ptp(pixels, axis=2).any():
            raise _Refused("the picture is in colour; disease maps need one brightness per pixel, export it in grey")
        pixels = pixels[..., 0]
    return Scan(np.ascontiguousarray(pixels), spacing_mm=None)


def _read_volume(file: Path, slice_number: int | None) -> Scan:
    """Cut one picture, viewed as in radiology: the patient's right (or front) on the left, head (or front) up."""
    stored = nib.Nifti1Image.from_filename(file)
    shape = (*stored.shape, 1, 1)
    if any(length > 1 for length in shape[3:]):
        raise _Refused("the file holds several volumes; export one file for each")
    to_ras = io_orientation(stored.affine)  # type: ignore[no-untyped-call]
    volume = apply_orientation(np.asarray(stored.dataobj).reshape(shape[:3]), to_ras)  # type: ignore[no-untyped-call]
    zooms = np.ones(3)
    zooms[to_ras[: stored.ndim, 0].astype(int)] = stored.header.get_zooms()[:3]  # type: ignore[no-untyped-call]
    axis = volume.shape.index(1) if slice_number is None and volume.shape.count(1) == 1 else 2
    if slice_number is None and volume.shape[axis] != 1:
        raise _Refused("the file is a volume; name one axial slice of it as in brain.nii.gz#42, 0 being the lowest")
    index = slice_number or 0
    if index >= volume.shape[axis]:
        raise _Refused(f"there is no slice {index}; the volume has slices 0 to {volume.shape[axis] - 1}")
    # Canonical axes run to the right, front and head (RAS+); a picture's rows run down and its columns across.
    plane = np.take(volume, index, axis=axis)[::-1, ::-1].T
    width_mm, height_mm = np.delete(zooms, axis)
    return Scan(np.ascontiguousarray(plane, dtype=np.float32), spacing_mm=(float(height_mm), float(width_mm)))


def prepare(pixels: Pixels, *, size: int, intensity: Literal["range", "tissue_median"]) -> Pixels:
    """Scale brightness to [-1, 1], pad to a square with -1 and resample to ``size`` x ``size``.

    ``range`` stretches the 0.1th to the 99.9th percentile, so that a few hot or dead pixels do not darken the scan.
    ``tissue_median`` puts 0 at -1, the median of the tissue at -1/3 and three times that median at 1: a unit that
    scanners share and lesions hardly move. Tissue is what is brighter than a tenth of the 99th percentile.

    Shapes: ``pixels`` (H, W); result (size, size) float32 in [-1, 1].

    Raises:
        ValueError: the picture is (nearly) constant, or holds no tissue.
    """
    if intensity == "range":
        low, high = np.percentile(pixels, (0.1, 99.9))
    else:
        bright = np.percentile(pixels, 99)
        low, high = 0.0, 3 * np.median(pixels[pixels > 0.1 * bright]) if bright > 0 else 0.0
    if not (high > low and np.ptp(pixels) > 0):
        raise ValueError("the picture is empty: its pixels are all (nearly) the same")
    return _resample(_square(np.clip(2 * (pixels - low) / (high - low) - 1, -1, 1), fill=-1), size)


def prepare_mask(mask: NDArray[np.bool_], *, size: int) -> NDArray[np.bool_]:
    """Give a mask the geometry of its prepared scan: a pixel belongs to it if at least half of its area does.

    A lesion too small for that keeps the pixel that it covers most, so that no mask is lost on the way.

    Shapes: ``mask`` (H, W); result (size, size).
    """
    covered = _resample(_square(mask.astype(np.float32), fill=0), size)
    return np.asarray((covered > 0) & (covered >= min(0.5, covered.max())))


def prepare_boxes(boxes: Sequence[Box], *, shape: tuple[int, int], size: int) -> tuple[Box, ...]:
    """Give boxes, in pixels of a stored picture of ``shape`` (H, W), the geometry of the prepared scan.

    >>> prepare_boxes([(0, 0, 50, 100)], shape=(100, 200), size=64)
    ((0.0, 16.0, 16.0, 32.0),)
    """
    scale = size / max(shape)
    top, left = ((max(shape) - length) // 2 for length in shape)
    return tuple(((x + left) * scale, (y + top) * scale, w * scale, h * scale) for x, y, w, h in boxes)


def _square(pixels: Pixels, *, fill: float) -> Pixels:
    side = max(pixels.shape)
    before = [(side - length) // 2 for length in pixels.shape]
    after = [side - length - first for length, first in zip(pixels.shape, before, strict=True)]
    return np.pad(pixels, list(zip(before, after, strict=True)), constant_values=fill)


def _resample(square: Pixels, size: int) -> Pixels:
    """Shrink by averaging areas, where every stored pixel counts and nothing rings; enlarge bilinearly."""
    mode = "area" if len(square) >= size else "bilinear"
    stored = torch.from_numpy(np.ascontiguousarray(square, dtype=np.float32))
    resampled: Pixels = interpolate(stored[None, None], size=(size, size), mode=mode)[0, 0].numpy()
    return resampled
