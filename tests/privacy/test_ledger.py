import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.errors import BudgetExhausted, LedgerError
from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.ledger import Charge, Ledger

ROUND = Releases(noise=2.0, rate=0.1, count=10)
DELTA = 1e-4


@pytest.fixture
def ledger_of(tmp_path):
    def build(ceiling=8.0, folder="ledger", delta=DELTA):
        path = tmp_path / folder / "ledger.sqlite"
        return Ledger(path, anchor=tmp_path / "anchor" / "A", site="A", ceiling=ceiling, delta=delta)

    return build


def charge(number=0, federation="lungs", releases=ROUND):
    return Charge(federation, number, "d" * 64, releases)


def spend(ledger, rounds, **kinds):
    for number in range(rounds):
        ledger.settle(ledger.reserve(charge(number, **kinds)), sent="e" * 64)


def test_charges_add_up_over_rounds_and_federations_and_outlive_the_process(ledger_of):
    spend(ledger_of(), 3)
    spend(ledger_of(), 2, federation="brains")

    reopened = ledger_of()

    assert reopened.spent() == epsilon_of([ROUND] * 5, delta=DELTA)
    assert reopened.spent(ROUND) == epsilon_of([ROUND] * 6, delta=DELTA)
    assert reopened.by_federation() == {
        "lungs": epsilon_of([ROUND] * 3, delta=DELTA),
        "brains": epsilon_of([ROUND] * 2, delta=DELTA),
    }


def test_every_line_says_what_was_spent_on_what_and_what_it_made_of_the_total(ledger_of):
    ledger = ledger_of()

    ledger.settle(ledger.reserve(charge(4)), sent="e" * 64)

    reserved, settled = ledger.lines()
    assert (reserved.federation, reserved.round, reserved.model) == ("lungs", 4, "d" * 64)
    assert (reserved.rate, reserved.noise, reserved.steps) == (0.1, 2.0, 10)
    assert reserved.epsilon == settled.epsilon == ledger.spent()
    assert (settled.settles, settled.model, settled.previous) == (1, "e" * 64, reserved.digest)


def test_a_charge_that_was_never_settled_stays(ledger_of):
    ledger_of().reserve(charge())

    assert ledger_of().spent() == epsilon_of([ROUND], delta=DELTA)


def test_a_round_over_the_ceiling_is_refused_with_what_is_left_and_charges_nothing(ledger_of):
    spent, after = (epsilon_of([ROUND] * rounds, delta=DELTA) for rounds in (3, 4))
    ceiling = (spent + after) / 2
    spend(ledger_of(), 3)

    with pytest.raises(BudgetExhausted) as refusal:
        ledger_of(ceiling).reserve(charge(3))

    assert f"{spent:.3g} is spent and {ceiling - spent:.3g} left" in str(refusal.value)
    assert ledger_of().spent() == spent
    ledger_of(ceiling).reserve(charge(3, releases=Releases(20.0, 0.1, 1)))  # less is still to be had


def test_a_smaller_delta_makes_what_was_spent_before_cost_more(ledger_of):
    spend(ledger_of(), 2)

    assert ledger_of(delta=DELTA / 10).spent() == epsilon_of([ROUND] * 2, delta=DELTA / 10)
    assert ledger_of(delta=DELTA / 10).spent() > ledger_of().spent()


def test_only_the_site_may_read_it(ledger_of):
    ledger = ledger_of()

    ledger.reserve(charge())

    modes = [stat.S_IMODE(path.stat().st_mode) for path in (ledger.path.parent, ledger.path, ledger.anchor.path)]
    assert modes == [0o700, 0o600, 0o600]


def test_a_line_can_neither_be_changed_nor_deleted_through_sqlite(ledger_of):
    ledger = ledger_of()
    spend(ledger, 1)

    with sqlite3.connect(ledger.path) as database:
        for statement in ("UPDATE lines SET noise = 9", "DELETE FROM lines"):
            with pytest.raises(sqlite3.IntegrityError, match="a ledger is only ever added to"):
                database.execute(statement)
    database.close()


