import logging

import pytest
import torch

from fedgan.assembly import build_site, networks_for
from fedgan.errors import SettingsError
from fedgan.federated.compression import decode
from fedgan.federated.site import weights_of
from fedgan.federated.tensors import Side, entries
from fedgan.records import GlobalModel, RoundTask, SiteFailure, digest_of
from fedgan.simulation import load_cohorts


@pytest.fixture
def site_of(tiny):
    def build(*overrides, name="A", memory=None):
        settings = tiny(*overrides)
        return build_site(settings, name, load_cohorts(settings)[name], networks_for(settings), memory=memory)

    return build


def untrained(site):
    return GlobalModel(0, weights_of(site.networks))


def test_an_update_is_weights_after_minus_weights_before(site_of):
    site = site_of()
    model = untrained(site)

    update = site.answer(RoundTask(model, local_steps=2))

    after = weights_of(site.networks)
    assert update.digest == digest_of(model.weights)
    assert all(torch.equal(delta, after[name] - model.weights[name]) for name, delta in update.delta.items())
    assert all(torch.equal(after[name], model.weights[name]) for name in model.weights.keys() - update.delta.keys())
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


def spoils_the_critics(site, value):
    """Let the last step of every round leave ``value`` in a critic, which no loss sees any more."""

    def on_step(step, losses):
        if step == 2:
            with torch.no_grad():
                site.networks.state_dict()["normal_discriminator.layers.0.weight"].flatten()[0] = value

    site.on_step = on_step


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "overrides", [[], ["compress=fp16"], ["compress=int8"], ["aggregation.share=generator"]], ids="-".join
)
def test_a_round_whose_last_step_diverges_neither_leaves_the_site_nor_stays_in_its_memory(
    site_of, tmp_path, overrides, value
):
    site = remembering(site_of, tmp_path, "rounds=9", "aggregation.moments=both", *overrides)
    model = untrained(site)
    site.answer(RoundTask(model, local_steps=2))
    healthy = site.on_step
    spoils_the_critics(site, value)

    spoilt = site.answer(RoundTask(GlobalModel(1, model.weights), local_steps=2))
    site.on_step = healthy
    after = site.answer(RoundTask(GlobalModel(2, model.weights), local_steps=2))

    assert spoilt == SiteFailure("A", 1, "Diverged")
    assert site.memory.recall(2)[0] == 1
    assert all(bool(tensor.isfinite().all()) for tensor in after.delta.values())


def remembering(site_of, tmp_path, *overrides):
    return site_of(*overrides, memory=tmp_path / "memory")


def test_what_is_not_shared_stays_with_the_site_and_goes_on_from_there(site_of, tmp_path):
    site = remembering(site_of, tmp_path, "aggregation.share=generator", "rounds=9")
    model, name = untrained(site), "normal_discriminator.layers.0.weight"

    first = site.answer(RoundTask(model, local_steps=2))
    own = weights_of(site.networks)[name]
    site.answer(RoundTask(GlobalModel(1, model.weights), local_steps=0))

    assert name not in first.delta
    assert not torch.equal(own, model.weights[name])
    assert torch.equal(weights_of(site.networks)[name], own)


def test_a_network_that_is_averaged_every_second_round_is_sent_with_the_steps_of_both(site_of, tmp_path):
    site = remembering(site_of, tmp_path, "aggregation.discriminator_every=4", "rounds=9")
    model, name = untrained(site), "classifier.out.weight"

    first = site.answer(RoundTask(model, local_steps=2))
    second = site.answer(RoundTask(GlobalModel(1, model.weights), local_steps=2))

    assert name not in first.delta
    assert torch.equal(second.delta[name], weights_of(site.networks)[name] - model.weights[name])


