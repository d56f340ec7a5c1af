"""The site's own account of its patients' privacy: one ledger for all runs, under the policy's ceiling."""

from pathlib import Path

from client.policy import Policy
from fedgan.privacy.ledger import Ledger


def ledger_of(site: str, home: Path, policy: Policy) -> Ledger:
    """Return the ledger in a site's ``home``, which counts at the delta and up to the epsilon that ``policy`` says."""
    return Ledger.in_folder(home, site=site, ceiling=policy.privacy.epsilon, delta=policy.privacy.delta)
