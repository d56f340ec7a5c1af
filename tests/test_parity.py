"""One federation, two engines: Flower's simulation must train exactly what one process trains."""

import importlib.util
import os

import pytest
import torch

from fedgan.config import dump, load
from fedgan.flower import run_on_flower
from fedgan.run_folder import RunFolder
from fedgan.settings import Simulation
from fedgan.simulation import arms_of, load_cohorts, resolve, train_in_process

TINY = [
    "rounds=2",
    "local_steps=2",
    "quorum=2",
    "device=cpu",
    "precision=float32",
    "threads=1",
    "compare=false",
    "bootstrap=0",
    "data.sites=[A,B]",
    "data.patients=16",
    "data.images_per_patient=1",
    "data.size=32",
    "model.width=4",
    "model.critic_width=4",
    "model.batch_size=2",
]


@pytest.mark.slow
def test_flower_trains_the_same_weights_as_one_process(tmp_path):
    if importlib.util.find_spec("ray") is None:
        assert not os.environ.get("CI"), "Ray must be installed where the project is tested for good"
        pytest.skip("Ray, Flower's simulation engine, is not installed")
    settings = load("simulate", Simulation, TINY)
    cohorts = load_cohorts(settings)
    (arm,) = arms_of(settings, cohorts)
    folders = {engine: RunFolder(tmp_path / engine, {}) for engine in ("process", "flower")}
    folders["flower"].write("config.yaml", dump(resolve(settings, cohorts)))
    torch.set_num_threads(settings.threads)

    train_in_process(settings, arm, folders["process"])
    run_on_flower(folders["flower"].path, num_sites=len(cohorts), on_output=print)

    process, flower = (folders[engine].latest() for engine in ("process", "flower"))
    assert flower.round == process.round == settings.rounds
    assert list(flower.weights) == list(process.weights)
    assert all(torch.equal(flower.weights[name], tensor) for name, tensor in process.weights.items())
    assert [entry.validation for entry in RunFolder(tmp_path / "flower", {}).history] == [
        entry.validation for entry in folders["process"].history
    ]