def test_a_private_site_goes_on_with_the_spectral_norm_vectors_of_its_own_weights(site_of, tmp_path):
    private = ("privacy=site", "model.spectral_norm=true", "aggregation.discriminator_every=4", "rounds=9")
    site = remembering(site_of, tmp_path, *private)
    model = untrained(site)
    vectors = [name for name, entry in entries(site.networks).items() if entry.side is Side.CRITIC and entry.normalises]

    first = site.answer(RoundTask(model, local_steps=2))
    own = weights_of(site.networks)
    site.answer(RoundTask(GlobalModel(1, model.weights), local_steps=0))

    now = weights_of(site.networks)
    assert vectors
    assert first.delta.keys().isdisjoint(vectors)
    assert all(torch.equal(now[name], own[name]) for name in vectors)
    assert not all(torch.equal(now[name], model.weights[name]) for name in vectors)


@pytest.mark.parametrize(
    "overrides", [["aggregation.moments=second"], ["aggregation.moments=both"], ["aggregation.discriminator_every=4"]]
)
def test_a_round_that_is_asked_for_again_is_answered_alike(site_of, tmp_path, overrides):
    site = remembering(site_of, tmp_path, "rounds=9", *overrides)
    model = untrained(site)
    site.answer(RoundTask(model, local_steps=2))
    again = RoundTask(GlobalModel(1, model.weights), local_steps=2)

    first, second = site.answer(again), site.answer(again)

    assert all(torch.equal(first.delta[name], second.delta[name]) for name in first.delta)


def test_moments_that_are_kept_change_the_next_round_alone(site_of, tmp_path):
    forgetful, keeping = site_of("rounds=9"), remembering(site_of, tmp_path, "aggregation.moments=second", "rounds=9")
    model = untrained(forgetful)

    first, same = (site.answer(RoundTask(model, local_steps=2)) for site in (forgetful, keeping))
    second, other = (site.answer(RoundTask(GlobalModel(1, model.weights), 2)) for site in (forgetful, keeping))

    name = "forward_generator.out.weight"
    assert torch.equal(first.delta[name], same.delta[name])
    assert not torch.equal(second.delta[name], other.delta[name])


def test_a_strong_pull_keeps_a_site_near_what_it_was_sent(site_of):
    free, held = site_of("local_steps=8"), site_of("local_steps=8", "aggregation.generator_prox=1000")
    model = untrained(free)

    far, near = (site.answer(RoundTask(model, local_steps=8)) for site in (free, held))

    moved = {name for name in far.delta if name.startswith("forward_generator")}
    lengths = [sum(update.delta[name].square().sum().item() for name in moved) for update in (far, near)]
    assert lengths[1] < lengths[0] / 2


def test_a_network_to_share_that_is_not_there_is_refused_by_name(site_of):
    with pytest.raises(SettingsError, match="unknown network judge; there are forward_generator"):
        site_of("aggregation.share=[judge,classifier]")
    with pytest.raises(SettingsError, match="also name forward_average, forward_generator, or give"):
        site_of("aggregation.share=[classifier]")


def test_what_eight_bits_lose_in_a_round_is_sent_in_the_next(site_of, tmp_path):
    exact, coarse = site_of("rounds=9"), remembering(site_of, tmp_path, "compress=int8", "rounds=9")
    model, name = untrained(exact), "forward_generator.out.weight"

    true, first = (site.answer(RoundTask(model, local_steps=2)) for site in (exact, coarse))

    lost = true.delta[name] - decode(first.delta)[name]
    _, kept = coarse.memory.recall(1)
    assert first.delta[name].dtype == torch.int8
    assert 0 < lost.abs().max() < 0.01 * true.delta[name].abs().max()
    assert torch.allclose(kept[f"residual/{name}"], lost, atol=1e-8)


def test_what_eight_bits_lose_waits_for_the_next_round_in_which_its_network_is_sent(site_of, tmp_path):
    site = remembering(site_of, tmp_path, "rounds=9", "compress=int8", "aggregation.discriminator_every=4")
    model, name = untrained(site), "residual/classifier.out.weight"

    for number in range(3):
        site.answer(RoundTask(GlobalModel(number, model.weights), local_steps=2))

    (_, sent), (_, waits) = site.memory.recall(2), site.memory.recall(3)
    assert sent[name].abs().max() > 0
    assert torch.equal(waits[name], sent[name])