def tamper(ledger, statement):
    database = sqlite3.connect(ledger.path)
    database.executescript(f"DROP TRIGGER nothing_changes; DROP TRIGGER nothing_goes; {statement}")
    database.close()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE lines SET noise = 9 WHERE number = 3", "line 3 was changed"),
        ("DELETE FROM lines WHERE number = 2", "line 2 was changed, or one before it taken out"),
        ("DELETE FROM lines WHERE number > 4", "it ends at line 4, before line 6"),
        ("DELETE FROM lines", "it ends at line 0, before line 6"),
    ],
)
def test_a_ledger_that_was_tampered_with_is_refused(ledger_of, statement, fault):
    ledger = ledger_of()
    spend(ledger, 3)

    tamper(ledger, statement)

    with pytest.raises(LedgerError, match=fault):
        ledger.reserve(charge(3))


def test_a_backup_put_back_after_more_was_spent_is_refused(ledger_of, tmp_path):
    ledger = ledger_of()
    spend(ledger, 2)
    shutil.copy(ledger.path, tmp_path / "backup")
    spend(ledger, 1)

    shutil.copy(tmp_path / "backup", ledger.path)

    with pytest.raises(LedgerError, match="put back the newest copy"):
        ledger_of().spent()


def test_a_backup_that_was_spent_on_anew_is_refused(ledger_of, tmp_path):
    ledger = ledger_of()
    spend(ledger, 1)
    anchor = tmp_path / "anchor" / "A"
    for kept in (ledger.path, anchor):
        shutil.copy(kept, tmp_path / kept.name)
    spend(ledger, 1)
    newest = anchor.read_bytes()
    for kept in (ledger.path, anchor):
        shutil.copy(tmp_path / kept.name, kept)
    spend(ledger, 2, federation="brains")

    anchor.write_bytes(newest)

    with pytest.raises(LedgerError, match="line 4 is not the one that was written"):
        ledger_of().spent()


@pytest.mark.parametrize(("lost", "fault"), [("ledger.sqlite", "it ends at line 0"), ("A", "its anchor is missing")])
def test_a_lost_file_is_refused_and_begins_no_new_account(ledger_of, tmp_path, lost, fault):
    spend(ledger_of(), 1)
    next(tmp_path.rglob(lost)).unlink()

    for _ in range(2):
        with pytest.raises(LedgerError, match=fault):
            ledger_of().reserve(charge(1))


def test_a_file_that_is_no_ledger_is_refused(ledger_of):
    ledger = ledger_of()
    ledger.path.parent.mkdir()
    ledger.path.write_bytes(b"not a database" * 100)

    with pytest.raises(LedgerError, match="cannot be read or written"):
        ledger.spent()


TAKE = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"


def test_who_is_refused_by_a_lock_of_his_own_process_does_not_open_it_to_others(ledger_of, monkeypatch):
    ledger = ledger_of()
    spend(ledger, 1)
    monkeypatch.setattr("fedgan.privacy.ledger.BUSY_S", 0.1)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.lines()

        with subprocess.Popen([sys.executable, "-c", TAKE, ledger.path], stderr=subprocess.PIPE, text=True) as other:
            said = other.communicate(timeout=60)[1]

    assert "database is locked" in said


def test_a_crash_between_a_line_and_its_anchor_is_forgiven(ledger_of, tmp_path):
    ledger = ledger_of()
    anchor = tmp_path / "anchor" / "A"
    spend(ledger, 1)
    before = anchor.read_bytes()
    ledger.reserve(charge(1))

    anchor.write_bytes(before)

    assert ledger_of().spent() == epsilon_of([ROUND] * 2, delta=DELTA)
    ledger_of().reserve(charge(2))


