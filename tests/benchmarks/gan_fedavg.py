"""Naive FedAvg (every entry, one weight) against GAN-aware FedAvg, on uneven sites of which one has normal scans only.

    python tests/benchmarks/gan_fedavg.py --data phantoms lgg --root ../shared/data/lgg-flair-128 --minutes 60

Equal budgets, spectral-norm discriminators. Of four sites the largest keeps its training patients, the next half, the
third a quarter, and the last its normal scans only. One line per (data, arm, seed, commit) is kept in
``gan_fedavg.jsonl`` beside this file, and what it holds is not run again; a run that was stopped is resumed. *Norm* is
the largest spectral norm, over layers and rounds, of a discriminator's weight as the layer uses it: 1 is the bound.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean

import torch
from resumed import Line, commit, parser_of, resume, spread

from fedgan.assembly import networks_for
from fedgan.cohort.cohort import NORMAL, Cohort
from fedgan.config import load
from fedgan.errors import FedganError
from fedgan.federated.spectral import as_matrix
from fedgan.federated.tensors import Entry, Role, entries
from fedgan.outcome import conclude, describe_machine
from fedgan.records import Weights
from fedgan.run_folder import RunFolder
from fedgan.settings import Simulation
from fedgan.simulation import Arm, load_cohorts, open_folder, train_in_process

LINES = Path(__file__).with_suffix(".jsonl")

ARMS = {
    "naive": ("aggregation=fedavg",),
    "aware": (),
    "aware, all alike": ("aggregation.exponent=0",),
    "aware, no cap": ("aggregation.cap=1",),
    "aware, critics stay": ("aggregation.share=generator",),
    "aware, second moments kept": ("aggregation.moments=second",),
    "aware, prox 0.01": ("aggregation.discriminator_prox=0.01",),
    "aware, server momentum": ("server_optimizer=fedavgm",),
    "aware, int8": ("compress=int8",),
}
"""By name: the settings in which it differs from the default."""

DATA = {
    "phantoms": ("data.sites=[A,B,C,D]", "rounds=12", "local_steps=40"),
    "lgg": ("data=lgg", "rounds=20", "local_steps=40"),
}

KEPT = (1.0, 0.5, 0.25)
"""Share of the training patients that the sites keep, from the largest; those after them keep their normal scans."""


@dataclass
class Norms:
    """Watches the spectral norm of every round; a ``Watcher``."""

    folder: RunFolder
    found: Mapping[str, Entry]
    largest: list[float] = field(default_factory=list)

    def arm(self, name: str, *, rounds: int, done: int, steps: int) -> None:
        """Be told that an arm begins."""

    def step(self, site: str, losses: Mapping[str, float]) -> None:
        """Be told of a step."""

    def round(self, number: int, score: float | None) -> None:
        """Look at the round that was just kept."""
        self.largest.append(max(effective_norms(self.folder.kept(number).weights, self.found)))
        print(f"  round {number}, norm {self.largest[-1]:.3f}, validation before {score or 0:.3f}", flush=True)


def effective_norms(weights: Weights, found: Mapping[str, Entry]) -> Iterator[float]:
    """Yield the largest singular value of each weight as its layer uses it: divided by what the vectors say it is."""
    for name, entry in found.items():
        if entry.role is Role.VECTOR and entry.normalises and name.endswith("u"):
            matrix = as_matrix(weights[entry.normalises], entry.axis).double()
            left, right = weights[name].double(), weights[f"{name.removesuffix('u')}v"].double()
            yield float(torch.linalg.svdvals(matrix)[0] / (left @ matrix @ right).abs())


def uneven(cohorts: Mapping[str, Cohort]) -> dict[str, Cohort]:
    """Return cohorts of which the larger keep ``KEPT`` of their training patients, and the others normal scans only."""
    sizes = {site: len(set(cohort.split("train").patients)) for site, cohort in cohorts.items()}
    ordered = sorted(cohorts, key=lambda site: (-sizes[site], site))
    shares = dict(zip(ordered, (*KEPT, *[0.0] * len(ordered)), strict=False))
    return {site: _reduced(cohort, shares[site]) for site, cohort in cohorts.items()}


def _reduced(cohort: Cohort, share: float) -> Cohort:
    patients = sorted(set(cohort.split("train").patients))
    kept = set(patients[:: round(1 / share)]) if share else set(patients)
    rows = [
        row
        for row, (patient, split) in enumerate(zip(cohort.patients, cohort.splits, strict=True))
        if split != "train" or (patient in kept and (share or cohort.status[row] == NORMAL))
    ]
    return cohort.take(rows)


def run(settings: Simulation, path: Path) -> dict[str, object]:
    """Train or resume one run and return its figures."""
    cohorts = uneven(load_cohorts(settings))
    arm = Arm("federated", "federated", cohorts, settings.local_steps, quorum=1)
    folder = open_folder(settings, path)
    norms = Norms(folder, entries(networks_for(settings)))
    began = time.perf_counter()
    try:
        train_in_process(settings, arm, folder, norms)
    except FedganError as refusal:
        return {"ended": type(refusal).__name__, "in_round": len(folder.history) + 1}
    metrics, _ = conclude(replace_bootstrap(settings), [(arm, folder)])
    overall = metrics.arms[0].overall
    figures = {"pixel_ap": overall.pixel_ap, "best_dice": overall.best_dice, "image_auroc": overall.image_auroc}
    return {
        **{name: None if figure is None else round(figure.value, 4) for name, figure in figures.items()},
        "norm": round(max(norms.largest, default=0.0), 4),
        "seconds": round(time.perf_counter() - began, 1),
    }


def replace_bootstrap(settings: Simulation) -> Simulation:
    """Return the settings without resampling: spreads here are over seeds."""
    return settings.model_copy(update={"bootstrap": 0})


def table(lines: list[Line]) -> None:
    """Print each arm's mean and standard deviation over seeds, as Markdown."""
    print("| data | arm | seeds | pixel AP | best Dice | image AUROC | norm | seconds |\n" + "|---" * 8 + "|")
    for data in DATA:
        for arm in ARMS:
            found = [line for line in lines if (line["data"], line["arm"]) == (data, arm)]
            if found:
                names = ("pixel_ap", "best_dice", "image_auroc", "norm")
                cells = [spread(line.get(name) for line in found) for name in names]
                seconds = mean(float(str(line.get("seconds", 0))) for line in found)
                print(f"| {data} | {arm} | {len(found)} | {' | '.join(cells)} | {seconds:.0f} |")


