"""The site's scans as its policy has them, prepared as the coordinator asks; opted-out patients are not among them."""

import csv
from collections.abc import Callable
from contextlib import suppress

from client.policy import Manifest, Phantoms
from fedgan.cohort.cohort import Cohort, pool
from fedgan.cohort.manifest import LeftOut, load_cohorts
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.errors import CohortError
from fedgan.settings import AgreedScans, ManifestData


def load_scans(
    site: str,
    where: Phantoms | Manifest,
    asked: AgreedScans,
    without: frozenset[str],
    left_out: Callable[[LeftOut], None],
) -> Cohort:
    """Return the scans of ``site`` that are at ``where``, but for those of the patients ``without``.

    Lines of the manifest that cannot be used for what is ``asked`` are left out, and ``left_out`` is told of them.

    Raises:
        CohortError: the manifest cannot be read, or nobody is left.
        SettingsError: ``where`` names rows that the manifest cannot have.
    """
    cohort = _phantoms(site, where, asked) if isinstance(where, Phantoms) else _listed(where, asked, left_out)
    kept = cohort.take([row for row, patient in enumerate(cohort.patients) if patient not in without])
    if not len(kept):
        raise CohortError(site, ["no patient is left who is asked about and has not opted out"])
    return kept


def listed_at(where: Phantoms | Manifest) -> int:
    """Return when the list of scans was changed, in nanoseconds of some clock; 0 if there is none."""
    if isinstance(where, Manifest):
        with suppress(OSError):
            return (where.root / where.manifest).stat().st_mtime_ns
    return 0


def diseases_in(where: Phantoms | Manifest) -> tuple[str, ...]:
    """Return the diseases that the site's labels name; one without a name if there is none, or no list to be read."""
    names: set[str] = set()
    if isinstance(where, Manifest):
        with suppress(OSError, ValueError), (where.root / where.manifest).open(encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                names |= {name.strip() for name in (row.get("disease") or "").split(";")} - {""}
    return tuple(sorted(names)) or ("disease",)


def _phantoms(site: str, where: Phantoms, asked: AgreedScans) -> Cohort:
    return phantom_cohort(
        site,
        patients=where.patients,
        images_per_patient=where.images_per_patient,
        size=asked.size,
        diseases=asked.diseases,
        seed=where.seed,
    )


def _listed(where: Manifest, asked: AgreedScans, left_out: Callable[[LeftOut], None]) -> Cohort:
    cohorts = load_cohorts(
        ManifestData(
            kind="manifest",
            root=where.root,
            manifest=where.manifest,
            where=where.where,
            sites=None if where.site is None else (where.site,),
            cache=where.cache,
            size=asked.size,
            intensity=asked.intensity,
            diseases=asked.diseases,
            hide_labels=0,
            hidden_abnormal=None,
        ),
        left_out=left_out,
    )
    return pool(list(cohorts.values()))
