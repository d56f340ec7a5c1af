import logging

import pytest
import torch

from fedgan.federated.site import weights_of
from fedgan.records import GlobalModel, RoundTask, SiteFailure, digest_of
from fedgan.simulation import build_site, load_cohorts, networks_for


@pytest.fixture
def site_of(tiny):
    def build(*overrides, name="A"):
        settings = tiny(*overrides)
        return build_site(settings, name, load_cohorts(settings)[name], networks_for(settings))

    return build


def untrained(site):
    return GlobalModel(0, weights_of(site.networks))


def test_an_update_is_weights_after_minus_weights_before(site_of):
    site = site_of()
    model = untrained(site)

    update = site.answer(RoundTask(model, local_steps=2))

    after = weights_of(site.networks)
    assert update.digest == digest_of(model.weights)
    assert all(torch.equal(update.delta[name], after[name] - model.weights[name]) for name in model.weights)
    assert any(delta.abs().max() > 0 for delta in update.delta.values())


def test_what_a_site_answers_depends_on_the_task_alone(site_of):
    site, other = site_of(), site_of(name="B")
    task = RoundTask(untrained(site), local_steps=2)

    first = site.answer(task)
    other.answer(task)
    second = site.answer(task)

    assert all(torch.equal(first.delta[name], second.delta[name]) for name in first.delta)


def test_a_task_without_steps_is_scored_and_sends_no_delta(site_of):
    site = site_of()

    update = site.answer(RoundTask(untrained(site), local_steps=0))

    assert update.delta == {}
    assert set(update.metrics) == {"validation/pixel_ap", "validation/image_auroc", "validation/aucp"}


def test_an_update_counts_the_training_scans(site_of):
    site = site_of()

    update = site.answer(RoundTask(untrained(site), local_steps=1))

    train = site.train_cohort
    assert update.counts.labelled == len(train)
    assert update.counts.by_disease == tuple(int(train.diseases[:, kind].sum()) for kind in range(2))


def test_divergence_leaves_the_site_as_a_name_and_stays_in_its_log_in_words(site_of, caplog):
    site = site_of("model.learning_rate=1e30")

    with caplog.at_level(logging.ERROR):
        answer = site.answer(RoundTask(untrained(site), local_steps=5))

    assert answer == SiteFailure("A", 0, "Diverged")
    assert "the coordinator must start a run with a lower learning rate" in caplog.text
