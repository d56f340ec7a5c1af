"""Scans and disease maps as pictures for eyes; nothing is measured on them, and the page is made elsewhere."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from PIL.Image import Resampling
from torch import Tensor

Floats = NDArray[np.float32]

_COLOURS = mpl.colormaps["inferno"]
_OPAQUE = 0.85
"""Weight of the colour over the scan where the map is 1."""
_TILE, _TITLE, _GAP, _BAR = 224, 24, 8, 12
"""Pixels of a panel: height of a tile, height of the titles, space between tiles, width of the scale bar."""
_BAR_ROOM = 52
"""Width of the scale bar with its values, in pixels."""
_DPI = 128
"""A power of two, so that pixels divided by it are exact."""
_INK, _QUIET, _TRUTH = "#f2f2f2", "#b8b8b8", "#5fe3ff"
_FONT: dict[str, Any] = {"family": "DejaVu Sans", "size": 6.75, "color": _INK}


@dataclass(frozen=True, slots=True)
class Example:
    """One scan with what the model made of it.

    Shapes: ``scan`` and ``counterpart``, the normal counterpart, (H, W) in [-1, 1]; ``disease_map`` (H, W) in [0, 1];
    ``mask`` (H, W) bool, None where nobody drew one. ``score`` is the scan's score, ``title`` what to call it.
    """

    site: str
    title: str
    scan: Tensor
    counterpart: Tensor
    disease_map: Tensor
    mask: Tensor | None
    abnormal: bool
    score: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """A training scan beside what an attacker recovers of it; all (H, W) in [-1, 1]."""

    title: str
    scan: Tensor
    plain: Tensor
    """From one step's gradient."""
    private: Tensor
    """From the gradient as a private run releases it."""


def overlay(scan: Tensor, disease_map: Tensor, *, height: int = 512) -> Image.Image:
    """Lay the map over its scan in colours whose weight grows with the map, so that normal tissue stays visible.

    Args:
        height: of the picture, in pixels; the width follows the scan.

    Shapes: ``scan`` (H, W) in [-1, 1]; ``disease_map`` (H, W) in [0, 1].
    """
    return Image.fromarray(_overlay(_grey(scan, height), _enlarged(disease_map, height)))


def save_map(path: Path, scan: Tensor, disease_map: Tensor, *, height: int = 512) -> None:
    """Write the overlay as a PNG file that holds pixels and nothing else; see :func:`overlay`."""
    overlay(scan, disease_map, height=height).save(path, format="PNG")


def panel(example: Example, *, threshold: float | None) -> Image.Image:
    """Set scan, normal counterpart, disease map, overlay and mask side by side on black, 248 pixels high.

    The scan and its counterpart share one window: -1 is black and 1 is white. The map's scale bar spans [0, 1]. On the
    overlay a solid line encloses what reaches ``threshold`` and a dashed line is the mask's outline.
    """
    evidence = _enlarged(example.disease_map, _TILE)
    truth = None if example.mask is None else _enlarged(example.mask.float(), _TILE)
    scan = _grey(example.scan, _TILE)
    width = evidence.shape[1]
    step = width + _GAP
    bar = 3 * width + 3 * _GAP
    lefts = (0, step, 2 * step, 2 * step + width + _BAR_ROOM + _GAP, 3 * step + width + _BAR_ROOM + _GAP)
    tiles = (
        scan,
        _grey(example.counterpart, _TILE),
        _coloured(evidence),
        _overlay(scan, evidence),
        np.zeros_like(scan) if truth is None else _rgb(truth >= 0.5),
    )
    canvas = np.zeros((_TITLE + _TILE, lefts[-1] + width, 3), np.uint8)
    for left, tile in zip(lefts, tiles, strict=True):
        canvas[_TITLE:, left : left + width] = tile
    canvas[_TITLE:, bar : bar + _BAR] = _coloured(np.linspace(1, 0, _TILE, dtype=np.float32)[:, None])

    figure, axes = _drawing_on(canvas)
    _write_titles(axes, [left + width / 2 for left in lefts], example.mask)
    _label_bar(axes, bar + _BAR, threshold)
    if threshold is not None:
        _contour(axes, lefts[3], evidence, threshold, colors=_INK, linestyles="solid")
    if truth is not None:
        _contour(axes, lefts[3], truth, 0.5, colors=_TRUTH, linestyles="dashed")
    return _rendered(figure)


