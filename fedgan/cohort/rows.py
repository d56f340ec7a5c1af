"""The lines of a manifest, each alone and all against each other; no picture is opened here."""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import ErrorDetails

from fedgan.cohort.cohort import Box, Split
from fedgan.cohort.images import file_and_slice
from fedgan.cohort.selection import parse_where
from fedgan.errors import CohortError
from fedgan.settings import SiteName

Problem = tuple[int, str]
"""A line of the manifest, and what is wrong with it."""

_REQUIRED = ("file", "patient", "label")


class Row(BaseModel):
    """One line of a manifest, checked."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    line: int
    file: str
    patient: str
    label: Literal["normal", "abnormal", "unlabelled"]
    disease: tuple[str, ...] = ()
    """Empty unless the scan is abnormal."""
    site: SiteName
    split: Split
    mask: str | None = None
    boxes: tuple[Box, ...] = ()

    @field_validator("disease", mode="before")
    @classmethod
    def _names(cls, cell: str) -> tuple[str, ...]:
        return tuple(name.strip() for name in cell.split(";") if name.strip())

    @field_validator("boxes", mode="before")
    @classmethod
    def _fours(cls, cell: str) -> list[list[float]]:
        try:
            boxes = [[float(number) for number in box.split()] for box in cell.split(";") if box.strip()]
        except ValueError:
            boxes = [[]]
        if not all(len(box) == 4 and all(map(isfinite, box)) and min(box[2:]) > 0 for box in boxes):
            raise ValueError("boxes are written x y w h;... in pixels")
        return boxes


@dataclass(frozen=True, slots=True)
class Listed:
    """The lines of a manifest, told apart by whether they can be used."""

    rows: Sequence[Row]
    """Sound, and of diseases that are asked about."""
    unasked: Sequence[Row]
    """Sound, and of another disease too: no scan is taken for less than its line says."""
    problems: Sequence[Problem]
    """All that is wrong with the others or between lines; between two, it is the later one that is wrong."""


def read_rows(path: Path, *, where: str | None, diseases: tuple[str, ...]) -> Listed:
    """Return the lines that ``where`` takes.

    Raises:
        CohortError: the manifest is no table with the columns it needs.
        SettingsError: ``where`` cannot be read.
    """
    columns, lines = _read_lines(path)
    takes = parse_where(where, columns) if where is not None else lambda _: True
    rows: list[Row] = []
    problems: list[Problem] = []
    for line, cells in lines:
        try:
            if not takes(cells):
                continue
            row = Row.model_validate({**_implied(cells, columns, diseases), **_filled(cells), "line": line})
            faults = list(_faults(row, path.parent, diseases))
        except ValidationError as mistakes:
            faults = [_worded(error) for error in mistakes.errors()]
        except ValueError as mistake:
            faults = [str(mistake)]
        else:
            rows += [] if faults else [row]
        problems += [(line, fault) for fault in faults]
    if not rows and not problems:
        problems.append((1, "no scan is left" + (f" where {where}" if where else "")))
    problems += _clashes(rows)
    wrong, asked = {line for line, _ in problems}, set(diseases)
    sound = [row for row in rows if row.line not in wrong]
    return Listed(
        rows=[row for row in sound if asked.issuperset(row.disease)],
        unasked=[row for row in sound if not asked.issuperset(row.disease)],
        problems=problems,
    )


def _read_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            columns = [name.strip() for name in next(reader, [])]
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as reason:
        raise CohortError("unknown", [f"{path} cannot be read: {reason}"]) from reason
    missing = [name for name in _REQUIRED if name not in columns]
    problems = [f"line 1: the column {name} is missing; there are {', '.join(columns)}" for name in missing]
    problems += [
        f"line 1: the column {name} is there twice" for name in sorted(set(columns)) if columns.count(name) > 1
    ]
    width = len(columns)
    problems += [f"line {line}: {len(cells)} cells in {width} columns" for line, cells in lines if len(cells) != width]
    if problems:
        raise CohortError("unknown", problems)
    return columns, [(line, dict(zip(columns, cells, strict=True))) for line, cells in lines]


def _filled(cells: Mapping[str, str]) -> dict[str, str]:
    return {column: cell for column, cell in cells.items() if cell}


def _implied(cells: Mapping[str, str], columns: Sequence[str], diseases: tuple[str, ...]) -> dict[str, str]:
    """Return what the absence of a column says, or of a disease where only one is asked for."""
    implied = {}
    if "site" not in columns:
        implied["site"] = "A"
    if "split" not in columns:
        implied["split"] = _split_of(cells["patient"])
    if len(diseases) == 1 and cells["label"] == "abnormal":
        implied["disease"] = diseases[0]
    return implied


def _split_of(patient: str) -> Split:
    """Draw a patient's split by name alone, so that it stays when other patients come or go."""
    draw = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8]) / 2**64
    return "train" if draw < 0.7 else "val" if draw < 0.85 else "test"


def _worded(error: ErrorDetails) -> str:
    column = error["loc"][0]
    if error["type"] == "missing":
        return f"{column} is empty"
    return f"{column}: {error['msg'].removeprefix('Value error, ')} (got {error['input']!r})"


def _faults(row: Row, root: Path, diseases: tuple[str, ...]) -> Iterator[str]:
    for name in (row.file, row.mask):
        if name is not None and not file_and_slice(root / name)[0].is_file():
            yield f"there is no file {name}"
    if row.label == "abnormal" and not row.disease:
        yield f"an abnormal scan must name its disease: {', '.join(diseases)}"
    if row.label != "abnormal" and (row.disease or row.boxes):
        yield f"the scan is {row.label}, yet a disease or a box is given"


def _clashes(rows: Iterable[Row]) -> Iterator[Problem]:
    files: dict[str, Row] = {}
    patients: dict[str, Row] = {}
    for row in rows:
        first = files.setdefault(row.file, row)
        if first is not row:
            yield row.line, f"{row.file} is on line {first.line} too"
        known = patients.setdefault(row.patient, row)
        if known.split != row.split:
            yield row.line, f"patient {row.patient} is in {row.split}, but in {known.split} on line {known.line}"
        if known.site != row.site:
            yield row.line, f"patient {row.patient} is at {row.site}, but at {known.site} on line {known.line}"
