"""What is kept of each race, one line of JSON, and the tables made of such lines; nothing is trained here."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median_low, stdev
from typing import Any

from baseline_methods import METHODS
from baseline_race import CONTROLS, Choice, Outcome

from fedgan.results.metrics import Scores

FIGURES = ("pixel_ap", "best_dice", "dice", "poi", "pixel_precision", "aupro", "image_auroc")
"""Columns of the table over all sites; a line keeps every figure."""

OF_A_SITE = ("pixel_ap", "best_dice", "image_auroc")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is raced: a method on data, with a seed and with what is the same for all methods."""

    data: str
    method: str
    seed: int
    steps: int
    """Of the generators, or of the one network; nothing for a method without training, which has no parameters."""
    batch_size: int
    """Scans of each kind in one batch."""
    flip: bool
    tissue: bool
    overrides: tuple[str, ...]
    """Further settings, as given on the command line."""

    @property
    def terms(self) -> tuple[object, ...]:
        """Return what the entries of one table have in common."""
        return self.data, self.steps, self.batch_size, self.flip, self.tissue, self.overrides


@dataclass(frozen=True, slots=True)
class Line:
    """How a race ended."""

    entry: Entry
    commit: str
    date: str
    machine: str
    threshold: float | None
    threshold_by: str
    overall: Mapping[str, Sequence[float | None]]
    """Figure by name: value and 95 % interval over the test patients."""
    per_site: Mapping[str, Mapping[str, float | None]]
    """Value of each figure, by site."""
    learns_from: str
    parameters: Mapping[str, int]
    """Moved by each player; none for a method without training."""
    seconds: float
    """Of training alone."""
    choice: Choice | None
    """None for a method without training."""


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a file in the order in which they were written, or none if there is no file."""
    if not path.exists():
        return []
    return [_line(json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()]


def _line(found: dict[str, Any]) -> Line:
    entry = Entry(**found["entry"] | {"overrides": tuple(found["entry"]["overrides"])})
    choice = None if found["choice"] is None else Choice(**found["choice"])
    return Line(**found | {"entry": entry, "choice": choice})


def append(path: Path, line: Line) -> None:
    """Write one line more."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(line)) + "\n")


def line_of(entry: Entry, outcome: Outcome, *, commit: str, machine: str) -> Line:
    """Return the line of a race that just ended."""
    arm = outcome.arm
    return Line(
        entry=entry,
        commit=commit,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=machine,
        threshold=arm.threshold,
        threshold_by=arm.threshold_by,
        overall=_figures(arm.overall),
        per_site={
            site: {name: figure[0] for name, figure in _figures(scores).items()}
            for site, scores in arm.per_site.items()
        },
        learns_from=METHODS[entry.method].learns_from if entry.method in METHODS else "nothing",
        parameters=outcome.parameters,
        seconds=round(outcome.seconds, 1),
        choice=outcome.choice,
    )


def summary(line: Line) -> str:
    """Return how a race ended, in a line for eyes."""
    figures = [f"{name} {value[0]:.3f}" for name in OF_A_SITE if (value := line.overall.get(name))]
    chosen = f", {line.choice.smoothing:g} px at {line.choice.checkpoint:.0%}" if line.choice else ""
    return f"{line.entry.method}, seed {line.entry.seed}: {', '.join(figures)}{chosen}, {line.seconds:.0f} s"


def _figures(scores: Scores) -> dict[str, list[float | None]]:
    """Return value, low and high of each figure that could be had, to four digits."""
    found = {name: getattr(scores, name) for name in Scores.model_fields if not name.startswith("num_")}
    return {
        name: [part if part is None else round(part, 4) for part in (estimate.value, estimate.low, estimate.high)]
        for name, estimate in found.items()
        if estimate is not None
    }


def carried_choice(lines: Sequence[Line], *, data: str, method: str) -> Choice | None:
    """Return the median smoothing and checkpoint that seeds chose for a method on ``data``, or nothing without any."""
    found = [line for line in lines if line.entry.data == data and line.entry.method == method]
    choices = [line.choice for line in found if line.choice]
    if not choices:
        return None
    smoothing = median_low(choice.smoothing for choice in choices)
    return Choice(smoothing, median_low(choice.checkpoint for choice in choices), f"carried over from {data}")


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the lines of Markdown tables: for each data set and its terms one over all sites, and one by site.

    Of several lines for one entry, as of several commits, the last counts.
    """
    last = {line.entry: line for line in lines}
    for terms in dict.fromkeys(entry.terms for entry in last):
        methods: dict[str, list[Line]] = {method: [] for method in (*CONTROLS, *METHODS)}
        for entry, line in last.items():
            if entry.terms == terms:
                methods.setdefault(entry.method, []).append(line)
        raced = {method: of_method for method, of_method in methods.items() if of_method}
        yield from _overall(raced)
        yield from _by_site(raced)
        commits = sorted({line.commit for of_method in raced.values() for line in of_method})
        yield f"Commits: {', '.join(commits)}.\n"


def _overall(raced: Mapping[str, Sequence[Line]]) -> Iterator[str]:
    entry = next(iter(raced.values()))[0].entry
    settings = "".join(f", {override}" for override in entry.overrides)
    drawn = ("mirrored average" if entry.flip else "no mirroring") + (", tissue only" if entry.tissue else "")
    yield f"### {entry.data}: {entry.steps} steps of {entry.batch_size} scans of each kind, {drawn}{settings}\n"
    names = ("method", "learns from", "seeds", *FIGURES, "parameters", "steps", "seconds")
    yield from _head(names)
    for method, lines in raced.items():
        parameters = sum(lines[0].parameters.values())
        trained = [f"{parameters / 1e6:.2f} M", f"{entry.steps}", f"{mean(line.seconds for line in lines):.0f}"]
        figures = [_spread([line.overall[name][0] for line in lines if name in line.overall]) for name in FIGURES]
        yield _row([method, lines[0].learns_from, f"{len(lines)}", *figures, *(trained if parameters else "---")])
    yield ""


def _by_site(raced: Mapping[str, Sequence[Line]]) -> Iterator[str]:
    sites = sorted({site for lines in raced.values() for line in lines for site in line.per_site})
    yield f"By site: {', '.join(OF_A_SITE)}.\n".replace("_", " ")
    yield from _head(("method", *sites))
    for method, lines in raced.items():
        yield _row(
            [method]
            + [
                " / ".join(
                    _spread([line.per_site[site].get(name) for line in lines if site in line.per_site])
                    for name in OF_A_SITE
                )
                for site in sites
            ]
        )
    yield ""


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _row([name.replace("_", " ") for name in names])
    yield "|" + "---|" * len(names)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation over seeds, or a dash where no seed has the figure."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.3f}" + (f" ± {stdev(known):.3f}" if len(known) > 1 and stdev(known) > 0 else "")
