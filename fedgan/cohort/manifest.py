"""A site's manifest: the checked list of its scans, and the cohorts made of it; how a file is decoded is in images.py.

A manifest is a CSV file (UTF-8, commas) with one line per scan. Files are named relative to its folder.

=========  ==========================================================================================================
file       the scan: PNG, TIFF, NIfTI; ``brain.nii.gz#42`` is axial slice 42
patient    whose scan it is; a patient is in one split and at one site
label      ``normal``, ``abnormal`` or ``unlabelled``
disease    optional: what an abnormal scan shows, several separated by ``;``
site       optional: without this column, all scans are site A's
split      optional: ``train``, ``val`` or ``test``; without this column, 70, 15 and 15 % by the patient's name
mask       optional: a picture of the scan's size in which every pixel that is not 0 is lesion
boxes      optional: ``x y w h;...``, the lesions' boxes in pixels of the stored picture
=========  ==========================================================================================================

Further columns are allowed, and can be asked for in ``where``.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import compress, groupby
from operator import attrgetter
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fedgan.cohort import images
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.cohort.images import Unreadable, file_and_slice, prepare, prepare_boxes, prepare_mask, read_scan
from fedgan.cohort.prepared import Records, kept_records
from fedgan.cohort.rows import Listed, Problem, Row, read_rows
from fedgan.errors import CohortError, SettingsError
from fedgan.settings import ManifestData

Progress = Callable[[int, int], None]
"""Is told how many scans are prepared, of how many."""

NOT_PREPARED = "its picture could not be used when it was prepared; the log of then says why"

NO_SHAPE = (0, 0)
"""Kept as the shape of a picture that cannot be used."""

_STATUS = {"normal": NORMAL, "abnormal": ABNORMAL, "unlabelled": UNLABELLED}


def read_manifest(path: Path, *, where: str | None, diseases: tuple[str, ...]) -> tuple[Row, ...]:
    """Return the rows that ``where`` takes, after every check that opens no picture.

    Raises:
        CohortError: the manifest cannot be used; all that is wrong is in its ``problems``, line by line.
        SettingsError: ``where`` cannot be read.
    """
    listed = read_rows(path, where=where, diseases=diseases)
    _refuse(listed, _all_problems(listed, diseases))
    return tuple(listed.rows)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The lines that a site goes without; for its own eyes."""

    unasked: int
    """Sound ones, of a disease that is not asked about."""
    problems: tuple[str, ...]
    """What is wrong with others, line by line."""

    def __str__(self) -> str:
        """Say how many scans of other diseases there are, and of up to twenty problems what they are."""
        shown = "".join(f"\n  {problem}" for problem in self.problems[:20])
        problems = f"{len(self.problems)} problem(s) in the manifest{':' if shown else ''}{shown}"
        return f"left out: {self.unasked} scan(s) of diseases that are not asked about; {problems}"


def load_cohorts(
    settings: ManifestData, progress: Progress | None = None, left_out: Callable[[LeftOut], None] | None = None
) -> dict[str, Cohort]:
    """Read, check and prepare the scans of each site, or take them as they were kept the last time.

    With ``left_out``, which is then told of them if there are any, lines that cannot be used are left out, so that
    neither one patient nor what is asked about decides whether there is a cohort. Without, they are refused.

    Raises:
        CohortError: the manifest or its pictures cannot be used; all that is wrong is in its ``problems``.
        SettingsError: ``where`` cannot be read, or a site is asked for that the manifest does not have.
    """
    listed = read_rows(settings.root / settings.manifest, where=settings.where, diseases=settings.diseases)
    rows, unasked = _at(settings.sites, listed.rows), _at(settings.sites, listed.unasked)
    lines = _all_problems(listed, settings.diseases)
    if not rows or {row.site for row in rows} < set(settings.sites or ()):
        _refuse(listed, lines)
        raise SettingsError(f"sites: the manifest has only {', '.join(sorted({row.site for row in listed.rows}))}")
    pictures: list[Problem] = []

    def fill(records: Records) -> None:
        pictures.extend(_prepare_rows(rows, records, settings, progress))
        if left_out is None:
            _refuse(listed, [*lines, *pictures])
        wrong = {line for line, _ in pictures}
        records["shape"][[row.line in wrong for row in rows]] = NO_SHAPE

    key = _key(rows, settings, whole=left_out is None)
    folder = settings.cache or Path(".fedgan-cache")
    kept = kept_records(folder, key, size=settings.size, length=len(rows), fill=fill)
    if left_out is None:
        _refuse(listed, lines)  # the pictures may be sound, and kept, while the lines are not
        return _cohorts(rows, kept, settings.diseases)
    usable = kept["shape"][:, 0] > 0
    pictures = pictures or [(row.line, NOT_PREPARED) for row, fine in zip(rows, usable, strict=True) if not fine]
    if not usable.any():
        _refuse(listed, [*lines, *pictures])
    if unasked or listed.problems or pictures:
        left_out(LeftOut(len(unasked), _in_lines([*listed.problems, *pictures])))
    return _cohorts(list(compress(rows, usable)), kept if usable.all() else kept[usable], settings.diseases)


def _at(sites: Sequence[str] | None, rows: Iterable[Row]) -> list[Row]:
    """Return the rows of these sites, or of all, site by site."""
    return sorted((row for row in rows if row.site in (sites or (row.site,))), key=attrgetter("site"))


