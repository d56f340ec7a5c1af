"""The site's own account of its patients' privacy: one ledger for all runs, under the policy's ceiling."""

from pathlib import Path

from client.policy import Policy
from fedgan.privacy.ledger import Ledger


def ledger_of(site: str, home: Path, policy: Policy) -> Ledger:
    """Return the ledger that is where ``policy`` says, or in the site's ``home``; the policy says how it counts."""
    told = policy.privacy
    return Ledger.in_folder(told.ledger or home, site=site, ceiling=told.epsilon, delta=told.delta, anchor=told.anchor)