@settings(max_examples=8)
@given(asked=st.lists(st.sampled_from([(1.0, 5), (2.0, 10), (4.0, 40)]), max_size=6))
def test_whatever_is_asked_for_the_ceiling_holds_and_the_total_is_of_what_was_granted(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    ledger = Ledger(folder / "ledger", anchor=folder / "anchor", site="A", ceiling=3.0, delta=DELTA)
    granted = []

    for noise, count in asked:
        releases = Releases(noise, 0.1, count)
        try:
            ledger.reserve(charge(releases=releases))
        except BudgetExhausted:
            assert epsilon_of([*granted, releases], delta=DELTA) > 3.0
        else:
            granted.append(releases)

    assert ledger.spent() == epsilon_of(granted, delta=DELTA) <= 3.0


SITE = """
import os, sys
from pathlib import Path

from fedgan.errors import BudgetExhausted
from fedgan.privacy.accounting import Releases
from fedgan.privacy.ledger import Charge, Ledger

folder, ceiling, noise, rate, count = Path(sys.argv[1]), *map(float, sys.argv[2:])
ledger = Ledger(folder / "ledger", anchor=folder / "anchor", site="A", ceiling=ceiling, delta=1e-4)
for _ in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
        continue
    gradients = os.open(folder / "gradients", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    try:
        for number in range(10_000):
            reserved = ledger.reserve(Charge("lungs", number, "d" * 64, Releases(noise, rate, int(count))))
            os.write(gradients, b"g")
            ledger.settle(reserved, sent="e" * 64)
    except BudgetExhausted:
        os._exit(0)
"""
"""Plays a site: for each line it reads, a process of its own reserves, computes and settles until it is stopped."""


@contextmanager
def site(folder, *, ceiling, releases):
    told = [str(value) for value in (folder, ceiling, releases.noise, releases.rate, releases.count)]
    with subprocess.Popen(
        [sys.executable, "-c", SITE, *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.stdin.close()
            process.wait(timeout=60)


def begin(process) -> int:
    process.stdin.write("\n")
    process.stdin.flush()
    return int(process.stdout.readline())


def gradients_in(folder) -> int:
    return (folder / "gradients").stat().st_size if (folder / "gradients").exists() else 0


@pytest.mark.slow
def test_killed_at_twenty_points_it_never_shows_less_than_was_spent_and_at_most_a_round_more_each(tmp_path):
    releases, kills, rng = Releases(0.5, 0.5, 100), 20, random.Random(6)  # noqa: S311 - when to kill is no secret

    with site(tmp_path, ceiling=1e9, releases=releases) as process:
        for _ in range(kills):
            before, deadline = gradients_in(tmp_path), time.monotonic() + 60
            trainer = begin(process)
            while gradients_in(tmp_path) <= before and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.3))
            os.kill(trainer, signal.SIGKILL)
            assert process.stdout.readline() == "ended\n"

    ledger = Ledger(tmp_path / "ledger", anchor=tmp_path / "anchor", site="A", ceiling=1e9, delta=DELTA)
    charged = sum(line.settles is None for line in ledger.lines())
    computed = gradients_in(tmp_path)
    assert kills <= computed <= charged <= computed + kills
    assert ledger.spent() == epsilon_of([releases] * charged, delta=DELTA)


@pytest.mark.slow
def test_two_processes_that_spend_at_once_stay_below_the_ceiling_together(tmp_path):
    releases, ceiling = Releases(4.0, 0.1, 40), 3.0

    with (
        site(tmp_path, ceiling=ceiling, releases=releases) as one,
        site(tmp_path, ceiling=ceiling, releases=releases) as other,
    ):
        for process in (one, other):
            begin(process)
        assert [process.stdout.readline() for process in (one, other)] == ["ended\n"] * 2

    ledger = Ledger(tmp_path / "ledger", anchor=tmp_path / "anchor", site="A", ceiling=ceiling, delta=DELTA)
    granted = gradients_in(tmp_path)
    assert ledger.spent() == epsilon_of([releases] * granted, delta=DELTA) <= ceiling
    assert ledger.spent(releases) > ceiling
