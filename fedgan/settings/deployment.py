"""Everything ``fed-server`` is told of a run between hospitals, and what of it goes on to them."""

from pathlib import Path

from fedgan.errors import SettingsError
from fedgan.settings.data import AgreedScans
from fedgan.settings.run import Run, Terms
from fedgan.settings.types import Count


class Deployment(Run):
    """Everything ``fed-server`` is told of a run."""

    runs: Path | None
    """Folder of all runs; null is ``runs`` in the federation's own folder."""
    deadline_s: Count
    """Seconds that sites have for a round; who is later has no part in it."""
    data: AgreedScans


def terms_of(settings: Deployment) -> Terms:
    """Return what sites are told of a run.

    Raises:
        SettingsError: the run has no name yet.
    """
    if settings.name is None:
        raise SettingsError("name: sites must be told the run's name; give name=VALUE")
    return Terms.model_validate(settings.model_dump(include=set(Terms.model_fields)))
