import math
import subprocess
import sys
import textwrap

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ndtr

from fedgan.errors import BudgetExhausted, SettingsError
from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.build import build_site_noise, coordinators_ledger
from fedgan.privacy.central import SiteAccount, SiteNoise
from fedgan.privacy.ledger import Ledger
from fedgan.records import GlobalModel
from fedgan.settings import SitePrivacy

CLIPS = {"generator": 2.0, "critic": 0.5}
DELTA = 1e-3


def settings(**terms):
    told = {"epsilon": 8.0, "delta": DELTA, "ceiling": None, "sites": 4, "weights": None, "select": "last"}
    return SitePrivacy(kind="site", **(told | {"generator_clip": 2.0, "discriminator_clip": 0.5} | terms))


def model(number):
    return GlobalModel(number, {"w": torch.full((2,), float(number))})


def gaussian_epsilon(mu, delta):
    """Return the epsilon of a Gaussian mechanism of that mu (Balle and Wang 2018, arXiv:1805.06530, theorem 8)."""

    def excess(epsilon):
        return ndtr(mu / 2 - epsilon / mu) - math.exp(epsilon) * ndtr(-mu / 2 - epsilon / mu) - delta

    return brentq(excess, 0.0, 200.0)


@pytest.fixture
def account(tmp_path):
    def opened(noise=3.0, **terms):
        ledger = coordinators_ledger(settings(**terms), tmp_path)
        return SiteAccount(ledger, "lungs", SiteNoise(noise, CLIPS, sites=4))

    return opened


@pytest.mark.parametrize("weights", [{}, {"A": 5.0}, {"A": 5.0, "B": 2.0, "C": 1.5, "D": 1.0}])
def test_the_noise_is_the_configured_multiple_of_what_one_site_can_do_however_unequal_they_are(weights):
    noise = SiteNoise(1.5, CLIPS, sites=4, weights=weights)

    drawn = noise.hide(torch.zeros(10**6, dtype=torch.float64), "generator")

    most = max(noise.share_of(site) for site in "ABCD") * CLIPS["generator"]
    assert drawn.std().item() == pytest.approx(1.5 * most, rel=0.01)
    assert abs(drawn.mean().item()) < 5 * 1.5 * most / 1000


@given(weights=st.dictionaries(st.sampled_from("ABCDEF"), st.floats(1, 50), max_size=6))
def test_the_shares_of_the_sites_that_are_expected_sum_to_one(weights):
    noise = SiteNoise(1.0, CLIPS, sites=6, weights=weights)

    assert sum(noise.share_of(site) for site in "ABCDEF") == pytest.approx(1.0)


def test_the_noise_cannot_be_replayed():
    noise, still = SiteNoise(1.0, CLIPS, sites=2), torch.zeros(100, dtype=torch.float64)
    torch.manual_seed(0)
    first = noise.hide(still, "critic")
    torch.manual_seed(0)

    second = noise.hide(still, "critic")

    assert not torch.equal(first, second)


@pytest.mark.parametrize(("noise", "rounds"), [(3.0, 10), (8.0, 50), (1.0, 3)])
def test_the_epsilon_is_that_of_one_gaussian_over_all_releases(account, noise, rounds):
    kept = account(noise)

    spent = [kept.reserve(model(number), players=2) for number in range(rounds)]

    assert spent[-1] == pytest.approx(gaussian_epsilon(math.sqrt(2 * rounds) / noise, DELTA), rel=0.01, abs=0.02)
    assert spent == sorted(spent)


@pytest.mark.parametrize("epsilon", [1.0, 8.0])
def test_the_noise_of_a_run_keeps_the_settings_epsilon_and_is_hardly_more_than_it_takes(epsilon):
    noise = build_site_noise(settings(epsilon=epsilon), releases=24)

    spent = gaussian_epsilon(math.sqrt(24) / noise.noise, DELTA)
    assert 0.97 * epsilon < spent <= epsilon


def test_the_account_goes_on_after_a_restart_and_over_runs(account):
    first = account().reserve(model(0), players=2)

    second = account().reserve(model(1), players=2)

    assert second > first
    assert second == epsilon_of([Releases(3.0, 1.0, 4)], delta=DELTA)
    assert [line.mechanism for line in account().ledger.lines()] == ["gaussian, one site"] * 2


def test_a_round_that_was_killed_stays_charged_and_is_charged_again(tmp_path):
    killed = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        import torch
        from fedgan.privacy.central import SiteAccount, SiteNoise
        from fedgan.privacy.ledger import Ledger
        from fedgan.privacy.ledger import Ledger
        from fedgan.records import GlobalModel

        folder = Path(sys.argv[1])
        ledger = Ledger(folder / "ledger", anchor=folder / "anchor", site=None, ceiling=9e9, delta=1e-3)
        SiteAccount(ledger, "lungs", SiteNoise(3.0, {}, sites=4)).reserve(GlobalModel(0, {"w": torch.zeros(2)}), 2)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    ledger = Ledger(tmp_path / "ledger", anchor=tmp_path / "anchor", site=None, ceiling=9e9, delta=DELTA)
    before = ledger.spent()
    after = SiteAccount(ledger, "lungs", SiteNoise(3.0, {}, sites=4)).reserve(model(0), 2)

    assert ended.returncode == -9
    assert 0 < before < after == pytest.approx(gaussian_epsilon(2 / 3, DELTA), rel=0.01, abs=0.02)


def test_beyond_the_ceiling_nothing_is_charged_and_the_coordinator_is_told(account):
    first = account().reserve(model(0), players=2)
    kept = account(ceiling=1.01 * first)

    with pytest.raises(BudgetExhausted, match="a larger ceiling"):
        kept.reserve(model(1), players=2)

    assert not kept.affords(players=2)
    assert kept.ledger.spent() == first


def test_an_epsilon_that_no_noise_keeps_is_refused():
    with pytest.raises(SettingsError, match="give a larger epsilon"):
        build_site_noise(settings(epsilon=1e-4), releases=10**4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"delta": 0.1}, "no promise to each of 4 sites"),
        ({"sites": 1, "weights": {"A": 2.0, "B": 2.0}}, "1 are expected"),
        ({"weights": {"A": 0.5}}, "greater than or equal to 1"),
    ],
)
def test_what_would_be_no_promise_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        settings(**wrong)
