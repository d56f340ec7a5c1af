import pytest
import torch

from fedgan.checkpoint import load_model, load_round, save_model, save_round
from fedgan.errors import ModelError, RunFolderError
from fedgan.records import GlobalModel

MODEL = GlobalModel(3, {"w": torch.tensor([[1.0, 2.0]]), "count": torch.tensor(7)})


def test_a_kept_round_comes_back_bit_for_bit(tmp_path):
    save_round(tmp_path / "0003.safetensors", MODEL)

    kept = load_round(tmp_path / "0003.safetensors")

    assert kept.round == 3
    assert {name: (tensor.dtype, tensor.tolist()) for name, tensor in kept.weights.items()} == {
        "w": (torch.float32, [[1.0, 2.0]]),
        "count": (torch.int64, 7),
    }


def test_a_damaged_round_is_refused(tmp_path):
    path = tmp_path / "0003.safetensors"
    save_round(path, MODEL)
    path.write_bytes(path.read_bytes()[:-3])

    with pytest.raises(ModelError, match="is no kept round"):
        load_round(path)


def test_a_round_that_cannot_be_kept_leaves_the_one_before(full_disk, tmp_path):
    path = tmp_path / "0003.safetensors"
    save_round(path, MODEL)

    with full_disk(), pytest.raises(RunFolderError, match="the last kept round is intact"):
        save_round(path, GlobalModel(3, {"w": torch.zeros(1000)}))

    assert torch.equal(load_round(path).weights["w"], MODEL.weights["w"])


def test_a_model_comes_back_with_its_card(tmp_path):
    save_model(tmp_path / "model", MODEL, {"size": 64})

    weights, card = load_model(tmp_path / "model")

    assert torch.equal(weights["w"], MODEL.weights["w"])
    assert (card["size"], card["round"]) == (64, 3)


def test_weights_in_a_gpus_memory_order_can_be_kept(tmp_path):
    kernel = torch.arange(36.0).view(2, 2, 3, 3)

    save_round(tmp_path / "0001.safetensors", GlobalModel(1, {"w": kernel.to(memory_format=torch.channels_last)}))

    assert torch.equal(load_round(tmp_path / "0001.safetensors").weights["w"], kernel)


def test_a_model_that_cannot_be_written_leaves_the_one_before(full_disk, tmp_path):
    save_model(tmp_path, MODEL, {})

    with full_disk(), pytest.raises(RunFolderError, match="free space"):
        save_model(tmp_path, GlobalModel(4, {"w": torch.zeros(1000)}), {})

    assert load_model(tmp_path)[1]["round"] == 3
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "model.json"}


def test_a_folder_without_a_model_says_which_folder_to_give(tmp_path):
    with pytest.raises(ModelError, match="give a run's model folder"):
        load_model(tmp_path)
