"""What Flower's link carries with compressed updates and steps, against raw fp32, and what the maps lose by it.

    python tests/benchmarks/traffic.py --seeds 0 1 2 --minutes 60

Three phantom sites behind Flower's simulation engine; bytes are those of Flower's own objects as they are sent, in
both directions, over all rounds. One line per (arm, seed, commit) is kept in ``traffic.jsonl`` beside this file, and
what it holds is not run again; a run that was stopped is resumed.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import mean

from resumed import Line, parser_of, resume, spread

from fedgan.cli import main as fed_simulate
from fedgan.results.metrics import Metrics

LINES = Path(__file__).with_suffix(".jsonl")

ARMS = {"raw": ("compress=none",), "fp16": ("compress=fp16",), "int8": ("compress=int8",)}


def run(arm: str, seed: int, runs: Path, overrides: list[str]) -> Metrics:
    """Run or resume one arm of one seed and return its metrics."""
    folder = runs / f"traffic-{arm}-{seed}"
    if not (folder / "metrics.json").exists():
        new = ["engine=flower", "bootstrap=0", *ARMS[arm], f"seed={seed}", f"runs={runs}", f"name={folder.name}"]
        code = fed_simulate(["--resume", str(folder)] if (folder / "config.yaml").exists() else [*new, *overrides])
        if code:
            sys.exit(code)
    return Metrics.model_validate_json((folder / "metrics.json").read_bytes())


def figures_of(metrics: Metrics) -> Line:
    """Return what is kept of a run: MB over all sites and rounds by direction, and the figures of the test patients."""
    carried = {
        way: sum(of_site[way] for entry in metrics.rounds for of_site in entry.traffic.values()) / 1e6
        for way in ("to_site", "from_site")
    }
    overall = metrics.arms[0].overall
    figures = {"pixel_ap": overall.pixel_ap, "best_dice": overall.best_dice}
    return {
        "machine": metrics.machine,
        "rounds": len(metrics.rounds),
        **{way: round(megabytes, 3) for way, megabytes in carried.items()},
        **{name: None if figure is None else round(figure.value, 4) for name, figure in figures.items()},
    }


def table(lines: list[Line]) -> None:
    """Print each arm's traffic and figures, mean and standard deviation over seeds, as Markdown."""
    raw = {line["seed"]: _both_ways(line) for line in lines if line["arm"] == "raw"}
    print("| arm | seeds | to sites, MB | from sites, MB | both, of raw | pixel AP | best Dice |\n" + "|---" * 7 + "|")
    for arm in ARMS:
        found = [line for line in lines if line["arm"] == arm]
        if found:
            ways = " | ".join(f"{mean(_number(line[way]) for line in found):.1f}" for way in ("to_site", "from_site"))
            shares = [_both_ways(line) / raw[line["seed"]] for line in found if line["seed"] in raw]
            share = f"{mean(shares):.3f}" if shares else "-"
            figures = " | ".join(spread(line[name] for line in found) for name in ("pixel_ap", "best_dice"))
            print(f"| {arm} | {len(found)} | {ways} | {share} | {figures} |")


def _both_ways(line: Line) -> float:
    return _number(line["to_site"]) + _number(line["from_site"])


def _number(value: object) -> float:
    return float(str(value))


def main() -> None:
    """Run what has no line yet, as long as there is time, and print the table of all lines."""
    parser = parser_of(__doc__, LINES)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["raw", "int8"])
    told = parser.parse_args()

    def run_of(entry: Line) -> Mapping[str, object]:
        metrics = run(str(entry["arm"]), int(str(entry["seed"])), told.runs, told.overrides)
        return {"overrides": told.overrides, **figures_of(metrics)}

    asked: list[Line] = [{"arm": arm, "seed": seed} for seed in told.seeds for arm in told.arms]
    table(resume(told, asked, run_of))


if __name__ == "__main__":
    main()
