import math
import random
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.cohort.batches import batch_of_patient, patients_of
from fedgan.gan.build import build_networks
from fedgan.gan.training import players_for
from fedgan.privacy.chance import secret_normal, secret_stream, secret_uniform
from fedgan.privacy.dp_sgd import Mechanism, clipped, drawn, noisy_sum, release, train_privately
from fedgan.records import Batch
from fedgan.simulation import load_cohorts

CPU = torch.device("cpu")


def scans(count, seed, size=32):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def patient(abnormal, normal, unlabelled, seed, size=32):
    diseases = torch.eye(2)[:abnormal]
    return Batch(
        scans(abnormal, seed, size), scans(normal, seed + 1, size), diseases, scans(unlabelled, seed + 2, size)
    )


def networks_of(settings):
    return build_networks(settings.model, num_diseases=2, seed=0, device=CPU, one_patient=True)


def players_of(networks):
    return players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=False)


@given(
    values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=1, max_size=20),
    clip=st.floats(2.0**-10, 2.0**10, width=32),
)
def test_no_gradient_is_longer_than_it_is_clipped_to_and_none_changes_its_direction(values, clip):
    gradient = torch.tensor(values)

    short = clipped(gradient, clip)

    assert torch.linalg.vector_norm(short, dtype=torch.float64) <= clip
    if torch.linalg.vector_norm(gradient, dtype=torch.float64) <= 0.999 * clip:
        assert torch.equal(short, gradient.double())


@pytest.mark.parametrize("longest", [1e20, 1e38])
def test_a_gradient_of_huge_finite_numbers_is_clipped_like_any_other(longest):
    gradient = torch.linspace(-1, 1, 1000) * longest

    short = clipped(gradient, 1e-5)

    assert torch.linalg.vector_norm(short).item() == pytest.approx(1e-5, rel=1e-5)
    assert torch.cosine_similarity(short, gradient.double(), dim=0).item() == pytest.approx(1)


def test_gradients_are_added_before_they_are_rounded():
    moved = [torch.nn.Parameter(torch.zeros(1))]
    gradients = [torch.tensor([[1.0], *[[2.0**-25]] * 8])]  # each too small to change a 1 in float32

    total = noisy_sum(gradients, moved, Mechanism(noise=0.0, clip=4.0, rate=1.0, patients=1))

    assert total.item() == 1 + 2.0**-22


def test_a_gradient_that_is_not_finite_counts_as_zero():
    moved = [torch.nn.Parameter(torch.zeros(3))]
    broken, sound = torch.tensor([math.inf, 1.0, math.nan]), torch.tensor([0.0, 2.0, 0.0])

    total = noisy_sum([broken, sound], moved, Mechanism(noise=0.0, clip=1.0, rate=1.0, patients=1))

    assert torch.allclose(total, torch.tensor([0.0, 1.0, 0.0]), atol=1e-5)


def test_the_noise_has_the_standard_deviation_that_is_accounted_for():
    moved = [torch.nn.Parameter(torch.zeros(1_000_000))]

    noise = noisy_sum([], moved, Mechanism(noise=1.3, clip=0.5, rate=0.1, patients=7))

    assert noise.std().item() == pytest.approx(1.3 * 0.5, rel=0.01)
    assert abs(noise.mean().item()) < 0.003
    share = (noise.abs() < 1.3 * 0.5).float().mean().item()
    assert share == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.002)


def test_sums_are_divided_by_a_constant_whoever_is_drawn():
    weight = torch.nn.Parameter(torch.zeros(1))
    descent = torch.optim.SGD([weight], lr=1.0)
    mechanism = Mechanism(noise=0.0, clip=1.0, rate=1.0, patients=10)

    release(descent, [weight], [torch.full((2, 1), -0.5), torch.full((1,), -0.5)], mechanism)

    assert weight.item() == pytest.approx(0.15)


def test_an_empty_draw_is_a_step_of_noise_alone():
    weight = torch.nn.Parameter(torch.zeros(100_000))
    descent = torch.optim.SGD([weight], lr=1.0)

    release(descent, [weight], [], Mechanism(noise=2.0, clip=1.0, rate=0.1, patients=4))

    assert weight.std().item() == pytest.approx(0.5, rel=0.02)


def test_each_patient_is_drawn_by_himself_with_the_same_probability():
    everyone = [lambda rng, index=index: index for index in range(50)]

    draws = [list(drawn(everyone, 0.2)) for _ in range(2000)]

    times = torch.bincount(torch.tensor([index for draw in draws for index in draw]), minlength=50) / 2000
    sizes = torch.tensor([float(len(draw)) for draw in draws])
    assert (times - 0.2).abs().max() < 5 * math.sqrt(0.16 / 2000)
    assert sizes.mean().item() == pytest.approx(10, abs=0.4)
    assert sizes.var().item() == pytest.approx(8, rel=0.2)  # 50 independent draws of 0.2, as of no fixed batch


@pytest.mark.parametrize("draw", [secret_normal, secret_uniform])
def test_no_seed_replays_the_chance_of_draws_and_noise(draw):
    torch.manual_seed(42)
    first = draw(1000)

    torch.manual_seed(42)

    assert not torch.equal(draw(1000), first)


def seed_everything():
    random.seed(42)
    np.random.seed(42)
    torch.manual_seed(42)


def seeded_noise(_tiny):
    moved = [torch.nn.Parameter(torch.zeros(1000))]
    return noisy_sum([], moved, Mechanism(noise=1.0, clip=1.0, rate=0.5, patients=1))


