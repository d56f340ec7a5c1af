import runpy
from itertools import chain
from pathlib import Path
from statistics import mean

import pytest
import torch
from PIL import Image
from torch.optim import SGD

from fedgan.cli import main
from fedgan.config import load
from fedgan.gan.build import build_networks, num_parameters
from fedgan.gan.patch_networks import NORMS, Layers, ScanCritic, TileGenerator
from fedgan.gan.training import gan_step, players_for, train
from fedgan.mapping import Mapper
from fedgan.records import Batch
from fedgan.settings import Simulation

CPU = torch.device("cpu")
SMALL = ("model.width=4", "model.critic_width=4", "model.batch_size=2")


def networks_of(*overrides, model="sagan", seed=0):
    settings = load("simulate", Simulation, [f"model={model}", *overrides])
    return build_networks(settings.model, num_diseases=2, seed=seed, device=CPU)


def scans_of(count, seed=0, size=64):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth_scans_of(count, seed=0):
    coarse = torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=64, mode="bicubic", align_corners=False).clamp(-1, 1)


def batch_of(abnormal=2, normal=2, unlabelled=0):
    parts = scans_of(abnormal + normal + unlabelled).split([abnormal, normal, unlabelled])
    return Batch(parts[0], parts[1], torch.ones(abnormal, 2), parts[2])


def step(networks, batches, seed=0):
    players = players_for(networks, learning_rate=1e-3, critic_learning_rate=1e-3, bfloat16=False)
    return gan_step(networks, players, batches, torch.Generator().manual_seed(seed))


def map_of(networks, scans):
    with torch.no_grad():
        return networks.difference(scans, torch.ones(len(scans), 2)).abs()


def seam_ratio(networks, scans):
    """Mean step of the map between neighbouring pixels across the middle of the scan, over that elsewhere."""
    drawn = map_of(networks, scans)
    steps = torch.cat([drawn.diff(dim=-1), drawn.diff(dim=-2).transpose(-1, -2)]).abs().mean(dim=(0, 1, 2))
    seam = torch.zeros(63, dtype=torch.bool)
    seam[31] = True
    return float(steps[seam].mean() / steps[~seam].mean())


def test_the_released_networks_have_the_released_numbers_of_parameters():
    generator = TileGenerator(width=64, blocks=6, layers=Layers(NORMS["instance"]), position="inert", grid=2, context=0)

    assert sum(parameter.numel() for parameter in generator.parameters()) == 44_758_979
    assert sum(parameter.numel() for parameter in ScanCritic(width=64).parameters()) == 44_719_040


def test_the_released_settings_build_those_networks():
    model = load("simulate", Simulation, ["model=sagan_released"]).model

    assert (model.width, model.blocks, model.norm, model.position) == (64, 6, "instance", "inert")
    assert (model.grid, model.context, model.critic, model.critic_width) == (2, 0, "global", 64)


def test_the_repaired_networks_are_small():
    counts = num_parameters(networks_of())

    assert counts.keys() == {"generator", "critic"}
    assert max(counts.values()) <= 1_500_000


@pytest.mark.parametrize("model", ["sagan", "sagan_released"])
def test_all_that_travels_is_weights_that_can_be_averaged(model):
    state = networks_of(*SMALL, model=model).state_dict()

    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert any(name.startswith("average.") for name in state) == (model == "sagan")


def change_by_another_code(networks):
    generator, scans = networks.generator, scans_of(3)
    code = generator.code(64)
    other = 5 * torch.randn(code.shape, generator=torch.Generator().manual_seed(1))
    if other.shape[1]:
        other = other.mean(dim=(2, 3), keepdim=True).mul(20).expand_as(code)
    with torch.no_grad():
        before, after = generator(scans), generator(scans, other)
    return float((after - before).abs().max() / before.abs().max())


def test_the_released_position_code_changes_nothing():
    assert change_by_another_code(networks_of(*SMALL, model="sagan_released")) < 1e-4


