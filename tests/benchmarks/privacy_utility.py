"""What a promise to each patient costs in quality: pixel AP and Dice by epsilon and by the number of patients.

    python tests/benchmarks/privacy_utility.py threads=1 --minutes 60
    python tests/benchmarks/privacy_utility.py threads=1 --data lgg --root ../shared/data/lgg-flair-128

Two phantom sites of 32 x 32 pixels with so many training patients each, or the four LGG hospitals at 64 x 64, with 10
to 32. All runs start from one model of public scans, phantoms of other scanners, trained without a promise. *public* is
that model as it is; *inf* trains on without a promise, for as many local steps. Delta is a tenth of one over the
patients. Phantom sites keep the same sixty patients to validate and test on, whatever the number they train on. One
line per (data, patients, epsilon, seed, commit) is kept in ``privacy_utility.jsonl`` beside this file, and what it
holds is not run again.
"""

import argparse
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import torch
from matplotlib.figure import Figure
from resumed import Line, parser_of, resume, spread

from fedgan.cohort.cohort import Cohort, pool
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import load
from fedgan.outcome import conclude, describe_machine
from fedgan.run_folder import RunFolder
from fedgan.settings import Simulation
from fedgan.simulation import Arm, load_cohorts, open_folder, train_in_process

LINES = Path(__file__).with_suffix(".jsonl")

EPSILONS = ("public", "1", "3", "8", "inf")

COMMON = ("model=tagsagan_private", "bootstrap=0", "precision=float32")

TRAINING = ("select=last", "rounds=5", "local_steps=10", "aggregation.moments=both")
"""The same with and without a promise. Adam's moments outlive the short rounds: of noisy gradients, that is free."""

CHUNK = 1000
"""Phantom patients rendered at once."""


@dataclass(frozen=True)
class Data:
    """Scans that must not leave, and public ones."""

    public: tuple[str, ...]
    private: tuple[str, ...]
    draws: Mapping[int, int]
    """Patients of a draw, by the number of training patients of a site."""


DATA = {
    "phantoms": Data(
        public=("data.size=32", "data.sites=[P]", "data.patients=60", "quorum=1", "rounds=8", "local_steps=40"),
        private=("data.size=32", "data.sites=[A,B]", "data.patients=60"),
        draws={100: 50, 1000: 100, 10000: 100},
    ),
    "lgg": Data(
        public=("data.sites=[P,Q,R]", "data.patients=60", "data.diseases=[glioma]", "rounds=8", "local_steps=40"),
        private=("data=lgg",),
        draws={20: 10},
    ),
}


def settings_of(told: argparse.Namespace, entry: Line) -> Simulation:
    """Return the settings of one run on private scans."""
    data, epsilon, patients = str(entry["data"]), str(entry["epsilon"]), int(str(entry["patients"]))
    chosen = [*COMMON, *TRAINING, *DATA[data].private, f"start={public_folder(told, entry)}/model"]
    if data == "lgg":
        chosen.append(f"data.root={told.root}")
    if epsilon not in ("public", "inf"):
        drawn = DATA[data].draws[patients]
        delta = 0.1 / patients
        chosen += ["privacy=patient", f"privacy.epsilon={epsilon}", f"privacy.delta={delta}"]
        chosen += [f"privacy.cohort={patients}", f"privacy.patients={drawn}"]
    return load("simulate", Simulation, [*chosen, f"seed={entry['seed']}", *told.overrides])


def public_folder(told: argparse.Namespace, entry: Line) -> Path:
    """Return the folder of the run on public scans."""
    return Path(told.runs).absolute() / f"public-{entry['data']}-{entry['seed']}"


