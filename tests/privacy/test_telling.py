import math

import pytest

from fedgan.privacy.accounting import NO_NOISE, Releases, epsilon_of
from fedgan.privacy.build import Length
from fedgan.privacy.ledger import Charge, Ledger
from fedgan.privacy.telling import tell_account, tell_plan

ROUND = Releases(2.0, 0.1, 10)


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger", anchor=tmp_path / "anchor", site="A", ceiling=1.0, delta=1e-4)
    for federation in ("lungs", "brains"):
        ledger.reserve(Charge(federation, 0, "d" * 64, ROUND))
    return ledger


def test_the_account_says_what_is_spent_left_and_by_whom(ledger):
    first, lungs, brains, again = tell_account(ledger)

    spent, one = (epsilon_of([ROUND] * rounds, delta=1e-4) for rounds in (2, 1))
    assert first == f"site A: epsilon {spent:.3g} of 1 spent, {1 - spent:.3g} left, at delta 0.0001"
    assert again.startswith(f"  one more round of 10 noisy steps: {epsilon_of([ROUND] * 3, delta=1e-4):.3g} spent")
    assert (lungs, brains) == (f"  lungs: {one:.3g} by itself", f"  brains: {one:.3g} by itself")


def test_the_account_says_what_one_more_round_would_cost_and_whether_it_would_be_granted(ledger):
    little, much = (tell_account(ledger, Releases(2.0, 0.1, count))[-1] for count in (1, 10_000))

    assert little.endswith(" spent")
    assert much.endswith("over the ceiling: it would be refused")


def test_an_account_with_training_that_promised_nothing_says_so_first_and_what_the_rest_cost(ledger):
    without = Ledger(ledger.path, anchor=ledger.anchor.path, site="A", ceiling=math.inf, delta=1e-4)
    without.reserve(Charge("brains", 1, "d" * 64, NO_NOISE))

    first, *others = tell_account(ledger)

    spent, one = (epsilon_of([ROUND] * rounds, delta=1e-4) for rounds in (2, 1))
    assert first == (
        f"site A: NO PROMISE HOLDS, 1 task(s) were trained without one; the others spent epsilon {spent:.3g}, "
        "at delta 0.0001"
    )
    assert others == [f"  lungs: {one:.3g} by itself", "  brains: no promise"]


@pytest.mark.parametrize(
    ("cohort", "patients", "said", "steps"),
    [
        (2000, 512, "sensible from about", "noisy steps for 2000"),
        (20, 4, "no number of patients makes sense", "no number of noisy steps makes sense of it for 20"),
    ],
)
def test_a_plan_says_the_noise_and_for_how_many_patients_and_steps_it_makes_sense(tiny, cohort, patients, said, steps):
    told = tiny("privacy=patient", f"privacy.cohort={cohort}", f"privacy.patients={patients}", "privacy.delta=5e-5")

    lines = tell_plan(told.privacy, Length(rounds=10, local_steps=20, critic_steps=1), num_parameters=100_000)

    assert lines[0] == "epsilon 8 at delta 5e-05 over 400 noisy steps"
    assert "times the clipping norm" in lines[1]
    assert said in lines[3]
    assert steps in lines[4]
