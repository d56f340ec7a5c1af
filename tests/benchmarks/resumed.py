"""Benchmarks that go on where they stopped: one line of JSON for each run, and what has a line is not run again."""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev

Line = dict[str, object]


def parser_of(description: str | None, lines: Path) -> argparse.ArgumentParser:
    """Return a parser of what all these benchmarks are told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="further settings, first, as threads=1")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=60, help="begin no run after this time")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--lines", type=Path, default=lines)
    return parser


def resume(told: argparse.Namespace, asked: Iterable[Line], run: Callable[[Line], Mapping[str, object]]) -> list[Line]:
    """Run what is ``asked`` for and has no line yet, as long as there is time; return all lines there are."""
    until = time.monotonic() + 60 * told.minutes
    lines = read(told.lines)
    for entry in asked:
        if any(entry.items() <= line.items() for line in lines):
            continue
        if time.monotonic() > until:
            break
        print(", ".join(f"{name} {value}" for name, value in entry.items()), flush=True)
        about = entry | {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
        lines.append(about | dict(run(entry)))
        print(lines[-1], flush=True)
        with told.lines.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
    return lines


def read(path: Path) -> list[Line]:
    """Return the lines of a file, or none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def commit() -> str:
    """Return the commit that is run."""
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def spread(values: Iterable[object]) -> str:
    """Return mean and standard deviation over seeds, of those that have a value.

    >>> spread([0.5, None, 0.7])
    '0.600 ± 0.141'
    """
    numbers = [float(str(value)) for value in values if value is not None]
    if not numbers:
        return "-"
    return f"{mean(numbers):.3f}" + (f" ± {stdev(numbers):.3f}" if len(numbers) > 1 else "")
