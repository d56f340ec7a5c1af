from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.errors import UpdateRejected
from fedgan.federated.aggregation import check, fedavg
from fedgan.records import GlobalModel, SiteUpdate

MODEL = GlobalModel(round=4, weights={"w": torch.tensor([1.0, 1.0])})


def update(site, delta=(0.0, 0.0), num_images=1, number=4, **tensors):
    return SiteUpdate(site, number, tensors or {"w": torch.tensor(delta)}, num_images, {})


def test_sites_count_in_proportion_to_their_images():
    after = fedavg(MODEL, [update("A", delta=(4.0, 0.0), num_images=1), update("B", num_images=3)])

    assert after.weights["w"].tolist() == [2.0, 1.0]
    assert after.round == 5


def test_the_model_that_was_asked_about_stays_as_it_is():
    fedavg(MODEL, [update("A", delta=(4.0, 0.0))])

    assert MODEL.weights["w"].tolist() == [1.0, 1.0]


@given(st.permutations(["A", "B", "C", "D"]))
def test_the_order_of_arrival_changes_nothing(order):
    deltas = {"A": (0.1, 0.7), "B": (1e8, -0.3), "C": (-1e8, 0.2), "D": (3e-7, 1.1)}

    after = fedavg(MODEL, [update(site, deltas[site], num_images=3) for site in order])

    assert torch.equal(after.weights["w"], fedavg(MODEL, [update(s, deltas[s], 3) for s in "ABCD"]).weights["w"])


@given(st.floats(-100, 100, width=32), st.integers(1, 5), st.integers(1, 5))
def test_equal_updates_average_to_themselves(value, first, second):
    after = fedavg(MODEL, [update("A", (value, 0.0), first), update("B", (value, 0.0), second)])

    assert after.weights["w"][0].item() == pytest.approx(1 + value, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (update("B", number=3), "site B answered for round 4 in round 5"),
        (update("B", num_images=0), "site B claims to have trained on no image"),
        (update("B", v=torch.zeros(2)), "site B sent tensors that differ"),
        (update("B", w=torch.zeros(3)), "site B sent tensors that differ"),
        (update("B", w=torch.zeros(2, dtype=torch.float64)), "site B sent tensors that differ"),
        (update("B", (float("nan"), 0.0)), "site B sent values that are not finite"),
        (update("B", (float("inf"), 0.0)), "site B sent values that are not finite"),
    ],
)
def test_an_update_that_cannot_be_averaged_is_refused_by_the_sites_name(wrong, words):
    with pytest.raises(UpdateRejected, match=words):
        check(MODEL, wrong)


@pytest.mark.parametrize(
    "metrics",
    [
        {"validation/pixel_ap": 1e9},
        {"validation/pixel_ap": float("nan")},
        {"loss/cycle": float("inf")},
        {"name/Jane Doe": 0.5},
        {"loss/Jane Doe": 0.5},
    ],
)
def test_metrics_that_are_no_bounded_figures_of_agreed_names_are_refused_without_repeating_them(metrics):
    with pytest.raises(UpdateRejected, match="no bounded figure of an agreed name") as refusal:
        check(MODEL, replace(update("A"), metrics=metrics))

    assert "Jane" not in str(refusal.value)
