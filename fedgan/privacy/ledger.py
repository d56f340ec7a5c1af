"""A site's durable account of what its patients' privacy has been spent on: every run's charges, of all federations.

Training without a promise has a line as well, and makes the epsilon of all infinite.

A charge is written before the first gradient is computed, and stays whatever happens then: a crash may waste budget
and never hides it. Lines are only ever added, each carrying the SHA-256 of the one before; the newest is also named by
an anchor, a small file elsewhere, which tells a ledger that was put back to an older state, changed, or deleted. Both
lie outside of any run's folder. Whoever can write both can forge both: that the epsilon which a site reports never
falls is for the coordinator to see. The coordinator's own account, see ``fedgan.privacy.central``, is kept likewise.

That what is spent bounds what is given away, although a coordinator may choose a round's noise and rate once it has
seen the rounds before, is proven for one order of Rényi divergences (Feldman and Zrnic 2021, arXiv:2008.11193). For the
smaller of several bounds, as taken here, it is assumed.
"""

import hashlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from fedgan.errors import BudgetExhausted, HomeError, LedgerError
from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.anchor import BEGINNING, Anchor

BUSY_S = 60.0
"""How long another process may hold the ledger, in seconds."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS lines (
    number INTEGER PRIMARY KEY, settles INTEGER, time TEXT, federation TEXT, round INTEGER, mechanism TEXT,
    rate REAL, noise REAL, steps INTEGER, model TEXT, delta REAL, epsilon REAL, previous TEXT, digest TEXT
);
CREATE TRIGGER IF NOT EXISTS nothing_changes BEFORE UPDATE ON lines
BEGIN SELECT RAISE(ABORT, 'a ledger is only ever added to'); END;
CREATE TRIGGER IF NOT EXISTS nothing_goes BEFORE DELETE ON lines
BEGIN SELECT RAISE(ABORT, 'a ledger is only ever added to'); END;
"""


