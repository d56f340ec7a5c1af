"""What is learned from: phantoms, or the scans of a manifest."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedgan.settings.types import Count, Frozen, Name, SiteName

Size = Literal[32, 64, 128, 256]
Intensity = Literal["range", "tissue_median"]


class Scans(Frozen):
    """What networks are made for."""

    size: Size
    """Height and width in pixels to which scans are resampled."""
    diseases: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Diseases the model is told apart by. With one name, abnormal scans of unnamed disease count as it."""


class AgreedScans(Scans):
    """How every site prepares its scans; which they are, it alone knows."""

    intensity: Intensity
    """How brightness becomes [-1, 1]: by the file's own range, or by the median of the tissue in the scan."""


class Cohorts(Scans):
    """What every kind of data has in common."""

    hide_labels: Annotated[float, Field(ge=0, lt=1)]
    """Share of the training and validation scans that are made unlabelled, drawn from the seed, at each site."""
    hidden_abnormal: Annotated[float, Field(ge=0, le=1)] | None
    """Share of abnormal scans among those made unlabelled; null takes them as they come."""


class PhantomData(Cohorts):
    """Synthetic patients: the embedded default."""

    kind: Literal["phantoms"]
    sites: Annotated[tuple[SiteName, ...], Field(min_length=1)]
    """Names of the sites; each has a scanner of its own, which follows from its name."""
    patients: Annotated[int, Field(ge=6)]
    """Patients per site, all splits together; half of them are abnormal."""
    images_per_patient: Count
    """Neighbouring slices of each patient."""
    diseases: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Diseases: even ones (the first is 0) are soft-edged, odd ones hollow and sharp; a patient has at most one."""


class ManifestData(Cohorts, AgreedScans):
    """Scans listed in a manifest (CSV); see ``fedgan.cohort.manifest``."""

    kind: Literal["manifest"]
    root: Path
    """Folder of the manifest; the files in it are named relative to this folder."""
    manifest: str
    """Name of the manifest below ``root``."""
    where: str | None
    """Rows to take, as in ``matched == 1``; null takes all."""
    sites: tuple[SiteName, ...] | None
    """Sites to take; null takes every site of the manifest."""
    cache: Path | None
    """Where prepared scans are kept; null is ``.fedgan-cache`` in the current folder."""
