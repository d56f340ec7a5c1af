import math

import pytest
import torch

from fedgan.errors import Diverged
from fedgan.gan.build import build_networks, computes_in_bfloat16
from fedgan.gan.losses import restoration
from fedgan.gan.pseudo_lesions import Lesions, paste_pseudo_lesions
from fedgan.gan.training import descend, players_for, train
from fedgan.records import Batch

CPU = torch.device("cpu")


def scans(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batches(steps: int, device: torch.device = CPU) -> list[Batch]:
    return [Batch(scans(2, n), scans(2, 100 + n), torch.eye(2), scans(0, 0)).to(device) for n in range(steps)]


def trained(settings, *, steps=3, bfloat16=False, device=CPU):
    networks = build_networks(settings.model, num_diseases=2, seed=0, device=device)
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=bfloat16)
    seen = []
    losses = train(
        networks,
        players,
        batches(steps, device),
        rng=torch.Generator().manual_seed(0),
        on_step=lambda step, losses: seen.append(losses["restoration"]),
    )
    return networks, losses, seen


def test_the_same_stream_and_scans_give_the_same_weights(tiny):
    first, second = (trained(tiny())[0].state_dict() for _ in range(2))

    assert all(torch.equal(first[name], second[name]) for name in first)


def test_losses_are_means_over_the_steps(tiny):
    _, losses, seen = trained(tiny())

    assert losses["restoration"] == pytest.approx(sum(seen) / 3)


def test_restoring_pseudo_lesions_is_learned(tiny):
    axis = torch.linspace(-1, 1, 32)
    heads = torch.where(axis[:, None].square() + axis[None, :].square() < 0.6, 0.0, -1.0).expand(32, 1, 32, 32)
    pasted = paste_pseudo_lesions(heads, lesions=Lesions(0.5), rng=torch.Generator().manual_seed(1))
    networks = build_networks(tiny("model.width=8").model, num_diseases=1, seed=0, device=CPU)
    players = players_for(networks, learning_rate=2e-3, critic_learning_rate=1e-3, bfloat16=False)

    def missed() -> float:
        return restoration(networks.difference(pasted, torch.ones(32, 1)), pasted - heads).item()

    before = missed()
    train(
        networks,
        players,
        [Batch(heads[:0], heads[:4], torch.ones(0, 1), heads[:0])] * 60,
        rng=torch.Generator().manual_seed(0),
    )

    assert missed() < 0.85 * before


def test_mixed_precision_trains_weights_that_stay_float32(tiny):
    networks, losses, _ = trained(tiny(), bfloat16=True)

    assert {tensor.dtype for tensor in networks.state_dict().values()} == {torch.float32}
    assert all(math.isfinite(loss) for loss in losses.values())


def test_a_loss_that_is_not_finite_stops_with_the_terms_name():
    weight = torch.nn.Parameter(torch.ones(1))

    with pytest.raises(
        Diverged, match="the loss cycle became nan; the coordinator must start a run with a lower learning rate"
    ):
        descend(torch.optim.SGD([weight], lr=1), {"cycle": weight.sum() * float("nan")})

    assert weight.item() == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: CUDA and channels-last are not tried")
def test_a_gpu_trains_in_mixed_precision_and_channels_last(tiny):
    device = torch.device("cuda")

    networks, losses, _ = trained(tiny(), bfloat16=computes_in_bfloat16(device), device=device)

    assert {tensor.device.type for tensor in networks.state_dict().values()} == {"cuda"}
    assert all(math.isfinite(loss) for loss in losses.values())


def test_with_two_critic_steps_the_critics_move_twice_as_often_as_the_generators(tiny):
    networks = build_networks(tiny().model, num_diseases=2, seed=0, device=CPU)
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=False)

    train(networks, players, batches(6), rng=torch.Generator().manual_seed(0), critic_steps=2)

    (critic, *_), (generator, *_) = networks.classifier.parameters(), networks.forward_generator.parameters()
    assert players.critics.state[critic]["step"] == 6
    assert players.generators.state[generator]["step"] == 3