def seeded_draw(_tiny):
    return torch.tensor(list(drawn([lambda rng, index=index: index for index in range(200)], 0.5)))


def seeded_training(tiny, side):
    networks, _ = trained(tiny(), [], Mechanism(noise=1.0, clip=1.0, rate=0.5, patients=2), steps=1)
    return torch.cat([parameter.detach().flatten() for parameter in getattr(networks, side)()])


@pytest.mark.parametrize(
    "private",
    [
        seeded_noise,
        seeded_draw,
        partial(seeded_training, side="critics"),
        partial(seeded_training, side="generators"),
    ],
)
def test_no_seed_replays_a_draw_or_a_release(tiny, private):
    seed_everything()
    first = private(tiny)

    seed_everything()

    assert not torch.equal(private(tiny), first)


def test_every_release_of_either_player_has_a_draw_of_its_own(tiny, monkeypatch):
    networks, everyone = networks_of(tiny("model=taggan")), range(60)
    players, batch, draws = players_of(networks), patient(0, 1, 0, 3), [set()]

    def counted(step):
        step()
        draws.append(set())

    for optimizer in (players.critics, players.generators):  # PyTorch's own hooks may run twice for a derived optimizer
        monkeypatch.setattr(optimizer, "step", partial(counted, optimizer.step))

    def noted(rng, index):
        draws[-1].add(index)
        return batch

    mechanism = Mechanism(noise=1.0, clip=1.0, rate=0.5, patients=30, critic_steps=2)
    train_privately(networks, players, [partial(noted, index=index) for index in everyone], mechanism, steps=2)

    *releases, after = draws
    assert len(releases) == mechanism.releases(2).count
    assert not after
    for one, other in combinations(releases, 2):  # who is in both or in neither: 30 of 60, give or take 5 deviations
        assert abs(len(everyone) - len(one ^ other) - 30) < 5 * math.sqrt(60 / 4)


def test_a_patients_own_stream_is_new_each_time():
    assert len({secret_stream().initial_seed() for _ in range(100)}) == 100


def trained(settings, everyone, mechanism, *, steps=2):
    networks = networks_of(settings)
    players = players_of(networks)
    train_privately(networks, players, everyone, mechanism, steps=steps)
    return networks, players


def test_networks_that_no_term_trains_stay_where_they_are_and_all_others_move(tiny):
    settings = tiny("model=taggan")
    before = networks_of(settings).state_dict()

    networks, _ = trained(settings, [], Mechanism(noise=1.0, clip=1.0, rate=0.5, patients=2))

    moved = {
        name.partition(".")[0] for name, now in networks.state_dict().items() if not torch.equal(now, before[name])
    }
    assert moved == {"forward_generator", "forward_average", "normal_discriminator", "classifier"}


def test_a_local_step_is_the_number_of_releases_that_is_charged(tiny):
    mechanism = Mechanism(noise=1.0, clip=1.0, rate=0.5, patients=2, critic_steps=3)

    _, players = trained(tiny(), [], mechanism, steps=2)

    (critic,) = {int(state["step"]) for state in players.critics.state.values()}
    (generator,) = {int(state["step"]) for state in players.generators.state.values()}
    assert mechanism.releases(2).count == critic + generator == 8


def test_private_steps_are_computed_in_float32_whatever_the_players_arithmetic(tiny):
    networks = networks_of(tiny("model=taggan"))
    batch = patient(1, 1, 0, 3)
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=True)
    computed = []
    for layer in networks.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, seen, out: computed.append((out.dtype, torch.backends.cudnn.allow_tf32))
            )

    train_privately(networks, players, [lambda rng: batch], Mechanism(1.0, 1.0, 1.0, 1), steps=1)

    assert set(computed) == {(torch.float32, False)}
    assert torch.backends.cudnn.allow_tf32


def test_spectral_norm_vectors_do_not_tell_how_many_were_drawn(tiny):
    settings = tiny("model=taggan", "model.spectral_norm=true")
    unlike = [patient(*scans, 3) for scans in ((1, 1, 0), (1, 0, 0), (0, 1, 0), (1, 1, 1))]  # none are taken together
    still = Mechanism(noise=0.0, clip=1e-30, rate=1.0, patients=1)  # nothing is learned: the weights stay alike

    def vectors_after(count):
        networks, rng = networks_of(settings), torch.Generator().manual_seed(0)
        vectors = {name: found for name, found in networks.named_buffers() if name.endswith(("_u", "_v"))}
        for vector in vectors.values():  # far from where power iterations end, so that each shows
            vector.copy_(torch.nn.functional.normalize(torch.randn(vector.shape, generator=rng), dim=0))
        train_privately(
            networks, players_of(networks), [lambda rng, batch=batch: batch for batch in unlike[:count]], still, steps=2
        )
        assert networks.training
        return vectors

    few, many = vectors_after(1), vectors_after(4)

    assert few
    assert all(torch.equal(few[name], many[name]) for name in few)


def test_private_training_on_a_real_cohort_moves_both_players(tiny):
    settings = tiny("data.patients=40")
    cohort = load_cohorts(settings)["A"].split("train")
    everyone = [lambda rng, rows=rows: batch_of_patient(cohort, rows, rng=rng) for rows in patients_of(cohort)]
    before = networks_of(settings).state_dict()

    networks, _ = trained(settings, everyone, Mechanism(noise=0.5, clip=1.0, rate=0.3, patients=8))

    after = networks.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    for name in ("forward_generator.out.weight", "normal_discriminator.layers.0.weight", "classifier.out.weight"):
        assert not torch.equal(after[name], before[name])
