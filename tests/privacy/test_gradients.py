import copy

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from fedgan.gan.build import build_networks
from fedgan.privacy.gradients import Loss, at_once, gradient_of, gradients_of, gradients_together
from fedgan.records import Batch

PRESETS = [
    ("model=taggan",),
    ("model=tagsagan",),
    ("model=tagsagan_private",),
    ("model=tagsagan", "model.dark=true"),
    ("model=taggan", "model.weights.cycle=1", "model.spectral_norm=true", "model.adversarial=hinge"),
    ("model=taggan", "model.adversarial=wgan_gp"),
    ("model=sagan",),
    ("model=sagan", "model.adversarial=wgan_gp"),
    ("model=sagan_released", "data.size=64", "model.blocks=1"),
]
KINDS = {
    "both sides": (1, 1, 0),
    "abnormal": (1, 0, 0),
    "normal": (0, 1, 0),
    "unlabelled": (0, 0, 1),
    "all": (1, 1, 1),
}
"""Of how many abnormal, normal and unlabelled scans a patient has."""


class SameDraws(TorchFunctionMode):
    """Chance that starts anew and is the same for all patients, so that two ways can be compared."""

    def __init__(self):
        super().__init__()
        self.rng = np.random.default_rng(5)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if not (kwargs and kwargs.get("generator")):
            return function(*args, **(kwargs or {}))
        if function is torch.multinomial:
            return args[0].argmax(dim=1, keepdim=True)
        if function is torch.randint:
            *bounds, shape = args
            return torch.from_numpy(self.rng.integers(*bounds, size=shape))
        shape = args[0] if isinstance(args[0], tuple) else args
        draw = {torch.rand: self.rng.random, torch.randn: self.rng.standard_normal}[function]
        return torch.from_numpy(draw(size=shape, dtype=np.float32))


def patients(kind, size, count=2):
    """Return patients of one kind."""
    abnormal, normal, unlabelled = KINDS[kind]
    rng = torch.Generator().manual_seed(1)

    def scans(of_a_kind):
        return torch.rand(of_a_kind, 1, size, size, generator=rng) * 2 - 1

    return [
        Batch(scans(abnormal), scans(normal), torch.eye(2)[number % 2 :][:abnormal], scans(unlabelled))
        for number in range(count)
    ]


@pytest.fixture
def game(tiny):
    def build(*preset, side):
        settings = tiny(*preset)
        networks = build_networks(
            settings.model, num_diseases=2, seed=0, device=torch.device("cpu"), one_patient=True
        ).eval()
        play = networks.critic_terms if side == "critics" else networks.generator_terms
        loss = Loss(networks, lambda batch, rng: play(networks.imagine(batch, rng), rng).values())
        return loss, list(getattr(networks, side)()), settings.data.size

    return build


def alone(loss, patient, side):
    """Return the gradient of one patient's loss, found by networks that see nobody else."""
    with SameDraws():
        other = copy.deepcopy(loss.networks)
        scene = other.imagine(patient, torch.Generator())
        terms = (other.critic_terms if side == "critics" else other.generator_terms)(scene, torch.Generator())
        sum(terms.values()).backward()
    parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in getattr(other, side)()]
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["critics", "generators"])
@pytest.mark.parametrize("preset", PRESETS, ids=" ".join)
def test_gradients_found_together_and_one_by_one_are_those_of_each_patient_alone(game, preset, side, kind):
    loss, moved, size = game(*preset, side=side)
    group = patients(kind, size)

    with SameDraws():
        together = gradients_together(loss, moved, group)

    for patient, found in zip(group, together, strict=True):
        with SameDraws():
            one = gradient_of(loss(patient, torch.Generator()), moved)
        expected = alone(loss, patient, side)
        assert expected.norm() > 0
        assert torch.isfinite(expected).all()
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert (one - expected).norm() <= 1e-5 * expected.norm()


def test_a_patients_gradient_is_the_same_whoever_is_taken_together_with_him(game):
    loss, moved, size = game("model=tagsagan", side="generators")
    first, second, third = patients("both sides", size, count=3)
    broken = Batch(first.abnormal * torch.nan, first.normal, first.diseases, first.unlabelled)

    with SameDraws():
        among_sound = gradients_together(loss, moved, [first, second, third])
    with SameDraws():
        among_broken = gradients_together(loss, moved, [broken, second, third])

    assert not torch.isfinite(among_broken[0]).all()
    assert torch.equal(among_sound[1:], among_broken[1:])


def test_patients_who_are_taken_together_have_chance_of_their_own(game):
    loss, moved, size = game("model=tagsagan", side="generators")
    (twin,) = patients("both sides", size, count=1)

    gradients = gradients_together(loss, moved, [twin, twin])

    assert not torch.allclose(gradients[0], gradients[1], rtol=1e-2)


def test_everyone_gives_one_gradient_whatever_his_kind_and_however_many_are_taken_together(game):
    loss, moved, size = game("model=taggan", side="critics")
    everyone = [patient for kind in KINDS for patient in patients(kind, size, count=2)][1:]

    gradients = list(gradients_of(loss, moved, everyone))

    assert [len(some) for some in gradients] == [1, 2, 2, 2, 2]
    assert all(row.norm() > 0 for row in torch.cat(gradients))


def test_a_patient_of_whom_no_term_can_be_had_counts_as_zero(game):
    loss, moved, size = game("model=sagan", "model.weights.adversarial=0", side="generators")

    gradients = [torch.cat(list(gradients_of(loss, moved, patients("abnormal", size, count)))) for count in (1, 2)]

    assert [len(some) for some in gradients] == [1, 2]
    assert not torch.cat(gradients).any()


@pytest.mark.parametrize(("size", "expected"), [(32, 64), (64, 16), (128, 1)])
def test_small_scans_are_taken_together_and_large_ones_one_by_one(size, expected):
    moved = [torch.nn.Parameter(torch.zeros(1000))]

    assert at_once(patients("normal", size, count=1)[0], moved) == expected


def test_gradients_of_large_networks_are_found_one_by_one():
    moved = [torch.nn.Parameter(torch.zeros(1 << 22))]

    assert at_once(patients("normal", 32, count=1)[0], moved) == 1
