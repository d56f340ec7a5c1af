"""Every arm on the four hospitals of lgg-flair-128, over seeds: runs what is missing, then prints the table.

    python tests/benchmarks/lgg.py --data ../shared/data/lgg-flair-128 --seeds 0 1 2 --minutes 120

One line per (arm, seed, commit) is kept in ``lgg.jsonl`` beside this file, and what it holds of today's recipe is not
run again; a run that was stopped is resumed. On one processor core a seed takes 13 minutes federated (``--alone``) and
40 with all arms. Lines of earlier recipes stay, and are not in the table.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from resumed import commit, read

from fedgan.cli import main as fed_simulate
from fedgan.config import load
from fedgan.results.metrics import Metrics
from fedgan.run_folder import validation_score
from fedgan.settings import Simulation

LINES = Path(__file__).with_suffix(".jsonl")
FIGURES = ("pixel_ap", "best_dice", "dice", "poi", "pixel_precision", "image_auroc")


def recipe() -> str:
    """Return a digest of how ``experiment=lgg-cpu`` trains today."""
    settings = load("simulate", Simulation, ["experiment=lgg-cpu", "data.root=."])
    how = settings.model_dump_json(
        include={"rounds", "local_steps", "model", "aggregation", "server_optimizer", "compress"}
    )
    return hashlib.sha256(how.encode()).hexdigest()[:12]


def run(data: Path, runs: Path, seed: int, *, alone: bool) -> Metrics:
    """Run or resume one seed and return its metrics."""
    folder = runs / f"lgg-seed{seed}{'-alone' if alone else ''}"
    if not (folder / "metrics.json").exists():
        new = ["experiment=lgg-cpu", f"data.root={data}", f"runs={runs}", f"name={folder.name}", f"seed={seed}"]
        new += ["compare=false"] if alone else []
        code = fed_simulate(["--resume", str(folder)] if (folder / "config.yaml").exists() else new)
        if code:
            sys.exit(code)
    return Metrics.model_validate_json((folder / "metrics.json").read_bytes())


def lines_of(metrics: Metrics, at: str) -> Iterator[dict[str, object]]:
    """Return one line per arm and control, and one for each comparison of the federated arm with another."""
    about = {"seed": metrics.seed, "commit": at, "recipe": recipe(), "date": metrics.date}
    about["machine"] = metrics.machine
    for arm in (*metrics.arms, *metrics.controls):
        found = {name: getattr(arm.overall, name) for name in FIGURES}
        figures = {name: None if value is None else round(value.value, 4) for name, value in found.items()}
        yield {"arm": arm.name, "steps": arm.steps, **about, **figures}
    for comparison in metrics.comparisons:
        kept = {name: round(getattr(comparison, name), 4) for name in ("difference", "low", "high")}
        yield {"arm": f"federated minus {comparison.against}", **about, **kept}
    validation = [round(score, 4) for entry in metrics.rounds if (score := validation_score(entry.validation))]
    yield {"arm": "federated by round", **about, "validation": validation}


def table(lines: list[dict[str, object]]) -> None:
    """Print each arm's mean and standard deviation over seeds, as Markdown."""
    print("| arm | steps | seeds | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " |")
    print("|---|---|---|" + "---|" * len(FIGURES))
    for arm in dict.fromkeys(str(line["arm"]) for line in lines if FIGURES[0] in line):
        of_arm = [line for line in lines if line["arm"] == arm]
        cells = [_spread([float(str(line[name])) for line in of_arm if line[name] is not None]) for name in FIGURES]
        print(f"| {arm} | {of_arm[0]['steps'] or '-'} | {len(of_arm)} | " + " | ".join(cells) + " |")
    for line in lines:
        if "difference" in line:
            print(f"seed {line['seed']}: {line['arm']}: {line['difference']} [{line['low']}, {line['high']}]")
        if "validation" in line:
            print(f"seed {line['seed']}: {line['arm']}: {line['validation']}")


def draw_curves(lines: list[dict[str, object]], path: Path) -> None:
    """Write a picture of the federated model's validation score after each round, a curve for each seed."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for line in lines:
        if isinstance(scores := line.get("validation"), list):
            axes.plot(range(1, len(scores) + 1), scores, label=f"seed {line['seed']}")
    axes.set(xlabel="round", ylabel="validation pixel AP, mean of sites", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 and stdev(values) > 0 else "")


def main() -> None:
    """Run the seeds that have no line yet, as long as there is time, and print the table of all lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of lgg-flair-128")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--alone", action="store_true", help="the federated arm only")
    parser.add_argument("--minutes", type=float, default=120, help="begin no run after this time")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--curves", type=Path, help="write a picture of the validation score by round")
    arguments = parser.parse_args()
    began = time.monotonic()
    lines = [line for line in read(LINES) if line.get("recipe") == recipe()]
    last = "federated" if arguments.alone else "federated minus mean of the local arms"
    for seed in arguments.seeds:
        done = {line["arm"] for line in lines if line["seed"] == seed}
        if last in done or time.monotonic() - began > arguments.minutes * 60:
            continue
        ran = lines_of(run(arguments.data, arguments.runs, seed, alone=arguments.alone), commit())
        new = [line for line in ran if line["arm"] not in done]
        with LINES.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in new)
        lines += new
    table(lines)
    if arguments.curves:
        draw_curves(lines, arguments.curves)


if __name__ == "__main__":
    main()
