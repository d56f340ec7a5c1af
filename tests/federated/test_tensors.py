import copy

import pytest
import torch
from torch import nn

from fedgan.config import groups, load
from fedgan.errors import ModelError
from fedgan.federated.tensors import Role, Side, entries
from fedgan.gan.build import build_networks
from fedgan.settings import Simulation


class Pair(nn.Module):
    """Two networks that play, and what else is put beside them."""

    def __init__(self, generator, critic, **others):
        super().__init__()
        self.generator, self.critic = generator, critic
        for name, other in others.items():
            setattr(self, name, other)

    def generators(self):
        return self.generator.parameters()

    def critics(self):
        return self.critic.parameters()

    def by_disease(self):
        return ()

    def averages(self):
        return {"average": "generator"} if hasattr(self, "average") else {}


@pytest.mark.parametrize("model", sorted(groups()["model"]))
def test_every_tensor_of_every_model_of_ours_has_a_kind_and_a_side(model):
    overrides = [f"model={model}", "model.width=4", "model.critic_width=4"]
    networks = build_networks(
        load("simulate", Simulation, overrides).model, num_diseases=2, seed=0, device=torch.device("cpu")
    )

    found = entries(networks)

    assert list(found) == list(networks.state_dict())
    trained = {name for name, parameter in networks.named_parameters() if parameter.requires_grad}
    assert {name for name, entry in found.items() if entry.role in (Role.WEIGHT, Role.AFFINE)} == trained
    assert {entry.side for entry in found.values()} == {Side.GENERATOR, Side.CRITIC}


def test_a_norm_has_trained_affines_running_statistics_and_a_counter():
    found = entries(Pair(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), nn.Conv2d(1, 1, 3)))

    roles = {name: entry.role for name, entry in found.items() if name.startswith("generator.1.")}
    assert roles == {
        "generator.1.weight": Role.AFFINE,
        "generator.1.bias": Role.AFFINE,
        "generator.1.running_mean": Role.STATISTIC,
        "generator.1.running_var": Role.STATISTIC,
        "generator.1.num_batches_tracked": Role.COUNTER,
    }


@pytest.mark.parametrize(
    ("make", "vectors"),
    [
        (
            nn.utils.parametrizations.spectral_norm,
            {"critic.parametrizations.weight.0._u", "critic.parametrizations.weight.0._v"},
        ),
        pytest.param(
            nn.utils.spectral_norm,
            {"critic.weight_u", "critic.weight_v"},
            marks=pytest.mark.filterwarnings("ignore:.*weight_norm.*|.*spectral_norm.*:FutureWarning"),
        ),
    ],
    ids=["parametrization", "hook"],
)
def test_spectral_norm_vectors_are_told_from_weights(make, vectors):
    found = entries(Pair(nn.Conv2d(1, 1, 3), make(nn.Conv2d(1, 2, 3))))

    assert {name for name, entry in found.items() if entry.role is Role.VECTOR} == vectors
    assert sum(entry.role is Role.WEIGHT for name, entry in found.items() if name.startswith("critic")) == 2


def test_a_moving_average_has_the_side_of_what_it_follows():
    generator = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))

    found = entries(Pair(generator, nn.Conv2d(1, 1, 3), average=copy.deepcopy(generator).requires_grad_(False)))

    of_average = {name: entry for name, entry in found.items() if name.startswith("average.")}
    assert {entry.side for entry in of_average.values()} == {Side.GENERATOR}
    assert of_average["average.0.weight"].role is Role.AVERAGE
    assert of_average["average.1.running_var"].role is Role.STATISTIC


def test_a_buffer_of_no_known_kind_is_refused_by_name():
    critic = nn.Conv2d(1, 1, 3)
    critic.register_buffer("temperature", torch.ones(()))

    with pytest.raises(ModelError, match=r"critic\.temperature"):
        entries(Pair(nn.Conv2d(1, 1, 3), critic))


@pytest.mark.parametrize("values", [torch.zeros(3), torch.zeros(3, dtype=torch.int64)], ids=["frozen", "whole numbers"])
def test_a_parameter_that_nobody_trains_is_refused_by_name(values):
    critic = nn.Conv2d(1, 1, 3)
    critic.register_parameter("levels", nn.Parameter(values, requires_grad=False))

    with pytest.raises(ModelError, match=r"several sites: critic\.levels;"):
        entries(Pair(nn.Conv2d(1, 1, 3), critic))


def test_a_network_that_nobody_trains_is_refused():
    with pytest.raises(ModelError, match="judge: trained by neither player"):
        entries(Pair(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3), judge=nn.Conv2d(1, 1, 3)))
