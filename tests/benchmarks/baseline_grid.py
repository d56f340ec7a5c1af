"""One picture of what every method makes of the same scans, for eyes; nothing is measured on it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from fedgan.cohort.cohort import ABNORMAL, NORMAL, Cohort

EXAMPLES = 2
"""Abnormal scans of each site."""


def examples_of(cohort: Cohort) -> list[int]:
    """Return rows to show, none chosen by its map: of each site abnormal scans from small to large lesions, one normal.

    Of several scans of a patient the one with the largest lesion stands for it, so that no patient is shown twice;
    where a site has no masks, its patients come in order of their names.
    """
    rows: list[int] = []
    areas = cohort.masks.sum((1, 2)).tolist()
    for site in sorted(set(cohort.sites)):
        here = [row for row in range(len(cohort)) if cohort.sites[row] == site]
        largest: dict[str, int] = {}
        for row in sorted(here, key=lambda row: (areas[row], cohort.patients[row])):
            if cohort.status[row] == ABNORMAL:
                largest[cohort.patients[row]] = row
        ordered = sorted(largest.values(), key=lambda row: (areas[row], cohort.patients[row]))
        places = torch.linspace(0, len(ordered) - 1, EXAMPLES + 2)[1:-1].round().int().tolist() if ordered else []
        rows += [ordered[place] for place in dict.fromkeys(places)]
        rows += [row for row in here if cohort.status[row] == NORMAL][:1]
    return rows


def save_grid(path: Path, cohort: Cohort, maps: Mapping[str, Tensor]) -> None:
    """Write a picture: a row for each example, the scan and then each method's map, on one scale of colours for all.

    Args:
        path: of the picture.
        cohort: the test scans.
        maps: by method, (N, H, W) in [0, 1], one for each scan of the cohort.
    """
    rows = examples_of(cohort)
    columns: Sequence[tuple[str, Tensor]] = [("scan", (cohort.images[:, 0] + 1) / 2), *maps.items()]
    figure = Figure(figsize=(1.2 * len(columns) + 0.6, 1.2 * len(rows) + 0.4), facecolor="black", layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for axes, row in zip(grid, rows, strict=True):
        kind = "normal" if cohort.status[row] == NORMAL else "abnormal"
        axes[0].set_ylabel(f"{cohort.sites[row]}\n{kind}", color="white", fontsize=8)
        for axis, (name, pictures) in zip(axes, columns, strict=True):
            colours = "gray" if name == "scan" else "inferno"
            axis.imshow(pictures[row].float().numpy(), cmap=colours, vmin=0, vmax=1)
            if cohort.masks[row].any():
                axis.contour(cohort.masks[row].numpy(), levels=[0.5], colors="#5fe3ff", linewidths=0.7)
            axis.set(xticks=[], yticks=[])
    for axis, (name, _) in zip(grid[0], columns, strict=True):
        axis.set_title(name, color="white", fontsize=8)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), "inferno"), ax=grid, fraction=0.01)
    bar.ax.tick_params(colors="white", labelsize=7)
    figure.savefig(path, dpi=100)