@dataclass(frozen=True, slots=True)
class Charge:
    """What one round of a run is about to spend."""

    federation: str
    round: int
    """From 0, as the task says."""
    model: str
    """Digest of the weights that the site received."""
    releases: Releases
    mechanism: str = "dp-sgd, one patient"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger: a charge, or that the round it was for has ended."""

    number: int
    settles: int | None
    """The number of the charge that it says is settled; None for a charge."""
    time: str
    federation: str
    round: int
    mechanism: str
    rate: float
    noise: float
    steps: int
    """Releases of that noise, each over a draw of its own."""
    model: str
    """Digest of the weights received or, where a charge is settled, of the delta that was sent."""
    delta: float
    epsilon: float
    """Spent by all lines up to this one, at ``delta``."""
    previous: str
    digest: str


class Ledger:
    """One site's account, in one SQLite file; several processes may hold it, and one at a time can spend."""

    def __init__(self, path: Path, *, anchor: Path, site: str | None, ceiling: float, delta: float) -> None:
        """Open the ledger at ``path``, which the first charge begins.

        Args:
            path: the ledger's file, in a folder for it alone.
            anchor: the file that names the ledger's newest line; best on another disk.
            site: whose it is; None for the coordinator's own.
            ceiling: the largest epsilon that may ever be spent, in all federations together.
            delta: at which epsilon is told.
        """
        self.path, self.anchor = path, Anchor(anchor)
        self.whose = "the coordinator" if site is None else f"site {site}"
        self.ceiling, self.delta = ceiling, delta

    @classmethod
    def in_folder(
        cls, folder: Path, *, site: str | None, ceiling: float | None, delta: float, anchor: Path | None = None
    ) -> Self:
        """Open the ledger in ``folder``, its anchor there if not elsewhere; without a ``ceiling`` it only counts."""
        return cls(
            folder / "privacy" / "ledger.sqlite",
            anchor=anchor or folder / "ledger.anchor",
            site=site,
            ceiling=math.inf if ceiling is None else ceiling,
            delta=delta,
        )

    def reserve(self, charge: Charge) -> int:
        """Write down what a round is about to spend and return the line's number; nothing may be computed before.

        Raises:
            BudgetExhausted: it would take the site over its ceiling; nothing is charged.
            LedgerError: the ledger or its anchor is missing, changed, older than it was, or cannot be written.
        """
        with self._locked() as database:
            lines = self._lines(database)
            after = self._epsilon(lines, charge.releases)
            if after > self.ceiling:
                raise BudgetExhausted(self._refusal(self._epsilon(lines), after))
            line = self._next(lines, charge, epsilon=after)
            if not lines:  # without this, a first line and a deleted anchor would look alike
                self.anchor.drop(0, BEGINNING)
            _append(database, line)
        self._drop_anchor()
        return line.number

    def settle(self, number: int, *, sent: str) -> None:
        """Write down that the round of charge ``number`` has ended; the charge stays as it is.

        Args:
            number: what ``reserve`` returned.
            sent: the digest of the delta that is sent.

        Raises:
            LedgerError: as for ``reserve``, or there is no such charge.
        """
        with self._locked() as database:
            lines = self._lines(database)
            charged = next((line for line in lines if line.number == number and line.settles is None), None)
            if charged is None:
                raise LedgerError(f"{self.whose}: its ledger has no charge {number}; settle what was reserved")
            charge = Charge(charged.federation, charged.round, sent, _releases(charged), charged.mechanism)
            _append(database, replace(self._next(lines, charge, epsilon=lines[-1].epsilon), settles=number))
        self._drop_anchor()

    def lines(self) -> Sequence[Line]:
        """Return every line, oldest first.

        Raises:
            LedgerError: as for ``reserve``.
        """
        with self._locked() as database:
            return self._lines(database)

    def spent(self, *more: Releases) -> float:
        """Return the epsilon of all charges, of whatever federation, and of ``more`` that may follow.

        Raises:
            LedgerError: as for ``reserve``.
        """
        return self._epsilon(self.lines(), *more)

    def by_federation(self) -> Mapping[str, float]:
        """Return the epsilon of each federation's charges alone; what all cost together is no more than their sum.

        Raises:
            LedgerError: as for ``reserve``.
        """
        lines = self.lines()
        names = dict.fromkeys(line.federation for line in lines)
        return {name: self._epsilon([line for line in lines if line.federation == name]) for name in names}

    def _epsilon(self, lines: Sequence[Line], *more: Releases) -> float:
        charged = [_releases(line) for line in lines if line.settles is None]
        return epsilon_of([*charged, *more], delta=self.delta)

    def _next(self, lines: Sequence[Line], charge: Charge, *, epsilon: float) -> Line:
        return Line(
            number=len(lines) + 1,
            settles=None,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            federation=charge.federation,
            round=charge.round,
            mechanism=charge.mechanism,
            rate=float(charge.releases.rate),
            noise=float(charge.releases.noise),
            steps=charge.releases.count,
            model=charge.model,
            delta=float(self.delta),
            epsilon=epsilon,
            previous=lines[-1].digest if lines else BEGINNING,
            digest="",
        )

    def _refusal(self, spent: float, after: float) -> str:
        if math.isinf(spent):
            return (
                f"{self.whose}: its patients were trained on without a promise, after which no epsilon can be kept; "
                "its data protection officer alone may begin a ledger anew, for patients who were not"
            )
        return (
            f"{self.whose}: of epsilon {self.ceiling:g} at delta {self.delta:g}, {spent:.3g} is spent and "
            f"{max(0.0, self.ceiling - spent):.3g} left; this round would make it {after:.3g}. The coordinator must go "
            "on without it, or ask for fewer steps or more noise; its data protection officer alone sets its ceiling"
        )

    @contextmanager
    def _locked(self) -> Iterator[sqlite3.Connection]:
        """Hold the ledger against every other process; what is written counts when the block ends, or not at all."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):  # what is there is not opened: closing it would drop this process's locks
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
            with closing(sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None)) as database:
                database.executescript(f"PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; {SCHEMA}")
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")
        except (sqlite3.Error, OSError, HomeError) as error:
            raise LedgerError(
                f"{self.whose}: its privacy ledger cannot be read or written ({error}); "
                "this must be mended before training goes on"
            ) from error

    def _lines(self, database: sqlite3.Connection) -> list[Line]:
        """Return all lines if each follows from the one before and the newest that was anchored is among them."""
        lines = [Line(*row) for row in database.execute("SELECT * FROM lines ORDER BY number")]
        previous, fault = BEGINNING, None
        for number, line in enumerate(lines, start=1):
            if (line.number, line.previous, line.digest) != (number, previous, _digest(line)):
                fault = f"line {number} was changed, or one before it taken out"
                break
            previous = line.digest
        fault = fault or self.anchor.fault_in([line.digest for line in lines])
        if fault:
            raise LedgerError(
                f"{self.whose}: its privacy ledger cannot be trusted: {fault}. It must put back the newest copy "
                "of ledger and anchor; without one, the budget counts as spent"
            )
        return lines

    def _drop_anchor(self) -> None:
        """Let the anchor name the newest line, whoever wrote it."""
        with self._locked() as database:
            self.anchor.drop(*database.execute("SELECT number, digest FROM lines ORDER BY number DESC").fetchone())


def _append(database: sqlite3.Connection, line: Line) -> None:
    values = astuple(replace(line, digest=_digest(line)))
    database.execute(f"INSERT INTO lines VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608 - marks alone


def _digest(line: Line) -> str:
    facts = {name: value for name, value in asdict(line).items() if name != "digest"}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _releases(line: Line) -> Releases:
    return Releases(line.noise, line.rate, line.steps)
