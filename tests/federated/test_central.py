"""What central differential privacy rests on: one site's bound, whoever else answers and whatever it sends."""

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.assembly import aggregation_in, networks_for, sharing_in
from fedgan.errors import ModelError, NotFinite, SettingsError
from fedgan.federated.build import follows
from fedgan.federated.central import NoisyFedAvg, releases_of
from fedgan.federated.server_step import Adaptive, Momentum
from fedgan.federated.sharing import Sharing
from fedgan.federated.site import weights_of
from fedgan.federated.tensors import Entry, Role, Side, entries
from fedgan.privacy.central import SiteAccount, SiteNoise
from fedgan.privacy.ledger import Ledger
from fedgan.records import GlobalModel, ScanCounts, SiteFailure, SiteUpdate, digest_of

ENTRIES = {
    "g": Entry(Role.WEIGHT, Side.GENERATOR, "generator"),
    "a": Entry(Role.AVERAGE, Side.GENERATOR, "average"),
    "c": Entry(Role.WEIGHT, Side.CRITIC, "critic", by_disease=True),
    "b": Entry(Role.AFFINE, Side.CRITIC, "critic"),
}
CLIPS = {"generator": 1.0, "critic": 0.5}
MODEL = GlobalModel(0, {"g": torch.zeros(3), "a": torch.zeros(3), "c": torch.zeros(2, 2), "b": torch.zeros(1)})
VALUES = st.floats(-1e3, 1e3, width=32)
DELTAS = st.tuples(*(st.lists(VALUES, min_size=size, max_size=size) for size in (3, 4, 1)))


@pytest.fixture
def noisy(tmp_path):
    def build(noise=0.0, weights=None, **terms):
        ledger = Ledger(tmp_path / "ledger", anchor=tmp_path / "anchor", site=None, ceiling=math.inf, delta=1e-3)
        return rule(ledger, noise, weights, **terms)

    return build


def rule(ledger, noise=0.0, weights=None, **terms):
    account = SiteAccount(ledger, "lungs", SiteNoise(noise, CLIPS, sites=3, weights=weights or {}))
    sharing = Sharing(4, {"g": 1, "c": 1, "b": 1})
    return NoisyFedAvg(ENTRIES, {"a": "g"}, sharing, account, **terms)


def update(site, generator, critic=(0.0,) * 4, bias=(0.0,), *, normal=1, round=0):
    delta = {"g": torch.tensor(generator), "c": torch.tensor(critic).view(2, 2), "b": torch.tensor(bias)}
    return SiteUpdate(site, round, digest_of(MODEL.weights), delta, ScanCounts(normal, 1, 0, (1, 0)), {})


def moved(aggregation, updates):
    after, _ = aggregation.aggregate(MODEL, updates)
    return after.weights


def length(weights, *names):
    return math.sqrt(sum(float(weights[name].double().square().sum()) for name in names))


@settings(max_examples=25)
@given(
    sites=st.dictionaries(st.sampled_from("ABCD"), DELTAS, min_size=2),
    weights=st.dictionaries(st.sampled_from("AB"), st.floats(1, 9)),
)
def test_no_site_moves_the_model_by_more_than_the_sensitivity_whoever_else_answers(sites, weights):
    updates = [update(site, *delta) for site, delta in sites.items()]
    with TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ledger", anchor=Path(folder) / "a", site=None, ceiling=math.inf, delta=1e-3)
        aggregation = rule(ledger, weights=weights)  # noise 0, to see what it has to hide
        noise = aggregation.account.noise

        of_all = moved(aggregation, updates)
        without = {left.site: moved(aggregation, [each for each in updates if each is not left]) for left in updates}

    for weights_without in without.values():
        step = {name: of_all[name] - weights_without[name] for name in of_all}
        assert length(step, "g") <= noise.sensitivity_of("generator") * (1 + 1e-5)
        assert length(step, "c", "b") <= noise.sensitivity_of("critic") * (1 + 1e-5)


@pytest.mark.parametrize("scans", [1, 10**6])
def test_neither_scan_counts_nor_diseases_nor_other_sites_change_what_a_site_counts(noisy, scans):
    updates = [update("A", [0.3, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0], normal=scans), update("B", [0.0] * 3)]

    alone, beside = moved(noisy(), updates[:1]), moved(noisy(), updates)

    assert alone["g"].tolist() == beside["g"].tolist() == pytest.approx([0.1, 0.0, 0.0])
    assert alone["c"].tolist()[1] == beside["c"].tolist()[1] == pytest.approx([0.1, 0.0])


def test_a_site_that_sends_its_model_unchanged_counts_as_a_step_of_zero(noisy):
    assert moved(noisy(), [update("A", [0.0] * 3)])["g"].tolist() == [0.0, 0.0, 0.0]


