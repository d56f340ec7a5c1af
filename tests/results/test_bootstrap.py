"""Patients are resampled alike for the same patients; an interval is only given where it means something."""

import numpy as np
import pytest

from fedgan.results.bootstrap import Bootstrap
from fedgan.results.scores import mean

BOOTSTRAP = Bootstrap(resamplings=2000, seed=3)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).random(200)
    sums = np.stack([values, np.ones(200)], axis=1)

    estimate = BOOTSTRAP.estimate(mean, sums)

    margin = 1.96 * values.std() / np.sqrt(200)
    assert estimate.value == pytest.approx(values.mean())
    assert estimate.low == pytest.approx(values.mean() - margin, abs=0.1 * margin)
    assert estimate.high == pytest.approx(values.mean() + margin, abs=0.1 * margin)


def test_a_patient_counts_by_its_scans():
    many_missed = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 6.0]])

    assert BOOTSTRAP.estimate(mean, many_missed).value == 0.25


def test_the_same_seed_draws_the_same_patients_and_another_seed_others():
    sums = np.random.default_rng(0).random((5, 2))

    figures = BOOTSTRAP.figures(mean, sums)

    assert np.array_equal(figures, BOOTSTRAP.figures(mean, sums))
    assert not np.array_equal(figures, Bootstrap(resamplings=2000, seed=4).figures(mean, sums))


def test_each_resampling_draws_as_many_patients_as_there_are():
    numbers = BOOTSTRAP.figures(lambda sums: sums[..., 0], np.ones((7, 1)))

    assert (numbers == 7).all()


@pytest.mark.parametrize(("patients", "resamplings"), [(2, 100), (5, 0)])
def test_there_is_no_interval_for_two_patients_or_without_resampling(patients, resamplings):
    estimate = Bootstrap(resamplings, seed=0).estimate(mean, np.ones((patients, 2)))

    assert (estimate.value, estimate.low, estimate.high) == (1.0, None, None)


def test_there_is_no_estimate_where_there_is_no_figure():
    assert BOOTSTRAP.estimate(mean, np.zeros((4, 2))) is None
    assert BOOTSTRAP.estimate(mean, None) is None


def test_resamplings_without_a_figure_are_left_out():
    only_one_counts = np.array([[0.5, 1.0], [0.0, 0.0], [0.0, 0.0]])

    figures = BOOTSTRAP.figures(mean, only_one_counts)

    assert len(figures) == pytest.approx(2000 * (1 - (2 / 3) ** 3), rel=0.05)
    assert (figures == 0.5).all()
