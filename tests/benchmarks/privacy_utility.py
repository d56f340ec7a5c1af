"""What a promise to each patient costs in quality: pixel AP and Dice by epsilon and by the number of patients.

    python tests/benchmarks/privacy_utility.py threads=1 --minutes 60

Two phantom sites of 32 x 32 pixels with so many training patients each. All runs start from one model of public scans:
``PUBLIC`` patients of a scanner of its own, trained without a promise. *public* is that model as it is; *inf* trains on
without a promise, for as many local steps. Delta is a tenth of one over the patients. The sites' validation and test
patients are the same sixty each, whatever the number of training patients. One line per (patients, epsilon, seed,
commit) is kept in ``privacy_utility.jsonl`` beside this file, and what it holds is not run again.
"""

import argparse
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from resumed import Line, parser_of, resume, spread

from fedgan.cohort.cohort import Cohort, pool
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import load
from fedgan.outcome import conclude, describe_machine
from fedgan.settings import Simulation
from fedgan.simulation import Arm, load_cohorts, open_folder, train_in_process

LINES = Path(__file__).with_suffix(".jsonl")

SIZES = (100, 1000, 10000)
"""Training patients of a site."""

MOMENTS = "aggregation.moments=both"
"""Adam's moments outlive a round: rounds are short, and what is made of noisy gradients costs nothing more."""

EPSILONS = ("public", "1", "3", "8", "inf")

PUBLIC = ("data.sites=[P]", "data.patients=60", "quorum=1", "rounds=8", "local_steps=40")
"""The public scans, and how long they are trained on."""

PRIVATE = (
    "data.sites=[A,B]",
    "data.patients=60",
    "select=last",
    "rounds=5",
    "local_steps=10",
    "aggregation.moments=both",
)
"""The sites, and how long they are trained on, in the same number of rounds and steps with and without a promise."""

COMMON = ("model=tagsagan_private", "data.size=32", "bootstrap=0", "precision=float32")

DRAWS = {100: 50, 1000: 100, 10000: 100}
"""Patients of a draw, by the number there are."""

CHUNK = 1000
"""Phantom patients drawn at once."""


def settings_of(told: argparse.Namespace, entry: Line) -> Simulation:
    """Return the settings of one run after the public one."""
    patients, epsilon = int(str(entry["patients"])), str(entry["epsilon"])
    start = f"start={told.runs}/public-{entry['seed']}/model"
    chosen = [*COMMON, *PRIVATE, start, f"seed={entry['seed']}"]
    if epsilon != "inf":
        drawn = [f"privacy.cohort={patients}", f"privacy.patients={DRAWS[patients]}", f"privacy.delta={0.1 / patients}"]
        chosen += ["privacy=patient", f"privacy.epsilon={epsilon}", *drawn]
    return load("simulate", Simulation, [*chosen, *told.overrides])


def publish(told: argparse.Namespace, seed: int) -> Mapping[str, object]:
    """Train on the public scans, unless that was done, and return how the model does at the sites as it is."""
    settings = load("simulate", Simulation, [*COMMON, *PUBLIC, f"seed={seed}", *told.overrides])
    cohorts = load_cohorts(settings)
    folder = open_folder(settings, told.runs / f"public-{seed}")
    arm = Arm("federated", "federated", cohorts, settings.local_steps, quorum=1)
    train_in_process(settings, arm, folder)
    conclude(settings, [(arm, folder)])
    asked = load("simulate", Simulation, [*COMMON, *PRIVATE, f"seed={seed}", *told.overrides])
    return figures_of(asked, Arm("federated", "federated", load_cohorts(asked), 1, quorum=1), folder)


def figures_of(settings: Simulation, arm: Arm, folder: object) -> Mapping[str, object]:
    """Return how the last model of ``folder`` does on the arm's test patients."""
    metrics, _ = conclude(settings, [(arm, folder)])
    overall = metrics.arms[0].overall
    found = {"pixel_ap": overall.pixel_ap, "best_dice": overall.best_dice, "image_auroc": overall.image_auroc}
    return {name: None if figure is None else round(figure.value, 4) for name, figure in found.items()}


def with_patients(cohort: Cohort, site: str, patients: int, settings: Simulation) -> Cohort:
    """Return the validation and test patients of ``cohort``, and as many to train on as are asked for."""
    kept = cohort.take([row for row, split in enumerate(cohort.splits) if split != "train"])
    found: list[Cohort] = [kept]
    while sum(len(set(part.patients)) for part in found[1:]) < patients:
        found.append(_train_patients(site, len(found), patients, settings))
    train = pool(found[1:])
    names = list(dict.fromkeys(train.patients))[:patients]
    chosen = set(names)
    return pool([kept, train.take([row for row, patient in enumerate(train.patients) if patient in chosen])])


def _train_patients(site: str, number: int, patients: int, settings: Simulation) -> Cohort:
    part = phantom_cohort(
        site,
        patients=min(CHUNK, patients),
        images_per_patient=1,
        size=settings.data.size,
        diseases=settings.data.diseases,
        seed=1000 * (settings.seed + 1) + number,
    )
    names = tuple(f"{patient}-{number}" for patient in part.patients)
    return replace(part, patients=names, splits=("train",) * len(part))


def run(told: argparse.Namespace, entry: Line) -> Mapping[str, object]:
    """Train one run and return its figures."""
    began = time.perf_counter()
    seed, patients = int(str(entry["seed"])), int(str(entry["patients"]))
    if entry["epsilon"] == "public":
        return publish(told, seed)
    settings = settings_of(told, entry)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cohorts = {site: with_patients(cohort, site, patients, settings) for site, cohort in load_cohorts(settings).items()}
    arm = Arm("federated", "federated", cohorts, settings.local_steps, quorum=2)
    name = "-".join(str(value) for value in entry.values())
    folder = open_folder(settings, told.runs / f"utility-{name}")
    train_in_process(settings, arm, folder)
    figures = figures_of(settings, arm, folder)
    spent = {"spent": max(folder.epsilon_spent().values(), default=None)} if settings.privacy.kind == "patient" else {}
    seconds = round(time.perf_counter() - began, 1)
    return {**figures, **spent, "seconds": seconds, "machine": describe_machine(settings)}


def asked(told: argparse.Namespace) -> Iterator[Line]:
    """Yield what is to be run, seed by seed."""
    for seed in told.seeds:
        if "public" in told.epsilons:
            yield {"patients": 0, "epsilon": "public", "seed": seed}
        for patients in told.patients:
            for epsilon in told.epsilons:
                if epsilon != "public":
                    yield {"patients": patients, "epsilon": epsilon, "seed": seed}


def table(lines: list[Line]) -> None:
    """Print pixel AP and best Dice by patients and epsilon, as Markdown."""
    for figure in ("pixel_ap", "best_dice"):
        print(f"\n| {figure}: patients a site | " + " | ".join(EPSILONS) + " |\n" + "|---" * (len(EPSILONS) + 1) + "|")
        for patients in SIZES:
            cells = []
            for epsilon in EPSILONS:
                of = (0 if epsilon == "public" else patients, epsilon)
                cells.append(spread(line.get(figure) for line in lines if (line["patients"], line["epsilon"]) == of))
            print(f"| {patients} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run what has no line yet, as long as there is time, and print the table of all lines."""
    parser = parser_of(__doc__, LINES)
    parser.add_argument("--patients", type=int, nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--epsilons", nargs="+", choices=EPSILONS, default=list(EPSILONS))
    told = parser.parse_args()
    told.runs = told.runs.absolute()
    table(resume(told, asked(told), lambda entry: run(told, entry)))


if __name__ == "__main__":
    main()
