"""What each site has said to have spent of its patients' privacy, over all runs: whose falls, does not count.

A ledger tells by itself that it was put back, unless its anchor was put back with it, as with a whole machine. Then
the site would spend anew what is spent, and its epsilon, which never falls, is what gives that away.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedgan.atomic import write_atomically
from fedgan.errors import EpsilonFell, LedgerError
from fedgan.federated.coordinator import Federation
from fedgan.records import Answer, RoundTask, SiteFailure, SiteUpdate

ACCOUNTANTS_ERROR = 1e-3
"""Share by which the epsilon of a history may seem to fall when more is added to it."""

KNOWN = TypeAdapter(dict[str, dict[str, float]])

log = logging.getLogger(__name__)


class NeverLess:
    """A federation of sites that do not count in a round when they say to have spent less than ever before."""

    def __init__(self, federation: Federation, file: Path) -> None:
        """Ask ``federation``, and remember in ``file`` the largest epsilon of each site, at each delta.

        Raises:
            LedgerError: the file is damaged or cannot be read.
        """
        self.federation, self.file = federation, file
        try:
            self.known = KNOWN.validate_json(file.read_bytes()) if file.exists() else {}
        except (OSError, ValidationError) as error:
            raise LedgerError(
                f"{file}, where it is remembered what sites have spent, cannot be read; put back its newest copy"
            ) from error

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Ask the sites, and remember what they say before anything is made of it.

        Raises:
            HomeError: it cannot be written down.
        """
        answers = [
            self._judged(answer) if isinstance(answer, SiteUpdate) else answer for answer in self.federation.ask(task)
        ]
        if self.known:
            write_atomically(self.file, KNOWN.dump_json(self.known, indent=1))
        return answers

    def _judged(self, update: SiteUpdate) -> Answer:
        epsilon, delta = (update.metrics.get(f"privacy/{name}") for name in ("epsilon", "delta"))
        if epsilon is None or not math.isfinite(epsilon):  # what is no figure is refused where all metrics are judged
            return update
        of_site = self.known.setdefault(update.site, {})
        most = of_site.get(str(delta), 0.0)
        if epsilon < (1 - ACCOUNTANTS_ERROR) * most:
            log.error(
                "site %s says to have spent epsilon %g at delta %s, after %g: its ledger was put back. It must bring "
                "the newest one; or, if it rightly has another, what is known of it must be taken out of %s",
                update.site, epsilon, delta, most, self.file,
            )  # fmt: skip
            return SiteFailure(update.site, update.round, EpsilonFell.__name__)
        of_site[str(delta)] = max(epsilon, most)
        return update
