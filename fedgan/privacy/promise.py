"""What a site's patients are promised in one run, and the account that keeps it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedgan.privacy.accounting import NO_NOISE
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

    def settle(self, charge: int, delta: Weights) -> Mapping[str, float]:
        """Note what is sent for a charge, and return what the site has spent: nothing where no epsilon is large enough.

        Raises:
            LedgerError: as of ``Ledger.settle``.
        """
        self.ledger.settle(charge, sent=digest_of(delta))
        spent = self.ledger.spent()
        return {"epsilon": spent, "delta": self.ledger.delta} if math.isfinite(spent) else {}


def note_unpromised(ledger: Ledger, task: RoundTask, *, federation: str) -> None:
    """Write into ``ledger``, before it is trained, that a task promises nothing to the patients.

    Raises:
        BudgetExhausted, LedgerError: as of ``Ledger.reserve``.
    """
    number, model = task.model.round, task.model.digest
    ledger.reserve(Charge(federation, number, model, NO_NOISE, mechanism="no promise"))
