"""How hard the phantoms are: what trivial cues find in them, and what masks could teach.

``python tests/benchmarks/phantom_cues.py --seed 1 --steps 600`` prints the pixel average precision of each cue and of
a U-Net trained on the masks, over the test scans of three sites together: about 4 minutes on one processor thread.
"""

import argparse
import time
from collections.abc import Mapping

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fedgan.cohort.cohort import NORMAL, Cohort, pool
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.gan.networks import DifferenceGenerator
from fedgan.streams import generator_for

WIDTHS = (1, 2, 4, 8, 16)
"""Standard deviations, in pixels, of the surroundings that local contrast compares with."""


def cues(cohort: Cohort) -> Mapping[str, np.ndarray]:
    """Return each cue's map of one site's test scans: (N, H, W) each, larger is more suspicious."""
    test, train = cohort.split("test"), cohort.split("train")
    scans = test.images[:, 0].numpy()
    mean_normal = train.images[train.status == NORMAL, 0].mean(dim=0).numpy()
    around = {width: gaussian_filter(scans, (0, width, width)) for width in WIDTHS}
    return {
        "brightness": scans,
        "darkness": -scans,
        "brightness, smoothed 2 px": around[2],
        **{f"local contrast, {width} px": np.abs(scans - around[width]) for width in WIDTHS},
        "far from the site's mean normal": np.abs(scans - mean_normal),
    }


def supervised_map(train: Cohort, test: Cohort, *, steps: int, seed: int) -> np.ndarray:
    """Train a U-Net of 16 base channels on the masks of ``train``; return its scores of ``test``: (N, H, W)."""
    torch.manual_seed(seed)
    network = DifferenceGenerator(num_diseases=0, width=16, patch=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    rng = generator_for(seed, "supervised")

    def logits(images: Tensor) -> Tensor:
        return 10 * network(images, torch.zeros(len(images), 0))[:, 0]

    for _ in range(steps):
        rows = torch.randint(len(train), (16,), generator=rng)
        mirrored = torch.rand(16, generator=rng) < 0.5
        images, masks = train.images[rows], train.masks[rows].float()
        images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        masks = torch.where(mirrored[:, None, None], masks.flip(2), masks)
        loss = binary_cross_entropy_with_logits(logits(images), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.cat([logits(images) for images in test.images.split(64)]).numpy()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600, help="steps of 16 scans of the U-Net; 0 leaves it out")
    parser.add_argument("--patients", type=int, default=120, help="patients per site")
    chosen = parser.parse_args()
    torch.set_num_threads(1)

    cohorts = [
        phantom_cohort(
            site,
            patients=chosen.patients,
            images_per_patient=2,
            size=64,
            diseases=("diffuse", "nodular"),
            seed=chosen.seed,
        )
        for site in "ABC"
    ]
    cohort = pool(cohorts)
    test = cohort.split("test")
    truth = test.masks.numpy().ravel()
    per_site = [cues(site) for site in cohorts]
    maps = {name: np.concatenate([site[name] for site in per_site]) for name in per_site[0]}
    started = time.monotonic()
    if chosen.steps:
        train = cohort.split("train")
        maps["U-Net trained on masks"] = supervised_map(train, test, steps=chosen.steps, seed=chosen.seed)
    minutes = (time.monotonic() - started) / 60

    table = Table("map", "pixel AP", title=f"{len(test)} test scans, {truth.mean():.1%} of their pixels are lesion")
    for name, scores in maps.items():
        table.add_row(name, f"{average_precision_score(truth, scores.ravel()):.3f}")
    console = Console()
    console.print(table)
    console.print(f"U-Net: {chosen.steps} steps in {minutes:.1f} minutes on one thread")


if __name__ == "__main__":
    main()
