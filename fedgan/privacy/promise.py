"""What a site's patients are promised in one run, and the account that keeps it."""

from dataclasses import dataclass

from fedgan.privacy.dp_sgd import Mechanism
from fedgan.privacy.ledger import Charge, Ledger
from fedgan.records import RoundTask, Weights, digest_of


@dataclass(frozen=True, slots=True)
class Promise:
    """How a site's private rounds are trained, and where they are charged."""

    mechanism: Mechanism
    ledger: Ledger
    federation: str
    """By which the ledger tells whom the site spent its budget with."""

    def reserve(self, task: RoundTask) -> int:
        """Charge the task before anything is computed for it, and return the charge's number.

        Raises:
            BudgetExhausted, LedgerError: as of ``Ledger.reserve``.
        """
        releases = self.mechanism.releases(task.local_steps)
        return self.ledger.reserve(Charge(self.federation, task.model.round, task.model.digest, releases))

    def settle(self, charge: int, delta: Weights) -> float:
        """Note what is sent for a charge, and return the epsilon that the site has spent.

        Raises:
            LedgerError: as of ``Ledger.settle``.
        """
        self.ledger.settle(charge, sent=digest_of(delta))
        return self.ledger.spent()
