"""Play ``fed-server demo`` and record it: ``python docs/record.py`` writes ``docs/federation.cast`` and ``.svg``.

What is recorded is what the commands said and when; only the name of the folder they ran in is taken out of it, and
the picture shortens pauses. The recording (asciicast v2) plays in any terminal with ``asciinema play``.
"""

import json
import tempfile
import textwrap
import time
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from server.demo import demo

DOCS = Path(__file__).resolve().parent

ROUNDS = 10

COLUMNS, ROWS = 130, 34

LINE_PX, LETTER_PX, MARGIN_PX = 17.0, 7.3, 14.0

SHORTEST_S, LONGEST_S, REST_S = 0.06, 1.2, 8.0
"""Between two lines of the picture, at least and at most; and after the last, before it begins anew."""

PICTURE = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-size="12">
<title>{title}</title>
<style>
text {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #c9d1d9; white-space: pre }}
.given {{ fill: #7ee787; font-weight: 600 }}
.lines {{ animation: scroll {seconds:.1f}s step-end infinite }}
.unsaid {{ animation: say {seconds:.1f}s step-end infinite; fill: #0d1117; transform: translateY({height:.0f}px) }}
@keyframes scroll {{ {scroll} }}
@keyframes say {{ {say} }}
</style>
<clipPath id="screen"><rect x="0" y="{margin}" width="{width:.0f}" height="{screen:.0f}"/></clipPath>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
<g clip-path="url(#screen)"><g class="lines">
{lines}
</g><rect class="unsaid" width="100%" height="100%"/></g>
</svg>
"""


class Line(NamedTuple):
    """One line of the terminal."""

    at_s: float
    """Since the beginning."""
    text: str


def record() -> list[Line]:
    """Play the demonstration in a folder of its own, and return what the terminal showed."""
    began, shown = time.monotonic(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve() / "hospitals"

        def say(text: str) -> None:
            at_s, text = time.monotonic() - began, text.replace(f"{folder}/", "").replace(str(folder), folder.name)
            shown.extend(Line(at_s, part) for part in textwrap.wrap(text, COLUMNS, subsequent_indent="  ") or [""])

        demo(folder, ROUNDS, say)
    return shown


def cast_of(lines: list[Line], title: str) -> str:
    """Return the recording as an asciicast; see https://docs.asciinema.org/manual/asciicast/v2/."""
    header = {"version": 2, "width": COLUMNS, "height": ROWS, "title": title, "idle_time_limit": LONGEST_S}
    events = [[round(line.at_s, 3), "o", f"{line.text}\r\n"] for line in lines]
    return "".join(f"{json.dumps(entry)}\n" for entry in (header, *events))


def picture_of(lines: list[Line], title: str) -> str:
    """Return the recording as an SVG that plays by itself, its pauses shortened."""
    times = [0.0]
    for before, line in pairwise(lines):
        times.append(times[-1] + min(max(line.at_s - before.at_s, SHORTEST_S), LONGEST_S))
    seconds = times[-1] + REST_S
    scroll, say = [], []
    for number, at_s in enumerate(times, start=1):
        gone = max(0, number - ROWS)
        when = f"{100 * at_s / seconds:.2f}%"
        scroll.append(f"{when}{{transform:translateY({-gone * LINE_PX:.0f}px)}}")
        say.append(f"{when}{{transform:translateY({MARGIN_PX + (number - gone) * LINE_PX:.0f}px)}}")
    return PICTURE.format(
        title=escape(title),
        width=COLUMNS * LETTER_PX + 2 * MARGIN_PX,
        height=ROWS * LINE_PX + 2 * MARGIN_PX,
        margin=MARGIN_PX,
        screen=ROWS * LINE_PX,
        seconds=seconds,
        scroll=" ".join(scroll),
        say=" ".join(say),
        lines="\n".join(map(_drawn, range(len(lines)), lines)),
    )


def _drawn(number: int, line: Line) -> str:
    kind = ' class="given"' if line.text.startswith("$ ") else ""
    return f'<text x="{MARGIN_PX}" y="{MARGIN_PX + (number + 0.75) * LINE_PX:.1f}"{kind}>{escape(line.text)}</text>'


def main() -> None:
    """Record, and write both files."""
    lines = record()
    title = f"A federation of three phantom hospitals, {ROUNDS} rounds"
    (DOCS / "federation.cast").write_text(cast_of(lines, title), encoding="utf-8")
    (DOCS / "federation.svg").write_text(picture_of(lines, title), encoding="utf-8")


if __name__ == "__main__":
    main()
