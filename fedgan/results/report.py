"""One self-contained HTML page per run: tables, curves and pictures; the figures themselves are made elsewhere.

The page asks nothing of any network, and the same metrics, examples and settings give the same bytes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from matplotlib.ticker import MaxNLocator
from PIL.Image import Image

from fedgan.results.metrics import Arm, Comparison, Metrics, Scores
from fedgan.results.pictures import Example, Recovered, data_uri, panel, recovered_panel

HEADINGS: Mapping[str, Mapping[str, str]] = {
    "All pixels": {"pixel_ap": "AP", "best_dice": "Best Dice"},
    "Pixels at the threshold": {"dice": "Dice", "iou": "IoU", "poi": "PoI", "pixel_precision": "Precision"},
    "Regions": {"aupro": "AUPRO", "pointing_game": "Pointing game", "iobb": "IoBB", "box_ap": "Box AP"},
    "Scans": {"image_auroc": "AUROC", "image_ap": "AP"},
}
"""What the columns of the score tables are called: group to field of ``Scores`` to heading."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 350.0, 10.0, 160.0
"""Where curves lie in a chart of 360 x 190 units."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """Values from ``low`` to ``high`` laid out from ``start`` to ``stop``, with ticks at round numbers."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + share * (self.stop - self.start), 1)

    def labels(self) -> list[tuple[float, str]]:
        return [(self.place(tick), f"{tick + 0.0:.6g}".replace("-", "\N{MINUS SIGN}")) for tick in self.ticks]


@dataclass(frozen=True, slots=True)
class _Chart:
    """Curves over the rounds, one per site, as paths of an SVG."""

    name: str
    columns: list[tuple[float, str]]
    rows: list[tuple[float, str]]
    curves: dict[str, str]
    chosen: float | None


@dataclass(frozen=True, slots=True)
class _Forest:
    """Intervals on one axis that includes zero: the places of low, difference and high of each."""

    zero: float
    ticks: list[tuple[float, str]]
    strips: list[tuple[float, float, float]]


@dataclass(frozen=True, slots=True)
class _Row:
    """One line of a table of scores."""

    name: str
    note: str
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Picture:
    """A panel as a data URI, with its size in pixels."""

    example: Example | Recovered
    uri: str
    width: int
    height: int


def write_report(
    metrics: Metrics,
    examples: Sequence[Example],
    settings_yaml: str,
    folder: Path,
    *,
    recovered: Sequence[Recovered] = (),
) -> Path:
    """Write ``report.html`` into ``folder`` and return its path.

    Args:
        examples: the scans to show, in order; grouped by site on the page.
        settings_yaml: the composed settings, shown as they are.
        recovered: the scans that ``metrics.attacks`` tell of, in the same order.

    Without a federated arm, as where no coordinator may see a scan, there are no results on test patients.
    """
    federated = next((arm for arm in metrics.arms if arm.kind == "federated"), None)
    page = _template().render(
        metrics=metrics,
        federated=federated,
        headings=HEADINGS,
        definitions={name: field.description for name, field in Scores.model_fields.items()},
        results=_scopes(federated) if federated else [],
        tables=_tables(metrics),
        losses=_charts(metrics, "losses"),
        privacy=_charts(metrics, "privacy", without="delta"),
        deltas={site: said.get("delta", math.nan) for kept in metrics.rounds for site, said in kept.privacy.items()},
        validation=_charts(metrics, "validation"),
        forest=_forest(metrics.comparisons),
        pictures=_pictures(examples, federated.threshold if federated else None),
        recovered=[_picture(each, recovered_panel(each)) for each in recovered],
        settings_yaml=settings_yaml,
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "fraction": _fraction,
        "signed": _signed,
        "duration": _duration,
        "label": _label,
        "counts": _counts,
        "words": _in_words,
    }
    return environment.get_template("report.html.j2")


def _label(name: str) -> str:
    """Return what a figure is called away from its table, or the name of a loss as words.

    >>> _label("pixel_ap"), _label("weight_decay")
    ('AP, all pixels', 'weight decay')
    """
    labels = {key: f"{label}, {group.lower()}" for group, columns in HEADINGS.items() for key, label in columns.items()}
    return (labels | {"aucp": "AUCp, scans"}).get(name, name.replace("_", " "))


