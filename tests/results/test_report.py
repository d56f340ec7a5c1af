"""The report as a browser would read it: parsed, not searched for phrases of its template."""

import re
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser

import pytest
import torch

from fedgan.results.metrics import Arm, Comparison, Estimate, Metrics, Round, Scores, SiteContribution
from fedgan.results.pictures import Example
from fedgan.results.report import HEADINGS, write_report

VOID = {"meta", "img", "br", "hr", "link", "input", "path", "circle"}
CURVE = r'class="curve s0" d="([^"H]+)"'
"""A curve of the first site; the legend's strokes have an H."""
FIGURES = [name for name in Scores.model_fields if not name.startswith("num_")]


@dataclass
class Page(HTMLParser):
    """What a browser finds in a page: its addresses, ids, pictures, tables and words."""

    source: str
    open: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    images: list[dict[str, str]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)
    words: str = ""

    def __post_init__(self):
        super().__init__()
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        found = {name: value or "" for name, value in attrs}
        self.addresses += [found[name] for name in ("src", "href", "srcset", "action", "data") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        self.images += [found] if tag == "img" else []
        self.classes += found.get("class", "").split()
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def rows(self, table: int) -> dict[str, list[str]]:
        """Return the lines of a table of scores: the name that opens it to its cells, blanks closed up."""
        lines = [[" ".join(cell.split()) for cell in line] for line in self.tables[table]]
        return {line[0]: line[1:] for line in lines}


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def scores(start: float, **known: Estimate | None) -> Scores:
    """Return scores in which every figure is another number, but for those ``known``."""
    figures = {name: estimate(start + index / 1000) for index, name in enumerate(FIGURES)}
    return Scores(num_images=20, num_patients=7, num_masked=9, **(figures | known))


def arm(name: str, kind: str, start: float, **known: object) -> Arm:
    found = {"overall": scores(start), "per_site": {"A": scores(start + 0.02), "B": scores(start + 0.04)}}
    made = Arm(name=name, kind=kind, steps=40, threshold=0.321, threshold_by="luck", **found)
    return made.model_copy(update=known)


def one_round(number: int, **known: object) -> Round:
    made = Round(
        round=number,
        seconds=61.0,
        trained=("A", "B"),
        failed={},
        losses={"A": {"cycle": 0.5 / number, "critic_normal": -0.25}, "B": {"cycle": 0.4 / number}},
        validation={"A": {"pixel_ap": 0.1 * number}, "B": {"pixel_ap": 0.05 * number, "aucp": 0.7}},
    )
    return made.model_copy(update=known)


METRICS = Metrics(
    name="demo",
    date="2026-01-02T03:04:05Z",
    machine="a processor, 2 threads",
    versions={"fedgan": "0.1.0"},
    seed=17,
    seconds=3723.0,
    sites={"A": {"train": 101, "val": 11, "test": 12, "patients": 31}, "B": {"train": 102, "val": 13, "test": 14}},
    num_parameters={"generator": 1234567},
    ended="after round 3 of 9: it stood still",
    chosen_round=2,
    chosen_by="best mean pixel AP on validation",
    rounds=(one_round(1), one_round(2), one_round(3, trained=("A",), failed={"B": "Diverged"}, losses={})),
    arms=(arm("federated", "federated", 0.5), arm("local A", "local", 0.3)),
    controls=(arm("brightness 2 px", "control", 0.1, steps=None),),
    comparisons=(
        Comparison(metric="pixel_ap", against="local A", difference=0.123, low=0.045, high=0.234, share_better=0.991),
        Comparison(metric="pixel_ap", against="pooled", difference=-0.016, low=-0.078, high=0.056, share_better=0.25),
    ),
)
SCAN = torch.linspace(-1, 1, 16).repeat(16, 1)
EXAMPLE = Example("A", "patient 1", SCAN, SCAN, disease_map=(SCAN + 1) / 2, mask=None, abnormal=True, score=0.432)
EXAMPLES = (EXAMPLE, replace(EXAMPLE, abnormal=False, title="patient 2"), replace(EXAMPLE, site="B"))


def report(folder, metrics=METRICS, examples=EXAMPLES, yaml="a: 1") -> Page:
    return Page(write_report(metrics, examples, yaml, folder).read_text(encoding="utf-8"))


def test_the_page_asks_for_nothing_outside_itself(tmp_path):
    page = report(tmp_path)

    assert page.open == []
    assert "://" not in page.source
    assert not re.search(r"url\(|@import|<script|<link|<base", page.source)
    assert all(address.startswith(("#", "data:image/")) for address in page.addresses)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


def test_every_heading_is_a_figure_and_every_figure_has_a_heading():
    headed = [name for columns in HEADINGS.values() for name in columns]

    assert headed == FIGURES


def test_every_figure_of_every_arm_and_site_stands_in_a_table(tmp_path):
    page = report(tmp_path)

    for made in (*METRICS.arms, *METRICS.controls):
        for scope in (made.overall, *made.per_site.values()):
            for name in FIGURES:
                figure = getattr(scope, name)
                cell = f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
                assert any(cell in row for table in range(len(page.tables)) for row in page.rows(table).values())


def test_a_line_of_the_table_holds_the_figures_of_its_site_in_the_order_of_the_headings(tmp_path):
    rows = report(tmp_path).rows(0)

    cells = rows["B 20 scans, 7 patients, 9 masks"]

    assert [cell.split()[0] for cell in cells] == [f"{0.54 + index / 1000:.3f}" for index in range(len(FIGURES))]


def test_controls_stand_apart_in_the_same_table(tmp_path):
    names = list(report(tmp_path).rows(1))

    assert names[2:] == [
        "federated 40 local steps, threshold 0.321",
        "local A 40 local steps, threshold 0.321",
        "Controls, which learn nothing",
        "brightness 2 px threshold 0.321",
    ]


def test_what_was_run_is_told_and_every_figure_defined(tmp_path):
    words = " ".join(report(tmp_path).words.split())

    told = "For research. Not for diagnosis.|2 sites trained one model in 3 rounds|2026-01-02 03:04 UTC|Seed17"
    more = "1 h 2 min 3 s|a processor, 2 threads|2 of 3: best mean pixel AP on validation|1,234,567|fedgan 0.1.0"
    how = "endedafter round 3 of 9: it stood still|maps0.321: luck|scans known to be normal against all others"
    assert [text for text in f"{told}|{more}|{how}".split("|") if text not in words] == []
    assert all(Scores.model_fields[name].description in words for name in FIGURES)


def test_every_count_loss_and_validation_score_can_be_read(tmp_path):
    page = report(tmp_path)
    counts = page.rows(-1)
    kept = [[" ".join(cell.split()) for cell in line] for line in page.tables[-2]]

    assert counts == {
        "Site": ["train", "val", "test", "patients"],
        "A": ["101", "11", "12", "31"],
        "B": ["102", "13", "14", "–"],  # noqa: RUF001
    }
    assert kept[0][5:] == ["loss: cycle", "validation: AP, all pixels", "validation: AUCp, scans"]
    assert kept[1] == ["1", "1 min 1 s", "A", "yes", "-0.25", "0.5", "0.1", "–"]  # noqa: RUF001
    assert kept[6] == ["3", "1 min 1 s", "B", "Diverged", "–", "–", "0.15", "0.7"]  # noqa: RUF001


def test_comparisons_claim_no_more_than_their_intervals(tmp_path):
    page = report(tmp_path)

    assert "Against local A: the federated arm's pixel AP is 0.123 higher." in page.words
    assert "Against pooled: no difference can be shown" in page.words
    rows = [cells for table in range(len(page.tables)) for cells in page.rows(table).values()]
    assert ["", "+0.123 [+0.045, +0.234]", "99.1 % of resamplings"] in rows


def test_a_figure_that_cannot_be_had_is_a_dash_and_never_a_zero(tmp_path):
    none = {"overall": scores(0.5, **dict.fromkeys(FIGURES)), "threshold": None, "threshold_by": "no normal scan"}
    arms = (arm("federated", "federated", 0.5, **none), arm("local A", "local", 0.5, **none))

    page = report(tmp_path, METRICS.model_copy(update={"arms": arms}))

    assert page.rows(0)["All sites 20 scans, 7 patients, 9 masks"] == ["–"] * len(FIGURES)  # noqa: RUF001
    assert all(said in page.words for said in ("cannot be said", "none: no normal scan"))
    assert "local A 40 local steps, no threshold: no normal scan" in page.rows(1)


def test_a_score_without_an_interval_stands_alone(tmp_path):
    known = scores(0.5, dice=Estimate(value=0.25))
    metrics = METRICS.model_copy(update={"arms": (arm("federated", "federated", 0.5, overall=known),)})

    cells = report(tmp_path, metrics).rows(0)["All sites 20 scans, 7 patients, 9 masks"]

    assert cells[FIGURES.index("dice")] == "0.250"


def test_names_and_settings_are_shown_and_never_run(tmp_path):
    hostile = "<img src=x onerror=alert(1)> & \"co\" 'x'"
    metrics = METRICS.model_copy(update={"name": hostile, "machine": hostile, "chosen_by": hostile})
    examples = (replace(EXAMPLE, title=hostile, site=hostile),)

    page = report(tmp_path, metrics, examples, yaml=hostile)

    assert page.words.count(hostile) >= 5
    assert len(page.images) == 1
    assert hostile in page.images[0]["alt"]


def test_every_picture_says_what_it_shows(tmp_path):
    images = report(tmp_path).images

    shown = [image["alt"].split(":")[0] for image in images]
    assert shown[:2] == ["Abnormal scan patient 1 of A", "Normal scan patient 2 of A"]
    assert shown[2:] == ["Abnormal scan patient 1 of B"]
    assert all(image["src"].startswith("data:image/webp;base64,") for image in images)


def test_the_chosen_round_is_marked_on_the_validation_curves_alone(tmp_path):
    classes = report(tmp_path).classes

    assert classes.count("chosen") == 3  # in the two charts of a validation score, and in their legend


def test_a_curve_breaks_off_where_a_site_did_not_train(tmp_path):
    rounds = tuple(one_round(number, **({"losses": {}} if number == 2 else {})) for number in (1, 2, 3))

    page = report(tmp_path, METRICS.model_copy(update={"rounds": rounds}))

    pens = [re.sub(r"[^ML]", "", path) for path in re.findall(CURVE, page.source)]
    assert pens == ["MLL", "MM", "MM"]


@pytest.mark.parametrize("value", [0.0, 0.2, 1.0])
def test_curves_that_never_move_are_drawn(tmp_path, value):
    still = {"losses": {}, "validation": {"A": {"pixel_ap": value}}}

    page = report(tmp_path, METRICS.model_copy(update={"rounds": (one_round(1, **still),)}))

    (path,) = re.findall(CURVE, page.source)
    across, up = (float(number) for number in re.findall(r"[\d.]+", path)[:2])
    assert 46 <= across <= 350
    assert 10 <= up <= 160


def test_a_run_without_rounds_comparisons_or_pictures_still_has_a_page(tmp_path):
    bare = METRICS.model_copy(update={"rounds": (), "comparisons": (), "controls": (), "arms": METRICS.arms[:1]})

    page = report(tmp_path, bare, examples=())

    assert page.ids == ["results", "curves", "definitions", "run"]


def test_the_page_says_who_made_the_model_and_where_that_was_not_as_planned(tmp_path):
    parts = {
        "A": SiteContribution(trained=3, failed={}, shares={"critic": 1.0}, planned_shares={"critic": 1.0}),
        "B": SiteContribution(
            trained=1, failed={"Diverged": 2}, shares={"critic": 0.125}, planned_shares={"critic": 0.5}
        ),
    }

    page = report(tmp_path, METRICS.model_copy(update={"contributions": parts}))

    rows = page.rows(-2)
    assert rows["A"] == ["3", "–", "1.000"]  # noqa: RUF001
    assert rows["B"] == ["1", "Diverged 2×", "0.125 [0.500]"]  # noqa: RUF001


def test_what_the_link_carried_stands_beside_the_shares(tmp_path):
    carried = {"to_site": 3 * 2.0**20, "from_site": 2.0**19}
    part = SiteContribution(trained=3, failed={}, shares={"D": 1.0}, planned_shares={"D": 1.0}, traffic=carried)

    page = report(tmp_path, METRICS.model_copy(update={"contributions": {"A": part}}))

    assert page.rows(-2)["A"] == ["3", "–", "3.00", "0.50", "1.000"]  # noqa: RUF001


def test_beside_the_epsilon_of_sites_stands_the_delta_of_each(tmp_path):
    said = {"A": {"epsilon": 1.5, "delta": 1e-5}, "B": {"epsilon": 0.5, "delta": 1e-3}}

    page = report(tmp_path, METRICS.model_copy(update={"rounds": (one_round(1, privacy=said),)}))

    assert "at the site's own delta: A 1e-05, B 0.001." in page.words
    assert "delta spent" not in page.words


def test_where_no_scan_left_the_sites_the_page_has_what_they_said_and_no_results(tmp_path):
    unseen = {"arms": (), "controls": (), "comparisons": (), "sites": {"A": {}, "B": {}}}

    page = report(tmp_path, METRICS.model_copy(update=unseen))

    assert page.open == []
    assert "results" not in page.ids
    assert "No scan left them" in page.words
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)
    assert re.search(CURVE, page.source)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    first, second = (report(tmp_path).source for _ in range(2))

    assert first == second


def test_a_page_of_24_pictures_stays_below_3_megabytes(tmp_path):
    noise = torch.rand(128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1

    path = write_report(METRICS, (replace(EXAMPLE, scan=noise, counterpart=noise),) * 24, "", tmp_path)

    assert path.stat().st_size < 3_000_000
