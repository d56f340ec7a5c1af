"""The site's own account of its patients' privacy: one ledger for all runs, under the policy's ceiling."""

from collections.abc import Sequence
from pathlib import Path

from client.policy import Policy
from fedgan.assembly import length_of
from fedgan.config import load
from fedgan.errors import SettingsError
from fedgan.privacy.accounting import Releases
from fedgan.privacy.build import build_mechanism
from fedgan.privacy.ledger import Ledger
from fedgan.settings import Deployment, PatientPrivacy


def ledger_of(site: str, home: Path, policy: Policy) -> Ledger:
    """Return the ledger that is where ``policy`` says, or in the site's ``home``; the policy says how it counts."""
    told = policy.privacy
    return Ledger.in_folder(told.ledger or home, site=site, ceiling=told.epsilon, delta=told.delta, anchor=told.anchor)


def round_of(overrides: Sequence[str]) -> Releases:
    """Return what one round releases of a private run with these settings, as the coordinator would give them.

    Raises:
        SettingsError: they are wrong, promise nothing to patients, or no noise is enough.
    """
    settings = load("server", Deployment, ["privacy=patient", *overrides])
    if not isinstance(settings.privacy, PatientPrivacy):
        raise SettingsError("privacy: these settings promise nothing to patients; leave privacy=... out")
    return build_mechanism(settings.privacy, length_of(settings)).releases(settings.local_steps)
