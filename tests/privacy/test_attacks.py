"""What an attacker can be said to have found: bounds that hold, guesses that are counted, scans that come back."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta
from torch import nn

from fedgan.cohort.phantoms import phantom_cohort
from fedgan.privacy.attacks import (
    MOST_TRIED,
    Guesses,
    best_guess,
    epsilon_at_least,
    guess,
    likelihood,
    losses_of,
    member_scores,
    most_shown,
    psnr,
    reconstruct,
    toss,
)
from fedgan.privacy.dp_sgd import Mechanism, noisy_sum

SOME = st.integers(1, 60).flatmap(lambda made: st.tuples(st.just(made), st.integers(0, made)))


@pytest.mark.parametrize(("made", "right"), [(20, 20), (100, 80), (500, 300)])
def test_without_delta_the_bound_is_that_of_a_binomials_rate(made, right):
    found = epsilon_at_least(Guesses(made, made, right), delta=0)

    rate = beta.ppf(0.05, right, made - right + 1)  # Clopper and Pearson 1934
    assert found == pytest.approx(math.log(rate / (1 - rate)), abs=1e-6)


def test_the_likelihood_of_three_guesses_is_what_one_finds_by_hand():
    found = likelihood(Guesses(4, 3, 2), epsilon=math.log(3), delta=0.01)

    # W of 3 guesses that are right with probability 3/4: P[0..3] = 1/64, 9/64, 27/64, 27/64
    assert found == pytest.approx(54 / 64 + 2 * 4 * 0.01 * max(9 / 64 / 1, 10 / 64 / 2))


@given(SOME, st.floats(0, 0.01))
def test_more_right_guesses_of_as_many_never_lower_the_bound(some, delta):
    made, right = some
    bounds = [epsilon_at_least(Guesses(60, made, each), delta=delta) for each in (right, min(made, right + 1))]

    assert bounds[0] <= bounds[1] + 1e-9


@given(SOME, st.floats(0, 0.01))
def test_a_larger_delta_never_raises_the_bound(some, delta):
    made, right = some

    assert epsilon_at_least(Guesses(60, made, right), delta=2 * delta) <= (
        epsilon_at_least(Guesses(60, made, right), delta=delta) + 1e-9
    )


def test_a_private_answer_is_convicted_of_more_than_it_costs_in_fewer_than_one_run_of_twenty():
    epsilon, runs, patients = 1.0, 400, 100
    rng = torch.Generator().manual_seed(0)
    wrong = 0

    for _ in range(runs):  # each patient's coin is told truly with the probability that epsilon allows, and no more
        kept = torch.rand(patients, generator=rng) < 0.5
        true = torch.rand(patients, generator=rng) < 1 / (1 + math.exp(-epsilon))
        scores = torch.where(kept == true, 1.0, -1.0) + 0.01 * torch.randn(patients, generator=rng)
        wrong += best_guess(scores, kept, delta=0)[1] > epsilon

    assert wrong <= 0.05 * runs + 3 * math.sqrt(runs * 0.05 * 0.95)


def test_blind_guesses_hardly_ever_bound_anything():
    rng = torch.Generator().manual_seed(1)

    bounds = [
        best_guess(torch.randn(80, generator=rng), torch.rand(80, generator=rng) < 0.5, delta=1e-3)[1]
        for _ in range(200)
    ]

    assert sum(bound > 0 for bound in bounds) <= 10 + 3 * math.sqrt(10)


def test_whoever_is_always_right_about_many_has_shown_much():
    kept = torch.arange(300) % 2 == 0

    found, bound = best_guess(kept.float() + torch.linspace(0, 0.1, 300), kept, delta=1e-4)

    assert found.made == found.right == 300
    assert bound > 3


@pytest.mark.parametrize(("patients", "shown"), [(0, 0.0), (1, 0.0), (71, 2.03), (500, 4.1)])
def test_the_most_that_can_be_shown_is_what_right_guesses_alone_give(patients, shown):
    delta = 1 / (10 * max(1, patients))

    assert most_shown(patients, delta=delta) == pytest.approx(shown, abs=0.05)


def test_nobody_is_guessed_about_where_there_is_nobody():
    assert best_guess(torch.zeros(0), torch.zeros(0, dtype=torch.bool), delta=1e-3) == (Guesses(0, 0, 0), 0.0)


def test_coins_are_fair_and_others_each_time_and_not_tossed_for_everybody():
    first, second = toss(3 * MOST_TRIED), toss(3 * MOST_TRIED)

    assert [coins.count(None) for coins in (first, second)] == [2 * MOST_TRIED] * 2
    assert abs(first.count(True) - MOST_TRIED / 2) < 5 * math.sqrt(MOST_TRIED) / 2
    assert first != second


def test_each_kind_of_patient_is_told_by_its_own_measure():
    before, after = torch.tensor([4.0, 4.0, 1.0, 1.0]), torch.tensor([1.0, 3.0, 0.9, 0.8])

    scores = member_scores(before, after, ["ill", "ill", "well", "well"])

    assert torch.allclose(scores, torch.tensor([1.0, -1.0, -1.0, 1.0]))
    assert guess(scores, torch.tensor([True, False, False, True]), 1.0).right == 4


class Critic(nn.Module):
    """Hardly more than linear: of its gradient, each pixel of the scan is a part."""

    def __init__(self, size):
        super().__init__()
        self.first = nn.Linear(size * size, 8)
        self.last = nn.Linear(8, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))

    def gradient(self, scan):
        loss = (self.last(torch.tanh(self.first(scan.flatten(1)))) - 1).square().mean()
        parts = torch.autograd.grad(loss, list(self.parameters()), create_graph=True)
        return torch.cat([part.reshape(-1) for part in parts])


def test_a_scan_comes_back_from_its_gradient_and_not_from_a_private_one():
    cohort = phantom_cohort("A", patients=6, images_per_patient=1, size=32, diseases=("diffuse",), seed=0)
    scan, critic = cohort.images[:1], Critic(32)
    seen = critic.gradient(scan).detach()
    private = noisy_sum([seen], list(critic.parameters()), Mechanism(noise=1.0, clip=0.1, rate=0.25, patients=25))

    plain, noised = (reconstruct(critic.gradient, each, scan) for each in (seen, private))

    assert psnr(scan, plain) > 25
    assert psnr(scan, noised) < 12


def test_losses_are_found_with_the_same_chance_for_every_patient():
    drawn = []

    class Game:
        def imagine(self, batch, rng, *, for_critics=False):
            return batch + float(torch.rand((), generator=rng))

        def critic_terms(self, scene, _rng):
            return {"loss": torch.tensor(scene)}

    def patient(rng):
        drawn.append(float(torch.rand((), generator=rng)))
        return 1.0

    losses = losses_of(Game(), [patient, patient])

    assert losses[0] == losses[1]
    assert len(set(drawn)) == len(drawn) / 2