def train(settings: Simulation, path: Path, cohorts: Mapping[str, Cohort]) -> tuple[Arm, RunFolder]:
    """Train or resume one run."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    arm, folder = Arm("federated", "federated", cohorts, settings.local_steps, quorum=1), open_folder(settings, path)
    train_in_process(settings, arm, folder)
    return arm, folder


def run(told: argparse.Namespace, entry: Line) -> Mapping[str, object]:
    """Train one run and return its figures on the test patients; *public* is looked at on the same."""
    began = time.perf_counter()
    public = DATA[str(entry["data"])].public
    chosen = load("simulate", Simulation, [*COMMON, *public, f"seed={entry['seed']}", *told.overrides])
    start = train(chosen, public_folder(told, entry), load_cohorts(chosen))
    conclude(chosen, [start])
    settings = settings_of(told, entry)
    cohorts, patients = load_cohorts(settings), int(str(entry["patients"]))
    if entry["data"] == "phantoms" and patients:
        cohorts = {site: with_patients(cohort, site, patients, settings) for site, cohort in cohorts.items()}
    if entry["epsilon"] == "public":
        arm, folder = Arm("federated", "federated", cohorts, settings.local_steps, quorum=1), start[1]
    else:
        name = "-".join(str(entry[key]) for key in ("data", "patients", "epsilon", "seed"))
        arm, folder = train(settings, told.runs / f"utility-{name}", cohorts)
    overall = conclude(settings, [(arm, folder)])[0].arms[0].overall
    found = {"pixel_ap": overall.pixel_ap, "best_dice": overall.best_dice, "image_auroc": overall.image_auroc}
    return {
        **{name: None if figure is None else round(figure.value, 4) for name, figure in found.items()},
        "spent": max((spent for spent in folder.epsilon_spent().values() if spent is not None), default=None),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": describe_machine(settings),
    }


def with_patients(cohort: Cohort, site: str, patients: int, settings: Simulation) -> Cohort:
    """Return the validation and test patients of ``cohort``, and as many to train on as are asked for."""
    kept = cohort.take([row for row, split in enumerate(cohort.splits) if split != "train"])
    chunks = range(-(-patients // CHUNK))
    return pool([kept, *(_train_patients(site, number, min(CHUNK, patients), settings) for number in chunks)])


def _train_patients(site: str, number: int, patients: int, settings: Simulation) -> Cohort:
    part = phantom_cohort(
        site,
        patients=patients,
        images_per_patient=1,
        size=settings.data.size,
        diseases=settings.data.diseases,
        seed=1000 * (settings.seed + 1) + number + 1,
    )
    names = tuple(f"{patient}-{number + 1}" for patient in part.patients)
    return replace(part, patients=names, splits=("train",) * len(part))


def asked(told: argparse.Namespace) -> Iterator[Line]:
    """Yield what is to be run, seed by seed."""
    for seed in told.seeds:
        for data in told.data:
            for epsilon in told.epsilons:
                for patients in [0] if epsilon == "public" else DATA[data].draws:
                    yield {"data": data, "patients": patients, "epsilon": epsilon, "seed": seed}


def table(lines: list[Line]) -> None:
    """Print pixel AP and best Dice by patients and epsilon, as Markdown."""
    for figure in ("pixel_ap", "best_dice"):
        print(f"\n| {figure}: patients a site | " + " | ".join(EPSILONS) + " |\n" + "|---" * (len(EPSILONS) + 1) + "|")
        for data, of_data in DATA.items():
            for patients in of_data.draws:
                of = [(data, 0 if epsilon == "public" else patients, epsilon) for epsilon in EPSILONS]
                keys = ("data", "patients", "epsilon")
                found = [[line.get(figure) for line in lines if tuple(line[key] for key in keys) == o] for o in of]
                print(f"| {data}, {patients} | " + " | ".join(map(spread, found)) + " |")


def draw_curves(lines: list[Line], path: Path) -> None:
    """Write a picture of the phantoms' pixel AP by epsilon, for each number of patients: mean and range over seeds."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for patients, colour in zip(DATA["phantoms"].draws, ("#d95f02", "#7570b3", "#1b9e77"), strict=True):
        found = [_pixel_aps(lines, 0 if epsilon == "public" else patients, epsilon) for epsilon in EPSILONS]
        middle = [mean(of) if of else math.nan for of in found]
        lowest, highest = ([way(of) if of else math.nan for of in found] for way in (min, max))
        axes.plot(range(len(EPSILONS)), middle, "o-", color=colour, label=f"{patients:,} patients a site")
        axes.fill_between(range(len(EPSILONS)), lowest, highest, color=colour, alpha=0.15, linewidth=0)
    names = {"public": "public\nmodel alone", "inf": "no promise"}
    axes.set_xticks(range(len(EPSILONS)), [names.get(epsilon, f"epsilon {epsilon}") for epsilon in EPSILONS])
    axes.set(ylabel="pixel AP on test patients")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _pixel_aps(lines: list[Line], patients: int, epsilon: str) -> list[float]:
    key = ("phantoms", patients, epsilon)
    return [float(str(line["pixel_ap"])) for line in lines if (line["data"], line["patients"], line["epsilon"]) == key]


def main() -> None:
    """Run what has no line yet, as long as there is time, and print the table of all lines."""
    parser = parser_of(__doc__, LINES)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["phantoms"])
    parser.add_argument("--root", type=Path, help="folder of lgg-flair-128")
    parser.add_argument("--epsilons", nargs="+", choices=EPSILONS, default=list(EPSILONS))
    parser.add_argument("--curves", type=Path, help="write a picture of the phantoms' pixel AP by epsilon")
    told = parser.parse_args()
    lines = resume(told, asked(told), lambda entry: run(told, entry))
    table(lines)
    if told.curves:
        draw_curves(lines, told.curves)


if __name__ == "__main__":
    main()
