import pytest

from fedgan.errors import SettingsError
from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.plan import Draws, fewest_releases, noise_for, noise_to_signal, smallest_cohort


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_keeps_the_wanted_epsilon_and_is_hardly_more_than_it_takes(epsilon):
    draws = Draws(cohort=1000, patients=64, releases=400)

    noise = noise_for(epsilon, delta=1e-4, draws=draws)

    spent = epsilon_of([Releases(noise, draws.rate, draws.releases)], delta=1e-4)
    assert 0.97 * epsilon < spent <= epsilon


def test_a_small_epsilon_is_kept_with_much_noise():
    draws = Draws(cohort=1000, patients=64, releases=400)

    noise = noise_for(0.1, delta=1e-5, draws=draws)

    assert epsilon_of([Releases(noise, draws.rate, draws.releases)], delta=1e-5) <= 0.1


def test_an_epsilon_that_no_noise_keeps_is_refused():
    with pytest.raises(SettingsError, match="give a larger epsilon, or fewer rounds and steps"):
        noise_for(0.001, delta=1e-6, draws=Draws(10, 10, 1000))


def test_the_smallest_cohort_is_where_noise_and_signal_meet():
    found = smallest_cohort(3.0, patients=64, releases=500, num_parameters=100_000)

    for cohort, sensible in ((found, True), (round(found / 1.5), False)):
        draws = Draws(cohort, 64, 500)
        noise = noise_for(3.0, delta=1 / (10 * cohort), draws=draws)
        assert (noise_to_signal(noise, draws=draws, num_parameters=100_000) <= 1) is sensible


def test_the_fewest_releases_are_where_noise_and_signal_meet():
    told = {"delta": 1e-4, "cohort": 1000, "patients": 100, "num_parameters": 100_000}

    found = fewest_releases(3.0, **told)

    for releases, sensible in ((found, True), (found // 2, False)):
        draws = Draws(1000, 100, releases)
        noise = noise_for(3.0, delta=1e-4, draws=draws)
        assert (noise_to_signal(noise, draws=draws, num_parameters=100_000) <= 1) is sensible
    assert fewest_releases(1.0, **told) is None
    assert fewest_releases(100.0, **told) == 1


def test_no_cohort_makes_sense_of_small_draws_for_a_large_network():
    assert smallest_cohort(1.0, patients=4, releases=20, num_parameters=10_000_000) is None