def test_a_step_is_shortened_over_all_tensors_of_a_player_and_keeps_its_direction(noisy):
    after = moved(noisy(), [update("A", [30.0, 0.0, 40.0], [3.0, 0.0, 0.0, 0.0], [4.0])])

    assert after["g"].tolist() == pytest.approx([0.2, 0.0, 0.8 / 3])
    assert after["c"][0, 0].item() == pytest.approx(0.5 * 0.6 / 3)
    assert after["b"].item() == pytest.approx(0.5 * 0.8 / 3)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, 3e38])
def test_what_is_not_finite_is_refused_and_the_round_goes_on(noisy, wrong):
    aggregation, good = noisy(), update("B", [0.3, 0.0, 0.0])
    bad = update("A", [wrong] * 3)

    _, judged = aggregation.judge(MODEL, [bad, good])

    assert judged == [SiteFailure("A", 0, "NotFinite"), good]
    if not math.isfinite(wrong):
        with pytest.raises(NotFinite):
            aggregation.aggregate(MODEL, [bad, good])


def test_no_update_is_refused_for_what_others_sent(noisy):
    usual = [update(site, [0.1, 0.1, 0.1]) for site in "ABCD"]
    unlike = update("E", [-900.0, 900.0, 0.0])

    _, judged = noisy().judge(MODEL, [*usual, unlike])

    assert judged == [*usual, unlike]


def test_a_site_counts_once_whatever_is_said_in_its_name(noisy):
    one = update("A", [0.3, 0.0, 0.0])

    assert moved(noisy(), [one, one])["g"].tolist() == moved(noisy(), [one])["g"].tolist()


def test_the_moving_average_follows_the_noisy_weights_and_nothing_that_a_site_says(noisy):
    after = moved(noisy(2.0, average_decay=0.75), [update("A", [0.3, 0.0, 0.0])])

    assert after["a"].tolist() == pytest.approx((0.25 * after["g"]).tolist())


@pytest.mark.parametrize("move", [Momentum(1.0, 0.9), Adaptive(0.1, (0.9, 0.99), 1e-3)])
def test_a_server_optimizer_sees_the_noisy_step_alone(noisy, move):
    after, _ = noisy(2.0, move=move).aggregate(MODEL, [update("A", [0.0] * 3)])

    assert all(float(tensor.abs().max()) > 0 for name, tensor in after.memory.items() if name.startswith("momentum"))
    assert {name.partition("/")[0] for name in after.memory} == set(move.remembers)


def test_each_round_is_charged_for_each_player_before_its_noise_is_drawn(noisy):
    aggregation = noisy(3.0)

    first, told = aggregation.aggregate(MODEL, [update("A", [0.0] * 3)])
    again = replace(update("A", [0.0] * 3, round=1), digest="")
    _, later = aggregation.aggregate(first, [again])

    assert [line.steps for line in aggregation.account.ledger.lines()] == [2, 2]
    assert told.site_level.epsilon < later.site_level.epsilon == aggregation.account.ledger.spent()
    assert told.shares == {"A": {"generator": 1 / 3, "critic": 1 / 3}}


def test_a_run_releases_each_player_as_often_as_it_is_shared():
    assert releases_of(Sharing(5, {"g": 1, "c": 2, "b": 2}), ENTRIES) == 5 + 3


def test_of_a_real_model_only_trained_tensors_leave_a_site(tiny, tmp_path):
    told = tiny("privacy=site", "compress=int8", "model.ema_decay=0.9")
    networks = networks_for(told)
    aggregation = aggregation_in(told, networks, accounts=tmp_path)
    before, found = GlobalModel(0, weights_of(networks)), entries(networks)

    sent = sharing_in(told, networks).sent_after(0)

    assert {found[name].role for name in sent} <= {Role.WEIGHT, Role.AFFINE}
    assert aggregation.follows["forward_average.out.weight"] == "forward_generator.out.weight"
    assert set(aggregation.follows.values()) <= set(before.weights)


def test_running_statistics_are_refused():
    class WithStatistics:
        def averages(self):
            return {}

    with pytest.raises(ModelError, match="keep running statistics"):
        follows({"n": Entry(Role.STATISTIC, Side.CRITIC, "critic")}, WithStatistics())


def test_without_an_account_nothing_is_combined(tiny):
    told = tiny("privacy=site")

    with pytest.raises(SettingsError, match="it must begin one"):
        aggregation_in(told, networks_for(told))


@pytest.mark.parametrize(
    "wrong", ["aggregation=median", "aggregation=krum", "aggregation.clip=2.0", "aggregation=fedavg", "select=best"]
)
def test_what_lets_one_site_bear_on_another_is_refused(tiny, wrong):
    with pytest.raises(SettingsError, match="privacy=site needs"):
        tiny("privacy=site", wrong)
