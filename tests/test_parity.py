"""One federation, two engines: Flower's simulation trains exactly what one process trains."""

import importlib.util
import os

import pytest
import torch

from fedgan.config import dump
from fedgan.flower import run_on_flower
from fedgan.simulation import arms_of, load_cohorts, open_folder, resolve, train_in_process


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("rounds=9", "patience=1", "model.learning_rate=1e-12"),
        ("rounds=4", "compress=int8", "aggregation.moments=second", "aggregation.discriminator_every=4"),
    ],
    ids=["default", "patience", "memory"],
)
def test_flower_trains_the_same_weights_as_one_process_and_stops_where_it_does(tiny, tmp_path, overrides):
    if importlib.util.find_spec("ray") is None:
        assert not os.environ.get("CI"), "Ray must be installed where the project is tested for good"
        pytest.skip("Ray, Flower's simulation engine, is not installed")
    settings = tiny(*overrides)
    cohorts = load_cohorts(settings)
    (arm,) = arms_of(settings, cohorts)
    process, flower = (open_folder(settings, tmp_path / engine) for engine in ("process", "flower"))
    flower.write("config.yaml", dump(resolve(settings, cohorts)))

    train_in_process(settings, arm, process)
    run_on_flower(flower.path, num_sites=len(cohorts), on_output=print)

    flower.reload()
    assert (len(flower.history) < settings.rounds) == (settings.patience is not None)
    assert [entry.trained for entry in flower.history] == [("A", "B")] * len(process.history)
    assert [entry.losses for entry in flower.history] == [entry.losses for entry in process.history]
    assert [entry.validation for entry in flower.history] == [entry.validation for entry in process.history]
    last = flower.history[-1].traffic["A"]
    whole = sum(4 * tensor.numel() for tensor in flower.latest().weights.values())
    assert (last["to_site"] < whole / 2) == (last["from_site"] < whole / 2) == (settings.compress.model == "int8")
    expected, got = process.latest().weights, flower.latest().weights
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
