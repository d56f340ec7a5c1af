import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from fedgan.privacy.accounting import (
    Releases,
    epsilon_of,
    merged,
    noise_of_shared_draw,
    prv_epsilon,
    rdp_epsilon,
)

DELTA = 1e-5
HISTORIES = [
    [Releases(1.0, 0.02, 1000)],
    [Releases(0.7, 0.1, 30)],
    [Releases(2.0, 0.05, 1000)],
    [Releases(4.0, 0.5, 200)],
    [Releases(0.9, 0.02, 400), Releases(1.3, 0.02, 200)],
    [Releases(1.0, 0.05, 80), Releases(2.0, 0.01, 400)],
]


def losses_of(releases: Releases, grid: np.ndarray, *, removed: bool) -> np.ndarray:
    """Return the distribution of one release's privacy loss, rounded up to ``grid``: mass at each of its points."""
    scale = releases.noise
    edges = np.linspace(-40 * scale, 40 * scale + 1, 400_001)
    middle = (edges[1:] + edges[:-1]) / 2
    without = np.diff(ndtr(edges / scale))
    mixed = (1 - releases.rate) * without + releases.rate * np.diff(ndtr((edges - 1) / scale))
    loss = np.log1p(releases.rate * np.expm1((2 * middle - 1) / (2 * scale**2)))
    mass, loss = (mixed, loss) if removed else (without, -loss)
    at = np.clip(np.searchsorted(grid, loss), 0, len(grid) - 1)
    return np.bincount(at, weights=mass, minlength=len(grid))


def independent_epsilon(history: list[Releases], delta: float) -> float:
    """Compose discretised privacy losses by Fourier transform, for a patient removed and one added; the larger."""
    step, half = 5e-4, 1 << 17
    grid = step * np.arange(-half, half)
    worst = 0.0
    for removed in (True, False):
        spectrum, offset = np.ones(half + 1, complex), 0.0
        for releases in history:
            mass = losses_of(releases, grid, removed=removed)
            # rounding up adds half a step on average; taking it off again leaves an unbiased estimate
            spectrum *= np.fft.rfft(np.roll(mass, -half)) ** releases.count
            offset += releases.count * step / 2
        composed = np.roll(np.fft.irfft(spectrum, 2 * half), half).clip(0)
        loss = grid - offset

        def excess(epsilon: float, composed=composed, loss=loss) -> float:
            above = loss > epsilon
            return float((composed[above] * -np.expm1(epsilon - loss[above])).sum())

        low, high = 0.0, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if excess(middle) > delta else (low, middle)
        worst = max(worst, high)
    return worst


@pytest.mark.parametrize("history", HISTORIES)
def test_epsilon_is_that_of_an_independent_composition_of_losses(history):
    ours = epsilon_of(history, delta=DELTA)

    other = independent_epsilon(history, DELTA)
    assert ours == pytest.approx(other, rel=0.01, abs=0.02)
    assert rdp_epsilon(history, delta=DELTA) >= other


@pytest.mark.parametrize("history", HISTORIES)
def test_epsilon_is_that_of_googles_accountant(history):
    pytest.importorskip("dp_accounting", reason="dp-accounting is not installed: its figures are not compared")
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism  # noqa: PLC0415

    ours = epsilon_of(history, delta=DELTA)

    composed = None
    for each in history:
        losses = from_gaussian_mechanism(each.noise, sampling_prob=each.rate).self_compose(each.count)
        composed = losses if composed is None else composed.compose(losses)
    assert ours == pytest.approx(composed.get_epsilon_for_delta(DELTA), rel=0.01, abs=0.02)
    assert rdp_epsilon(history, delta=DELTA) >= composed.get_epsilon_for_delta(DELTA)


def test_without_sampling_epsilon_is_the_closed_form():
    noise, count = 3.0, 20  # together a Gaussian mechanism of mu = sqrt(count) / noise

    epsilon = epsilon_of([Releases(noise, 1.0, count)], delta=DELTA)

    mu = math.sqrt(count) / noise  # Balle and Wang 2018, arXiv:1805.06530, theorem 8
    delta = ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu)
    assert 0.9 * DELTA < delta <= DELTA


def test_two_releases_on_one_draw_cost_what_their_joint_gaussian_does():
    shared = epsilon_of([Releases(noise_of_shared_draw(1.0, 1.0), 0.02, 1000)], delta=DELTA)
    apart = epsilon_of([Releases(1.0, 0.02, 2000)], delta=DELTA)

    assert shared == pytest.approx(8.84, abs=0.02)
    assert apart == pytest.approx(5.62, abs=0.02)


def test_a_round_cost_counted_anew_each_time_is_far_less_than_what_is_spent():
    one_round = [Releases(1.0, 0.05, 20)]

    assert epsilon_of(one_round, delta=DELTA) == pytest.approx(1.99, abs=0.02)
    assert epsilon_of(one_round * 50, delta=DELTA) == pytest.approx(11.0, rel=0.01)


def test_where_numerical_composition_fails_the_other_bound_holds():
    no_noise_to_speak_of = [Releases(0.05, 0.5, 100)]

    assert prv_epsilon([Releases(1e-4, 0.5, 1)], delta=DELTA) is None
    assert epsilon_of(no_noise_to_speak_of, delta=DELTA) == rdp_epsilon(no_noise_to_speak_of, delta=DELTA)
    assert epsilon_of([Releases(0.0, 0.5, 1)], delta=DELTA) == math.inf


RELEASES = st.builds(
    Releases, noise=st.sampled_from([0.8, 1.0, 4.0]), rate=st.sampled_from([0.01, 0.1, 1.0]), count=st.integers(1, 50)
)


@settings(max_examples=10)
@given(history=st.lists(RELEASES, min_size=1, max_size=4), more=RELEASES)
def test_more_releases_never_cost_less(history, more):
    before = rdp_epsilon(merged(history), delta=DELTA)

    assert rdp_epsilon(merged([*history, more]), delta=DELTA) >= before > 0


@settings(max_examples=10)
@given(history=st.lists(RELEASES, max_size=4))
def test_merging_changes_no_cost(history):
    one_by_one = rdp_epsilon(history, delta=DELTA) if history else 0.0

    together = merged(history)

    assert sum(each.count for each in together) == sum(each.count for each in history)
    assert (rdp_epsilon(together, delta=DELTA) if together else 0.0) == pytest.approx(one_by_one)
