import logging
from dataclasses import replace

import pytest
import torch

from fedgan.errors import ForeignUpdate, NoImages, StaleUpdate, UnagreedMetric
from fedgan.federated.compression import encode
from fedgan.federated.screening import check, expected_of, judge
from fedgan.federated.tensors import Entry, Role, Side
from fedgan.records import GlobalModel, ScanCounts, SiteFailure, SiteUpdate, digest_of

MODEL = GlobalModel(4, {"w": torch.tensor([1.0, 1.0]), "c": torch.tensor([1.0])})
ENTRIES = {"w": Entry(Role.WEIGHT, Side.GENERATOR, "g"), "c": Entry(Role.WEIGHT, Side.CRITIC, "c")}
EXPECTED = expected_of(MODEL, MODEL.weights, {}, ENTRIES)


def update(site="B", w=(0.0, 0.0), c=(0.0,), **terms):
    delta = {"w": torch.tensor(w), "c": torch.tensor(c)}
    found = SiteUpdate(site, 4, digest_of(MODEL.weights), delta, ScanCounts(normal=1), {})
    return replace(found, **terms)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (update(round=3), StaleUpdate, "site B answered for round 4 in round 5"),
        (update(digest="0" * 64), StaleUpdate, "site B trained another model than the one that was sent"),
        (update(counts=ScanCounts(unlabelled=9)), NoImages, "site B claims to have trained on no image"),
        (update(counts=ScanCounts(normal=9, abnormal=-3)), NoImages, "site B claims to have trained on no image"),
        (update(delta={"v": torch.zeros(2)}), ForeignUpdate, "site B sent tensors that differ"),
        (update(w=(0.0, 0.0, 0.0)), ForeignUpdate, "site B sent tensors that differ"),
        (update(delta={"w": torch.zeros(2).double(), "c": torch.zeros(1)}), ForeignUpdate, "site B sent tensors"),
    ],
)
def test_an_update_that_cannot_be_combined_is_refused_by_the_sites_name(wrong, error, words):
    with pytest.raises(error, match=words):
        check(EXPECTED, wrong)


@pytest.mark.parametrize(
    "metrics",
    [
        {"validation/pixel_ap": 1e9},
        {"validation/pixel_ap": float("nan")},
        {"loss/cycle": float("inf")},
        {"privacy/epsilon": -1.0},
        {"privacy/patients": 12.0},
        {"traffic/elsewhere": 1.0},
        {"privacy/epsilon": float("nan")},
        {"name/Jane Doe": 0.5},
        {"loss/Jane Doe": 0.5},
    ],
)
def test_metrics_that_are_no_bounded_figures_of_agreed_names_are_refused_without_repeating_them(metrics):
    with pytest.raises(UnagreedMetric, match="no bounded figure of an agreed name") as refusal:
        check(EXPECTED, update(metrics=metrics))

    assert "Jane" not in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_not_finite_never_count(value):
    assert judge([update(w=(value, 1.0))], EXPECTED, ENTRIES, ratio=5) == [SiteFailure("B", 4, "NotFinite")]


def test_an_update_far_longer_than_the_others_is_refused_with_its_reason(caplog):
    honest = [update("A", w=(1.0, 0.0)), update("B", w=(0.0, 2.0))]

    with caplog.at_level(logging.ERROR):
        judged = judge([*honest, update("C", w=(0.0, 60.0))], EXPECTED, ENTRIES, ratio=5)

    assert judged == [*honest, SiteFailure("C", 4, "TooLarge")]
    assert "site C moved the generator more than 5 times as far as the median site" in caplog.text


def test_each_player_is_measured_by_its_own_median():
    honest = [update("A", w=(10.0, 0.0), c=(0.1,)), update("B", w=(10.0, 0.0), c=(0.1,))]

    judged = judge([*honest, update("C", w=(10.0, 0.0), c=(9.0,))], EXPECTED, ENTRIES, ratio=5)

    assert judged[2] == SiteFailure("C", 4, "TooLarge")


