import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.build import build_networks
from fedgan.gan.disease_map import Drawing, draw_maps
from fedgan.gan.taggan import ask_for
from fedgan.gan.training import gan_step, players_for
from fedgan.records import Batch

CPU = torch.device("cpu")


def networks_of(settings):
    return build_networks(settings.model, num_diseases=2, seed=0, device=CPU)


def batch_of(abnormal: int, normal: int, unlabelled: int = 0, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    scans = torch.rand(abnormal + normal + unlabelled, 1, 32, 32, generator=rng) * 2 - 1
    ill, well, unknown = scans.split([abnormal, normal, unlabelled])
    return Batch(ill, well, torch.eye(2)[torch.arange(abnormal) % 2], unknown)


def step(networks, batch, seed=0):
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=False)
    return gan_step(networks, players, [batch], torch.Generator().manual_seed(seed))


def test_the_difference_has_the_size_of_the_scan_and_lies_in_minus_1_to_1(tiny):
    difference = networks_of(tiny()).difference(batch_of(3, 0).abnormal, torch.ones(3, 2))

    assert difference.shape == (3, 1, 32, 32)
    assert difference.abs().max() <= 1


def test_changing_the_label_changes_the_map(tiny):
    networks, scans = networks_of(tiny()), batch_of(2, 0).abnormal

    first, second = (networks.difference(scans, torch.tensor([label] * 2)) for label in ([1.0, 0.0], [0.0, 1.0]))

    assert (first - second).abs().amax() > 1e-3


def test_a_scans_map_does_not_depend_on_the_scans_beside_it(tiny):
    networks, scans = networks_of(tiny()), batch_of(5, 0).abnormal

    together = draw_maps(networks, scans, torch.ones(5, 2), drawing=Drawing(smoothing=1.0)).evidence
    alone = draw_maps(networks, scans[2:3], torch.ones(1, 2), drawing=Drawing(smoothing=1.0)).evidence

    assert torch.allclose(together[2:3], alone, atol=1e-6)


def test_the_counterpart_is_the_scan_minus_the_difference(tiny):
    networks, batch = networks_of(tiny()), batch_of(3, 2)

    scene = networks.imagine(batch, torch.Generator())

    assert torch.equal(scene.counterpart, batch.abnormal - scene.difference)


def test_a_scan_is_always_asked_for_its_own_disease(tiny):
    networks, batch = networks_of(tiny()), batch_of(24, 1)

    scene = networks.imagine(batch, torch.Generator().manual_seed(3))

    assert bool((scene.asked >= batch.diseases).all())
    assert not bool(scene.asked.all())


@pytest.mark.parametrize("game", ["lsgan", "hinge", "wgan_gp"])
def test_each_game_trains_both_players(tiny, game):
    networks = networks_of(tiny(f"model.adversarial={game}", "model.weights.adversarial=1", "model.weights.cycle=1"))
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}

    step(networks, batch_of(2, 2))

    moved = {
        name.partition(".")[0] for name, after in networks.state_dict().items() if not torch.equal(after, before[name])
    }
    assert moved == {name for name, _ in networks.named_children()}


def test_terms_of_weight_0_are_not_computed(tiny):
    names = ("adversarial", "cycle", "identity", "sparsity", "classifier", "attention")
    every = [f"model.weights.{name}=0" for name in names]

    losses = step(networks_of(tiny(*every)), batch_of(2, 2))

    assert list(losses) == ["restoration"]


def test_a_site_of_normal_scans_trains_what_normal_scans_can_teach_and_no_critic(tiny):
    losses = step(networks_of(tiny("model.weights.cycle=1")), batch_of(0, 3))

    assert set(losses) == {"identity", "restoration", "attention", "cycle_normal", "adversarial_abnormal"}


def test_a_site_of_abnormal_scans_trains_against_the_critics_of_others(tiny):
    losses = step(networks_of(tiny("model.weights.cycle=1")), batch_of(3, 0))

    assert not [name for name in losses if name.startswith("critic")]
    assert {"sparsity", "classifier", "adversarial_normal", "cycle_abnormal"} <= set(losses)


def test_an_unlabelled_scan_is_healed_of_everything_and_never_shown_to_the_classifier_as_either(tiny):
    networks, batch = networks_of(tiny()), batch_of(2, 3, unlabelled=4)

    scene = networks.imagine(batch, torch.Generator().manual_seed(0))

    assert scene.counterpart.shape == (6, 1, 32, 32)
    assert scene.asked[2:].all()
    shown = []
    networks.classifier.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    networks.critic_terms(scene, torch.Generator())
    assert shown == [2 + 3]


@pytest.mark.parametrize("game", ["lsgan", "hinge", "wgan_gp"])
def test_a_site_of_unlabelled_and_normal_scans_trains_the_discriminator_and_no_classifier(tiny, game):
    losses = step(networks_of(tiny(f"model.adversarial={game}")), batch_of(0, 2, unlabelled=3))

    assert [name for name in losses if name.startswith("critic")] == ["critic_normal_discriminator"]
    assert {"sparsity", "classifier", "adversarial_normal", "identity", "restoration"} <= set(losses)


def test_attention_gates_the_difference(tiny):
    networks, scans = networks_of(tiny("model=tagsagan")), batch_of(2, 0).abnormal

    difference, where = networks.forward_generator.look(scans, torch.ones(2, 2))
    with torch.no_grad():
        networks.forward_generator.out.bias[networks.forward_generator.patch**2 :] = -100
    nowhere, _ = networks.forward_generator.look(scans, torch.ones(2, 2))

    assert where.shape == difference.shape == (2, 1, 32, 32)
    assert difference.abs().max() > 0 == nowhere.abs().max()


def test_attention_learns_where_pseudo_lesions_are(tiny):
    networks, batch = networks_of(tiny("model=tagsagan")), batch_of(0, 4)

    losses = [step(networks, batch, seed=0)["attention"] for _ in range(8)]

    assert losses[-1] < losses[0]


def test_the_average_moves_a_share_of_the_way_to_the_generator(tiny):
    networks = networks_of(tiny("model.ema_decay=0.75"))
    parameter, average = next(
        zip(networks.forward_generator.parameters(), networks.forward_average.parameters(), strict=True)
    )
    with torch.no_grad():
        parameter += 4

    before = average.clone()
    networks.follow()

    assert torch.allclose(average, before + 1)


def test_a_generators_step_leaves_the_critics_where_they_are(tiny):
    networks = networks_of(tiny())
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=False)
    scene = networks.imagine(batch_of(2, 2), torch.Generator())
    critics = [parameter.clone() for parameter in networks.critics()]

    terms = networks.generator_terms(scene, torch.Generator())
    torch.autograd.backward(sum(terms.values()), inputs=list(networks.generators()))
    players.generators.step()

    assert all(torch.equal(before, after) for before, after in zip(critics, networks.critics(), strict=True))


@given(st.integers(1, 4), st.integers(0, 1000))
def test_a_scan_is_asked_for_one_disease_or_for_all(kinds, seed):
    asked = ask_for(torch.zeros(20, kinds), torch.Generator().manual_seed(seed))

    assert set(asked.sum(dim=1).tolist()) <= {1.0, float(kinds)}