def _all_problems(listed: Listed, diseases: tuple[str, ...]) -> list[Problem]:
    """Return what is wrong with lines, to be of a disease that is not asked about included."""
    others = [(row.line, name) for row in listed.unasked for name in row.disease if name not in diseases]
    asked = ", ".join(diseases)
    return [
        *listed.problems,
        *((line, f"disease {name} is not among those of the settings: {asked}") for line, name in others),
    ]


def _in_lines(problems: Iterable[Problem]) -> tuple[str, ...]:
    return tuple(f"line {line}: {fault}" for line, fault in sorted(problems))


def _refuse(listed: Listed, problems: Iterable[Problem]) -> None:
    if found := _in_lines(problems):
        raise CohortError(", ".join(sorted({row.site for row in listed.rows})) or "unknown", found)


def _key(rows: Sequence[Row], settings: ManifestData, *, whole: bool) -> str:
    """Return the digest of all that prepared scans depend on; pictures count by path, size and time of change.

    ``whole`` says whether all of them can be used.
    """

    def state(name: str | None) -> tuple[str, int, int] | None:
        if name is None:
            return None
        file = file_and_slice(settings.root / name)[0].resolve()
        status = file.stat()
        return str(file), status.st_size, status.st_mtime_ns

    parts = [(row.file, state(row.file), state(row.mask), row.mask, row.label, row.boxes) for row in rows]
    told = [inspect.getsource(images), settings.size, settings.intensity, whole, parts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _prepare_rows(
    rows: Sequence[Row], records: Records, settings: ManifestData, progress: Progress | None
) -> Iterator[Problem]:
    """Fill one record for each row, and tell what is wrong with the pictures, alone and among each other."""
    prepare_row = partial(_prepare_row, root=settings.root, size=settings.size, intensity=settings.intensity)
    pictures: dict[str, Row] = {}
    with ThreadPoolExecutor() as pool:
        for done, (row, (digest, faults)) in enumerate(zip(rows, pool.map(prepare_row, rows, records), strict=True), 1):
            yield from ((row.line, fault) for fault in faults)
            first = pictures.setdefault(digest, row)
            if digest and first.file != row.file:
                yield row.line, f"{row.file} is the same picture as {first.file} on line {first.line}"
            if progress is not None:
                progress(done, len(rows))


def _prepare_row(
    row: Row, record: np.void, *, root: Path, size: int, intensity: Literal["range", "tissue_median"]
) -> tuple[str, list[str]]:
    """Fill ``record``; return the digest of the stored pixels ("" where there are none) and what is wrong with them.

    Raises:
        CohortError: a file cannot be read now, of which nothing must be kept.
    """
    digest, faults = "", []
    try:
        pixels = read_scan(root / row.file).pixels
        record["shape"] = pixels.shape
        record["image"] = prepare(pixels, size=size, intensity=intensity)
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        if any(x < 0 or y < 0 or x + w > pixels.shape[1] or y + h > pixels.shape[0] for x, y, w, h in row.boxes):
            faults.append(f"a box reaches beyond {row.file}, which is {_in_words(pixels.shape)}")
    except Unreadable as fault:
        raise CohortError(row.site, [f"line {row.line}: {row.file}: {fault}"]) from fault
    except ValueError as fault:
        faults.append(f"{row.file}: {fault}")
    try:
        if row.mask is not None:
            record["mask"] = prepare_mask(_read_mask(row, root, tuple(record["shape"])), size=size)
    except Unreadable as fault:
        raise CohortError(row.site, [f"line {row.line}: {row.mask}: {fault}"]) from fault
    except ValueError as fault:
        faults.append(f"{row.mask}: {fault}")
    return digest, faults


def _read_mask(row: Row, root: Path, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = read_scan(root / str(row.mask)).pixels != 0
    if any(shape) and mask.shape != shape:
        raise ValueError(f"the mask is {_in_words(mask.shape)}, its scan {_in_words(shape)}")
    if row.label == "abnormal" and not mask.any():
        raise ValueError("the mask is empty, yet the scan is abnormal")
    if row.label == "normal" and mask.any():
        raise ValueError("the mask shows a lesion, yet the scan is normal")
    return mask


def _in_words(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]} pixels"


def _cohorts(rows: Sequence[Row], kept: Records, diseases: tuple[str, ...]) -> dict[str, Cohort]:
    """Return the cohort of each site, of rows that are ordered by site."""
    cohorts: dict[str, Cohort] = {}
    first = 0
    for site, group in groupby(rows, key=attrgetter("site")):
        of_site = list(group)
        cohorts[site] = _cohort(of_site, kept[first : first + len(of_site)], diseases)
        first += len(of_site)
    return cohorts


def _cohort(rows: Sequence[Row], records: Records, diseases: tuple[str, ...]) -> Cohort:
    size = records["image"].shape[-1]
    return Cohort(
        disease_names=diseases,
        images=torch.from_numpy(records["image"][:, None]),
        status=torch.tensor([_STATUS[row.label] for row in rows]),
        diseases=torch.tensor([[float(name in row.disease) for name in diseases] for row in rows]),
        masks=torch.from_numpy(records["mask"]),
        has_mask=torch.tensor([row.label == "normal" or row.mask is not None for row in rows]),
        boxes=tuple(
            prepare_boxes(row.boxes, shape=shape, size=size)
            for row, shape in zip(rows, records["shape"].tolist(), strict=True)
        ),
        patients=tuple(row.patient for row in rows),
        splits=tuple(row.split for row in rows),
        sites=tuple(row.site for row in rows),
    )