@pytest.mark.parametrize("position", ["tile", "coordinates"])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_a_repaired_position_code_changes_the_map(position, norm):
    networks = networks_of(*SMALL, f"model.position={position}", f"model.norm={norm}")

    assert change_by_another_code(networks) > 1e-2


@pytest.mark.parametrize("size", [32, 64, 128, 256])
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_maps_of_every_size_can_be_drawn_tile_by_tile(size, grid):
    drawn = map_of(networks_of(*SMALL, f"model.grid={grid}"), scans_of(2, size=size))

    assert drawn.shape == (2, 1, size, size)
    assert bool(torch.isfinite(drawn).all())


def test_an_untrained_map_has_no_seam():
    scans = smooth_scans_of(16)

    ratios = [seam_ratio(networks_of("model.width=4", seed=seed), scans) for seed in range(4)]

    assert mean(ratios) < 1.1


@pytest.mark.slow
def test_no_seam_appears_with_training():
    normal, ill, none = smooth_scans_of(16, seed=1), smooth_scans_of(8, seed=2), scans_of(0)
    ratios = []

    for seed in (1, 2, 3):
        networks = networks_of("model.width=4", seed=seed)
        players = players_for(networks, learning_rate=2e-3, critic_learning_rate=1e-3, bfloat16=False)
        batches = [Batch(ill[:4], normal[:8], torch.ones(4, 2), none)] * 40
        train(networks, players, batches, rng=torch.Generator().manual_seed(0))
        ratios.append(seam_ratio(networks, smooth_scans_of(32, seed=3)))

    assert mean(ratios) < 1.1, ratios


def test_only_a_repaired_generator_can_leave_a_scan_as_it_is():
    left = {}
    for model in ("sagan", "sagan_released"):
        networks = networks_of(*SMALL, "model.ema_decay=0", "model.masked=never", model=model)
        torch.nn.init.zeros_(networks.generator.out.weight)
        left[model] = map_of(networks, scans_of(2))

    assert not left["sagan"].any()
    assert left["sagan_released"].mean() > 0.05


def test_a_scan_beyond_white_can_still_be_learned_from():
    networks = networks_of(*SMALL)
    white = Batch(scans_of(0), torch.ones(2, 1, 64, 64), torch.ones(0, 2), scans_of(0))
    with torch.no_grad():
        networks.generator.out.weight.add_(1)

    terms = networks.generator_terms(networks.imagine(white, torch.Generator()), torch.Generator())
    terms["identity"].backward()

    assert networks.generator.out.weight.grad.abs().max() > 0


def test_maps_show_normal_counterparts_within_the_range_of_scans():
    networks, scans = networks_of(*SMALL), scans_of(2)
    with torch.no_grad():
        networks.average.out.weight.add_(1)

    counterpart = scans - networks.difference(scans, torch.ones(2, 2))

    assert counterpart.abs().max() <= 1 + 1e-6


def test_released_maps_hide_a_twentieth_of_the_pixels_and_can_be_drawn_again():
    scans = scans_of(3)
    shown, hidden = (
        networks_of(*SMALL, f"model.masked={when}", model="sagan_released") for when in ("training", "always")
    )

    first, again, alone = map_of(hidden, scans), map_of(hidden, scans), map_of(hidden, scans[2:])
    differ = first != map_of(shown, scans)

    assert torch.equal(first, again)
    assert torch.allclose(first[2:], alone, atol=1e-5)
    assert torch.allclose(first[differ], (scans - torch.tanh(2 * scans)).abs()[differ])
    assert 0.04 < differ.float().mean() < 0.06


def test_repaired_maps_hide_no_pixel():
    assert networks_of(*SMALL).masked == "never"


def test_labels_of_abnormal_scans_are_not_used():
    networks, labelled = networks_of(*SMALL), batch_of(abnormal=2)
    hidden = Batch(scans_of(0), labelled.normal, torch.ones(0, 2), labelled.abnormal)

    scenes = [networks.imagine(batch, torch.Generator().manual_seed(0)) for batch in (labelled, hidden)]

    assert torch.equal(scenes[0].counterpart, scenes[1].counterpart)
    assert torch.equal(
        networks.difference(labelled.normal, torch.zeros(2, 2)), networks.difference(labelled.normal, torch.ones(2, 2))
    )