def test_sites_that_cannot_move_a_player_do_not_shrink_its_median():
    idle = [update(site, w=(1.0, 0.0)) for site in "ABC"]

    judged = judge([*idle, update("D", w=(1.0, 0.0), c=(0.1,))], EXPECTED, ENTRIES, ratio=5)

    assert isinstance(judged[3], SiteUpdate)


def test_of_two_updates_neither_is_refused_for_its_length():
    both = [update("A", w=(1.0, 0.0)), update("B", w=(99.0, 0.0))]

    assert judge(both, EXPECTED, ENTRIES, ratio=5) == both


def test_failures_stay_what_they_are():
    failure = SiteFailure("A", 4, "Diverged")

    assert judge([failure], EXPECTED, ENTRIES, ratio=5) == [failure]


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_an_update_in_fewer_bits_is_measured_as_what_it_means(kind):
    encodings = {"w": kind}
    honest = [
        update(site, delta=encode({"w": torch.tensor([scale, 0.0]), "c": torch.zeros(1)}, encodings))
        for site, scale in (("A", 1.0), ("B", 1.1), ("C", 60.0))
    ]

    judged = judge(honest, expected_of(MODEL, MODEL.weights, encodings, ENTRIES), ENTRIES, ratio=5)

    assert [isinstance(answer, SiteUpdate) for answer in judged] == [True, True, False]


def test_a_scale_that_is_not_finite_never_counts():
    wrong = encode({"w": torch.ones(2), "c": torch.zeros(1)}, {"w": "int8"}) | {"w/scale": torch.tensor([float("inf")])}

    judged = judge([update(delta=wrong)], expected_of(MODEL, MODEL.weights, {"w": "int8"}, ENTRIES), ENTRIES, ratio=5)

    assert judged == [SiteFailure("B", 4, "NotFinite")]


@pytest.mark.parametrize("by_disease", [(), (1,), (1, 1, 1), (3, 1)], ids=["none", "too few", "too many", "more scans"])
def test_counts_of_other_diseases_than_the_model_has_are_refused(by_disease):
    rows = {"w": replace(ENTRIES["w"], by_disease=True), "c": ENTRIES["c"]}
    counts = ScanCounts(normal=1, abnormal=2, by_disease=by_disease)

    with pytest.raises(NoImages, match="site B counts scans of other diseases"):
        check(expected_of(MODEL, MODEL.weights, {}, rows), update(counts=counts))


def test_a_moving_average_is_judged_apart_from_what_it_follows():
    entries = ENTRIES | {"c": Entry(Role.AVERAGE, Side.GENERATOR, "g_average")}
    liar = update("Z", w=(0.1, 0.1), c=(1e6,))
    honest = [update(site, w=(0.1, 0.1), c=(0.1,)) for site in "ABC"]

    judged = judge([*honest, liar], expected_of(MODEL, MODEL.weights, {}, entries), entries, ratio=5)

    assert judged[3] == SiteFailure("Z", 4, "TooLarge")
    assert judged[:3] == honest


def test_of_two_sites_that_move_a_player_one_that_moves_it_a_hundred_times_as_far_is_refused():
    updates = [update("A", w=(0.1, 0.1)), update("B", w=(0.1, 0.1), c=(0.1,)), update("C", w=(0.1, 0.1), c=(10.0,))]

    judged = judge(updates, EXPECTED, ENTRIES, ratio=5)

    assert judged == [*updates[:2], SiteFailure("C", 4, "TooLarge")]


@pytest.mark.parametrize("batches", [2**62, -(2**63), 2**40])
def test_a_counter_that_no_round_can_reach_is_refused(batches):
    model = GlobalModel(4, {"n": torch.tensor(3)})
    entries = {"n": Entry(Role.COUNTER, Side.GENERATOR, "g")}
    wrong = SiteUpdate("B", 4, model.digest, {"n": torch.tensor(batches)}, ScanCounts(normal=1), {})

    (judged,) = judge([wrong], expected_of(model, model.weights, {}, entries), entries, ratio=5)

    assert judged == SiteFailure("B", 4, "NotFinite")
