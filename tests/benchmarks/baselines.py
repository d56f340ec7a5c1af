"""Our methods beside others on one data set: trains and scores what is missing, then prints the tables.

    python tests/benchmarks/baselines.py --data lgg --root ../shared/data/lgg-flair-128 --seeds 0 1 2 --minutes 60

All methods are trained pooled, on all sites' training patients at once: what no federation can do. All take the same
number of steps on batches of the same size, with the same decay of learning rates and moving average of weights. Of
each, the smoothing of the maps and one of four checkpoints are chosen by pixel AP on validation patients. Where those
have no masks, what the seeds chose on other data is used (``--choices-from``), because image AUROC hardly depends on
smoothing, and the threshold follows from normal scans. One line per (data, method, seed, commit) is kept in
``baselines.jsonl`` beside this file, and what it holds is not run again. About 3 minutes a method and seed on one
processor core.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from baseline_grid import save_grid
from baseline_lines import Entry, append, carried_choice, line_of, read_lines, summary, tables
from baseline_methods import LARGE, METHODS, build
from baseline_race import CONTROLS, Outcome, Terms, race, without_training

from fedgan.assembly import bfloat16_in
from fedgan.cohort.cohort import Cohort, pool
from fedgan.config import load
from fedgan.errors import FedganError
from fedgan.gan.build import choose_device
from fedgan.outcome import describe_machine
from fedgan.settings import Simulation
from fedgan.simulation import load_cohorts

HERE = Path(__file__).parent


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "overrides", nargs="*", help="further settings, as of fed-simulate, first: data.size=128 threads=1"
    )
    parser.add_argument("--data", default="phantoms", help="one of configs/data")
    parser.add_argument("--root", type=Path, help="folder of its manifest.csv")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=[name for name in METHODS if name not in LARGE]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=8, help="scans of each kind in one batch")
    parser.add_argument("--flip", action="store_true", help="average maps with those of mirrored scans")
    parser.add_argument("--tissue", action="store_true", help="no evidence where there is air")
    parser.add_argument("--choices-from", default="lgg", help="data to choose by where validation scans have no masks")
    parser.add_argument("--minutes", type=float, default=60, help="begin no race after this time")
    parser.add_argument("--any-commit", action="store_true", help="do not run again what another commit has run")
    parser.add_argument("--lines", type=Path, default=HERE / "baselines.jsonl")
    parser.add_argument("--maps", type=Path, default=Path("runs/baselines"), help="folder of maps, for --grid")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    parser.add_argument("--grid", type=Path, help="write a picture of the first seed's maps, of those there are")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Race what has no line yet, as long as there is time, and print the tables; return how many races failed."""
    told = parse(words)
    until = time.monotonic() + 60 * told.minutes
    failures = 0 if told.table else sum(run(told, seed, until=until) for seed in told.seeds)
    if told.grid:
        draw_grid(told)
    print("\n".join(tables(read_lines(told.lines))))
    return failures


def run(told: argparse.Namespace, seed: int, *, until: float) -> int:
    """Race what has no line of one seed, beginning nothing after ``until``, and return how many races failed."""
    commit = commit_of(HERE)
    done = {line.entry for line in read_lines(told.lines) if told.any_commit or line.commit == commit}
    missing = [entry for name in (*CONTROLS, *told.methods) if (entry := entry_of(told, name, seed)) not in done]
    if not missing or time.monotonic() > until:
        return 0
    settings = settings_of(told, seed)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    cohort, terms = pool(list(load_cohorts(settings).values())), terms_of(told, settings)
    untrained = without_training(cohort, terms) if any(entry.method in CONTROLS for entry in missing) else {}
    failures = 0
    for entry in missing:
        if time.monotonic() > until:
            break
        try:
            outcome = untrained.get(entry.method) or enter(told, entry, cohort, terms)
        except FedganError as refusal:
            print(f"{entry.method}, seed {seed}: {refusal}", file=sys.stderr, flush=True)
            failures += 1
        else:
            line = line_of(entry, outcome, commit=commit, machine=describe_machine(settings))
            append(told.lines, line)
            print(summary(line), flush=True)
    return failures


def enter(told: argparse.Namespace, entry: Entry, cohort: Cohort, terms: Terms) -> Outcome:
    """Race one method, and keep the maps of its test scans.

    Raises:
        FedganError: its settings cannot be read, it cannot learn from these scans, or it diverged.
    """
    recipe = METHODS[entry.method]
    contender = build(recipe, settings_of(told, entry.seed, recipe.overrides))
    carried = carried_choice(read_lines(told.lines), data=told.choices_from, method=entry.method)
    outcome, maps = race(entry.method, contender, cohort, terms, carried=carried)
    file = map_file(told, entry)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, maps.numpy().astype(np.float16))
    return outcome


def draw_grid(told: argparse.Namespace) -> None:
    """Write the picture of the first seed's maps, of the methods whose maps are kept here."""
    seed = told.seeds[0]
    files = {name: map_file(told, entry_of(told, name, seed)) for name in told.methods}
    maps = {name: torch.from_numpy(np.load(file)) for name, file in files.items() if file.exists()}
    test = pool(list(load_cohorts(settings_of(told, seed)).values())).split("test")
    save_grid(told.grid, test, maps)
    print(f"{told.grid} is without {sorted(set(files) - set(maps)) or 'no method'}")


def settings_of(told: argparse.Namespace, seed: int, overrides: Sequence[str] = ()) -> Simulation:
    """Return the settings of one seed, with the model that ``overrides`` choose."""
    root = [f"data.root={told.root}"] if told.root else []
    return load("simulate", Simulation, [f"data={told.data}", *root, f"seed={seed}", *overrides, *told.overrides])


def terms_of(told: argparse.Namespace, settings: Simulation) -> Terms:
    """Return what is the same for all methods."""
    return Terms(
        seed=settings.seed,
        steps=told.steps,
        batch_size=told.batch,
        flip=told.flip,
        tissue=told.tissue,
        bfloat16=bfloat16_in(settings, choose_device(settings.device)),
        resamplings=settings.bootstrap,
        false_positives=settings.false_positives,
    )


def entry_of(told: argparse.Namespace, method: str, seed: int) -> Entry:
    """Return what is to be raced, as it is found again."""
    return Entry(told.data, method, seed, told.steps, told.batch, told.flip, told.tissue, tuple(told.overrides))


def map_file(told: argparse.Namespace, entry: Entry) -> Path:
    """Return where the test scans' maps of a race are kept."""
    folder: Path = told.maps
    return folder / f"{entry.data}-seed{entry.seed}-{sha256(repr(entry).encode()).hexdigest()[:12]}.npy"


def commit_of(folder: Path) -> str:
    """Return the short name of the commit checked out, with a + where the code in it was changed since."""
    git = ["git", "-C", str(folder)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    if commit.returncode:
        return "no commit"
    code = [":/fedgan", ":/configs", ":/tests/benchmarks/*.py"]
    changed = subprocess.run([*git, "status", "--porcelain", "--", *code], capture_output=True, text=True, check=True)
    return commit.stdout.strip() + ("+" if changed.stdout else "")


if __name__ == "__main__":
    sys.exit(main())