@pytest.mark.parametrize("game", ["lsgan", "hinge", "wgan_gp"])
def test_each_game_trains_both_players_with_unequal_numbers_of_scans(game):
    networks = networks_of(*SMALL, f"model.adversarial={game}", "model.weights.adversarial=1")
    before = {name: tensor.clone() for name, tensor in networks.state_dict().items()}

    losses = step(networks, [batch_of(abnormal=2, normal=2, unlabelled=1)] * 2)

    moved = {
        name.partition(".")[0] for name, after in networks.state_dict().items() if not torch.equal(after, before[name])
    }
    assert moved == {"generator", "average", "critic"}
    assert set(losses) == {"critic_discriminator", "adversarial", "identity", "restoration"}


def test_a_site_of_normal_scans_trains_what_normal_scans_can_teach():
    assert set(step(networks_of(*SMALL), [batch_of(abnormal=0)])) == {"identity", "restoration"}


def test_a_site_of_abnormal_scans_trains_against_the_critic_of_others():
    assert set(step(networks_of(*SMALL), [batch_of(normal=0)])) == {"adversarial"}


def test_without_a_moving_average_the_generator_itself_draws_the_maps():
    networks, scans = networks_of(*SMALL, "model.ema_decay=0"), scans_of(1)
    before = map_of(networks, scans)

    step(networks, [batch_of()])

    assert not torch.equal(map_of(networks, scans), before)


def test_a_step_moves_the_weights_as_the_released_way_to_take_it_does():
    benchmark = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "sagan_step.py"))
    overrides = ("model.width=4", "model.critic_width=4", "model.blocks=1", "model.masked=never")
    ours = networks_of(*overrides, model="sagan_released")
    theirs = benchmark["as_released"](ours)
    losses = []

    for networks, take in ((ours, gan_step), (theirs, benchmark["released_step"])):
        optimizers = [SGD(side, lr=0.05) for side in (networks.critics(), networks.generators())]
        players = benchmark["Players"](*optimizers, torch.enable_grad)
        losses.append(take(networks, players, [batch_of(), batch_of()], torch.Generator().manual_seed(3)))

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    pairs = zip(chain(ours.critics(), ours.generators()), chain(theirs.critics(), theirs.generators()), strict=True)
    assert all(torch.allclose(first, second, atol=1e-5) for first, second in pairs)


def test_restoring_pseudo_lesions_is_learned():
    axis = torch.linspace(-1, 1, 64)
    heads = torch.where(axis[:, None].square() + axis[None, :].square() < 0.6, 0.0, -1.0).expand(8, 1, 64, 64)
    networks = networks_of("model.width=4", "model.blocks=1")
    players = players_for(networks, learning_rate=2e-3, critic_learning_rate=1e-3, bfloat16=False)
    batch = Batch(heads[:0], heads[:4], torch.ones(0, 2), heads[:0])

    first = train(networks, players, [batch] * 5, rng=torch.Generator().manual_seed(0))
    train(networks, players, [batch] * 30, rng=torch.Generator().manual_seed(1))
    last = train(networks, players, [batch] * 5, rng=torch.Generator().manual_seed(0))

    assert last["restoration"] < 0.85 * first["restoration"]


@pytest.mark.parametrize("model", ["sagan", "sagan_released"])
def test_a_run_with_hidden_labels_leaves_a_model_that_draws_maps(tmp_path, tiny_overrides, model):
    overrides = [*tiny_overrides, f"model={model}", "data.size=64", "data.hide_labels=0.5", "name=run"]

    assert main(overrides) == 0

    Image.fromarray((scans_of(1)[0, 0] * 127 + 128).byte().numpy()).save(tmp_path / "scan.png")
    finding = Mapper(tmp_path / "run" / "model", device=CPU).read(tmp_path / "scan.png")
    assert finding.evidence.shape == (64, 64)
    assert 0 <= finding.score <= 1
