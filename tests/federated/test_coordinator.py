import logging
from dataclasses import replace

import pytest
import torch

from fedgan.errors import QuorumNotMet
from fedgan.federated.aggregation import GanFedAvg
from fedgan.federated.coordinator import Plan, run_rounds, score_last
from fedgan.federated.tensors import Entry, Role, Side
from fedgan.records import GlobalModel, ScanCounts, SiteFailure, SiteUpdate, digest_of

UNTRAINED = GlobalModel(0, {"w": torch.zeros(1)})
AVERAGING = GanFedAvg({"w": Entry(Role.WEIGHT, Side.GENERATOR, "w")}, lambda counts: {"w": (counts.labelled,)})


class Recording:
    """Sites that always answer the same: how far each moves, or why not; and what some of them say besides."""

    def __init__(self, metrics=None, **moves):
        self.metrics = metrics or {}
        self.moves = moves
        self.tasks = []

    def ask(self, task):
        self.tasks.append(task)
        return [
            SiteFailure(site, task.model.round, move)
            if isinstance(move, str)
            else SiteUpdate(
                site,
                task.model.round,
                digest_of(task.model.weights),
                {"w": torch.tensor([move])},
                ScanCounts(1),
                self.metrics.get(site, {}),
            )
            for site, move in self.moves.items()
        ]


def run(sites, *, rounds=2, quorum=1, model=UNTRAINED, kept=None):
    kept = [] if kept is None else kept
    plan = Plan(rounds=rounds, local_steps=5, quorum=quorum, aggregation=AVERAGING)
    return run_rounds(model, sites, plan, keep=lambda model, answers, contribution: kept.append(model))


def test_rounds_add_up():
    kept = []

    model = run(Recording(A=1.0, B=3.0), kept=kept)

    assert model.weights["w"].tolist() == [4.0]
    assert [each.round for each in kept] == [1, 2]


def test_a_run_goes_on_from_the_round_it_is_given():
    sites = Recording(A=1.0)

    run(sites, rounds=5, model=GlobalModel(3, {"w": torch.zeros(1)}))

    assert [task.model.round for task in sites.tasks] == [3, 4]


def test_a_finished_run_asks_nobody():
    sites = Recording(A=1.0)

    run(sites, rounds=3, model=GlobalModel(3, {"w": torch.zeros(1)}))

    assert sites.tasks == []


def test_a_run_ends_before_the_round_that_nobody_needs():
    sites, kept = Recording(A=1.0), []
    plan = Plan(rounds=9, local_steps=5, quorum=1, aggregation=AVERAGING)

    model = run_rounds(
        UNTRAINED, sites, plan, keep=lambda model, *_: kept.append(model.round), enough=lambda: kept == [1, 2]
    )

    assert (model.round, kept, len(sites.tasks)) == (2, [1, 2], 2)


def test_a_round_goes_on_without_a_site_as_long_as_the_quorum_is_met():
    model = run(Recording(A=2.0, B="Diverged"), rounds=1)

    assert model.weights["w"].tolist() == [2.0]


def test_an_update_that_cannot_be_averaged_is_left_out_as_a_failure_of_its_site():
    model = run(Recording(A=2.0, B=float("nan")), rounds=1)

    assert model.weights["w"].tolist() == [2.0]


def test_too_few_updates_stop_the_run_with_each_sites_reason():
    kept = []

    with pytest.raises(
        QuorumNotMet, match=r"round 1: 1 of 3 sites trained, 2 are needed \(B: Diverged, C: CohortError"
    ):
        run(Recording(A=2.0, B="Diverged", C="CohortError"), quorum=2, kept=kept)

    assert kept == []


def test_a_site_that_the_rule_leaves_out_has_trained_and_is_named_with_the_reason():
    krum, kept = replace(AVERAGING, suspects=0.3), []
    plan = Plan(rounds=1, local_steps=5, quorum=3, aggregation=krum)

    model = run_rounds(UNTRAINED, Recording(A=1.0, B=1.0, C=4.0), plan, keep=lambda model, *told: kept.extend(told))

    answers, contribution = kept
    assert model.weights["w"].tolist() == [1.0]
    assert answers[2] == SiteFailure("C", 0, "Distant")
    assert contribution.shares.keys() == {"A", "B"}
    assert contribution.planned["C"] == {"w": pytest.approx(1 / 3)}


def test_the_last_model_is_scored_without_training():
    sites = Recording(A=1.0, B="Diverged")

    updates = score_last(UNTRAINED, sites)

    assert sites.tasks[0].local_steps == 0
    assert [update.site for update in updates] == ["A"]


def test_a_site_whose_last_scores_are_none_is_left_out_and_named(caplog):
    sites = Recording({"B": {"validation/pixel_ap": 7.0}}, A=1.0, B=1.0)

    with caplog.at_level(logging.ERROR):
        updates = score_last(UNTRAINED, sites)

    assert [update.site for update in updates] == ["A"]
    assert "site B sent a metric that is no bounded figure of an agreed name" in caplog.text