def recovered_panel(recovered: Recovered) -> Image.Image:
    """Set the scan and what was recovered of it, without and with privacy, side by side on black in one window."""
    tiles = [_grey(scan, _TILE) for scan in (recovered.scan, recovered.plain, recovered.private)]
    width = tiles[0].shape[1]
    lefts = [number * (width + _GAP) for number in range(len(tiles))]
    canvas = np.zeros((_TITLE + _TILE, lefts[-1] + width, 3), np.uint8)
    for left, tile in zip(lefts, tiles, strict=True):
        canvas[_TITLE:, left : left + width] = tile
    figure, axes = _drawing_on(canvas)
    for left, title in zip(lefts, ("Scan", "Recovered without privacy", "Recovered with privacy"), strict=True):
        axes.text(left + width / 2, _TITLE / 2, title, ha="center", va="center", **_FONT)
    return _rendered(figure)


def data_uri(picture: Image.Image) -> str:
    """Return a picture as an address that holds it, for a page that asks nothing of any network."""
    file = io.BytesIO()
    picture.save(file, format="WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _enlarged(values: Tensor, height: int, resampling: Resampling = Resampling.BILINEAR) -> Floats:
    """Resample to ``height`` rows; linearly, so that a map shows no value that it does not have nearby."""
    picture = Image.fromarray(values.detach().cpu().numpy().astype(np.float32))
    width = max(1, round(picture.width * height / picture.height))
    return np.asarray(picture.resize((width, height), resampling))


def _grey(scan: Tensor, height: int) -> NDArray[np.uint8]:
    # A cubic keeps a scan crisp; it overshoots at edges and is held to the window.
    return _rgb(_enlarged((scan + 1) / 2, height, Resampling.BICUBIC).clip(0, 1))


def _rgb(shares: NDArray[Any]) -> NDArray[np.uint8]:
    """Return greys or colours in [0, 1] as (H, W, 3) bytes."""
    colours = shares if shares.ndim == 3 else np.repeat(shares[..., None], 3, axis=2)
    return (colours * 255).round().astype(np.uint8)


def _coloured(evidence: Floats) -> NDArray[np.uint8]:
    return _rgb(_COLOURS(evidence)[..., :3])


def _overlay(scan: NDArray[np.uint8], evidence: Floats) -> NDArray[np.uint8]:
    weight = _OPAQUE * evidence[..., None]
    return _rgb((1 - weight) * scan / 255 + weight * _COLOURS(evidence)[..., :3])


def _drawing_on(canvas: NDArray[np.uint8]) -> tuple[Figure, Axes]:
    """Return a figure that shows ``canvas`` pixel for pixel, with axes that count in its pixels."""
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width / _DPI, height / _DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(canvas, extent=(0, width, height, 0), interpolation="none")
    return figure, axes


def _rendered(figure: Figure) -> Image.Image:
    size = (round(figure.get_figwidth() * _DPI), round(figure.get_figheight() * _DPI))
    pixels = io.BytesIO()
    figure.savefig(pixels, format="rgba", dpi=_DPI)
    return Image.frombytes("RGBA", size, pixels.getvalue()).convert("RGB")


def _write_titles(axes: Axes, centres: list[float], mask: Tensor | None) -> None:
    titles = ("Scan", "Normal counterpart", "Disease map", "Overlay", "Mask")
    for centre, title in zip(centres, titles, strict=True):
        axes.text(centre, _TITLE / 2, title, ha="center", va="center", **_FONT)
    if mask is None or not mask.any():
        note = "not drawn" if mask is None else "empty"
        axes.text(centres[-1], _TITLE + _TILE / 2, note, ha="center", va="center", **_FONT | {"color": _QUIET})


def _label_bar(axes: Axes, right: float, threshold: float | None) -> None:
    """Write the values beside the scale bar; the threshold takes the place of a value it would touch."""
    marks = {value: _QUIET for value in (0.0, 0.5, 1.0) if threshold is None or abs(value - threshold) > 0.07}
    if threshold is not None:
        marks[threshold] = _INK
    for value, colour in marks.items():
        row = _TITLE + (1 - value) * _TILE
        axes.plot((right, right + 4), (row, row), color=colour, linewidth=1)
        text_row = min(max(row, _TITLE + 5), _TITLE + _TILE - 6)
        axes.text(right + 7, text_row, f"{value:.2g}", ha="left", va="center", **_FONT | {"color": colour})


def _contour(axes: Axes, left: int, values: Floats, level: float, **line: Any) -> None:  # noqa: ANN401
    if values.min() < level < values.max():
        rows, columns = (np.arange(length) + 0.5 for length in values.shape)
        axes.contour(left + columns, _TITLE + rows, values, levels=[level], linewidths=1, **line)