def settings_of(told: argparse.Namespace, data: str, arm: str, seed: int) -> Simulation:
    """Return the settings of one run."""
    root = [f"data.root={told.root}"] if data == "lgg" else []
    chosen = [*DATA[data], *root, "model.spectral_norm=true", f"seed={seed}", *ARMS[arm], *told.overrides]
    return load("simulate", Simulation, chosen)


def main() -> None:
    """Run what has no line yet, as long as there is time, and print the table of all lines."""
    parser = parser_of(__doc__, LINES)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--root", type=Path, help="folder of lgg-flair-128")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["naive", "aware"])
    told = parser.parse_args()

    def run_of(entry: Line) -> Mapping[str, object]:
        data, arm, seed = str(entry["data"]), str(entry["arm"]), int(str(entry["seed"]))
        settings = settings_of(told, data, arm, seed)
        if settings.threads:
            torch.set_num_threads(settings.threads)
        path = told.runs / f"{data}-{arm}-{seed}-{commit()}".replace(" ", "-").replace(",", "")
        return {"machine": describe_machine(settings), **run(settings, path)}

    keys = product(told.data, told.seeds, told.arms)
    asked: list[Line] = [{"data": data, "arm": arm, "seed": seed} for data, seed, arm in keys]
    table(resume(told, asked, run_of))


if __name__ == "__main__":
    main()