def _fraction(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def _duration(seconds: float) -> str:
    """Return a time as people say it.

    >>> _duration(3723.4), _duration(59.96), _duration(4.2)
    ('1 h 2 min 3 s', '1 min 0 s', '4.2 s')
    """
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"


def _in_words(comparison: Comparison) -> str:
    """Say what an interval allows to be said, and no more."""
    size = f"{abs(comparison.difference):.3f}"
    if comparison.low > 0:
        finding = f"the federated arm's pixel AP is {size} higher."
    elif comparison.high < 0:
        finding = f"the federated arm's pixel AP is {size} lower."
    else:
        finding = f"no difference can be shown; the pixel AP differs by {size} and the interval includes zero."
    return f"Against {comparison.against}: {finding}"


def _counts(scores: Scores) -> str:
    return f"{scores.num_images} scans, {scores.num_patients} patients, {scores.num_masked} masks"


def _scopes(arm: Arm) -> list[_Row]:
    scopes = {"All sites": arm.overall, **arm.per_site}
    return [_Row(name, _counts(scores), scores) for name, scores in scopes.items()]


def _tables(metrics: Metrics) -> dict[str, list[list[_Row]]]:
    """Return a table per scope, all sites first: the arms, then the controls, or none if there is nothing beside."""
    if len(metrics.arms) + len(metrics.controls) == 1:
        return {}
    sides = (metrics.arms, metrics.controls)
    tables = {"All sites": [[_Row(arm.name, _note(arm), arm.overall) for arm in arms] for arms in sides]}
    for site in metrics.sites:
        tables[site] = [
            [_Row(arm.name, _note(arm), arm.per_site[site]) for arm in arms if site in arm.per_site] for arms in sides
        ]
    return {scope: groups for scope, groups in tables.items() if groups[0]}


def _note(arm: Arm) -> str:
    steps = [] if arm.steps is None else [f"{arm.steps} local steps"]
    threshold = f"no threshold: {arm.threshold_by}" if arm.threshold is None else f"threshold {arm.threshold:.3f}"
    return ", ".join([*steps, threshold])


def _charts(metrics: Metrics, kind: str, *, without: str | None = None) -> list[_Chart]:
    """Return a chart for each name under ``losses``, ``validation`` or ``privacy`` but one, pixel AP first."""
    series: dict[str, dict[str, dict[int, float]]] = {}
    for kept in metrics.rounds:
        for site, values in getattr(kept, kind).items():
            for name, value in values.items():
                if math.isfinite(value) and name != without:
                    series.setdefault(name, {}).setdefault(site, {})[kept.round] = value
    rounds = [kept.round for kept in metrics.rounds]
    chosen = metrics.chosen_round if metrics.chosen_round in rounds else None
    floor = [0.0] if kind == "validation" else []
    return [_chart(name, series[name], rounds, chosen, floor) for name in sorted(series, key=_pixel_ap_first)]


def _pixel_ap_first(name: str) -> tuple[bool, str]:
    return name != "pixel_ap", name


def _rounds_axis(rounds: Sequence[int]) -> _Axis:
    low, high = rounds[0], rounds[-1]
    ticks = MaxNLocator(nbins=5, integer=True).tick_values(low, high)
    return _Axis(low, high, _LEFT, _RIGHT, tuple(float(tick) for tick in ticks if low <= tick <= high))


def _values_axis(values: Iterable[float], *, start: float, stop: float) -> _Axis:
    """Return an axis that begins and ends at a tick, and has a length even where all values are one."""
    found = list(values)
    locator = MaxNLocator(nbins=5)
    low, high = locator.nonsingular(min(found), max(found))
    ticks = tuple(float(tick) for tick in locator.tick_values(low, high))
    return _Axis(ticks[0], ticks[-1], start, stop, ticks)


def _chart(
    name: str, sites: Mapping[str, Mapping[int, float]], rounds: list[int], chosen: int | None, floor: list[float]
) -> _Chart:
    across = _rounds_axis(rounds)
    values = (value for site in sites.values() for value in site.values())
    upward = _values_axis([*floor, *values], start=_BOTTOM, stop=_TOP)
    return _Chart(
        name=name,
        columns=across.labels(),
        rows=upward.labels(),
        curves={site: _path(values, rounds, across, upward) for site, values in sites.items()},
        chosen=None if chosen is None else across.place(chosen),
    )


def _path(values: Mapping[int, float], rounds: list[int], across: _Axis, upward: _Axis) -> str:
    """Return the curve as an SVG path that breaks off where a round is missing."""
    runs: list[list[tuple[float, float]]] = [[]]
    for number in rounds:
        if number in values:
            runs[-1].append((across.place(number), upward.place(values[number])))
        else:
            runs.append([])
    return "".join(_stroke(run) for run in runs if run)


def _stroke(run: list[tuple[float, float]]) -> str:
    """Join the points, or draw a short level stroke where there is only one."""
    if len(run) == 1:
        return f"M{run[0][0] - 3:.1f} {run[0][1]}h6"
    return "M" + "L".join(f"{x} {y}" for x, y in run)


def _forest(comparisons: Sequence[Comparison]) -> _Forest | None:
    if not comparisons:
        return None
    values = [value for each in comparisons for value in (each.low, each.difference, each.high)]
    axis = _values_axis([0.0, *values], start=20, stop=320)
    strips = [(axis.place(each.low), axis.place(each.difference), axis.place(each.high)) for each in comparisons]
    return _Forest(axis.place(0), axis.labels(), strips)


def _pictures(examples: Sequence[Example], threshold: float | None) -> dict[str, list[_Picture]]:
    """Return the panels of each site as data URIs, sites in the order in which they first appear."""
    sites: dict[str, list[_Picture]] = {}
    for example in examples:
        sites.setdefault(example.site, []).append(_picture(example, panel(example, threshold=threshold)))
    return sites


def _picture(example: Example | Recovered, drawn: Image) -> _Picture:
    return _Picture(example, data_uri(drawn), drawn.width, drawn.height)
