import pytest
import torch

from fedgan.errors import SiteMemoryError
from fedgan.federated.memory import FolderMemory, NoMemory
from fedgan.records import digest_of


def value(memory, number):
    since, kept = memory.recall(number)
    return since, kept["w"].item() if kept else None


def keep(memory, number, weight):
    memory.keep(number, {"w": torch.tensor(weight)})


@pytest.fixture
def memory(tmp_path):
    return FolderMemory(tmp_path / "A")


def test_a_site_recalls_what_it_kept_for_a_round(memory):
    keep(memory, 1, 5.0)

    assert value(memory, 1) == (1, 5.0)


def test_a_round_that_is_asked_for_again_finds_what_it_found_before(memory):
    keep(memory, 1, 5.0)
    keep(memory, 2, 6.0)

    assert value(memory, 1) == (1, 5.0)


def test_a_site_that_missed_rounds_recalls_its_last_and_says_which_that_was(memory):
    keep(memory, 2, 5.0)

    assert value(memory, 6) == (2, 5.0)


def test_after_a_gap_the_round_before_is_still_there(memory):
    keep(memory, 2, 5.0)
    keep(memory, 7, 6.0)

    assert value(memory, 6) == (2, 5.0)


def test_rounds_that_a_restored_coordinator_never_kept_are_forgotten(memory):
    for number in (1, 2, 3):
        keep(memory, number, float(number))

    keep(memory, 2, 20.0)

    assert value(memory, 9) == (2, 20.0)


def test_only_two_rounds_lie_on_the_disk(memory):
    for number in range(1, 6):
        keep(memory, number, 0.0)

    assert sorted(file.name for file in memory.folder.iterdir()) == ["0004.safetensors", "0005.safetensors"]


def test_a_site_with_nothing_to_keep_makes_no_folder(memory):
    memory.keep(1, {})

    assert not memory.folder.exists()
    assert memory.recall(1) == (1, {})


def test_a_full_disk_is_told_and_loses_nothing(memory, full_disk):
    keep(memory, 1, 5.0)

    with full_disk(), pytest.raises(SiteMemoryError, match="the site must make room"):
        memory.keep(2, {"w": torch.zeros(10_000)})

    assert value(memory, 2) == (1, 5.0)
    assert [file.name for file in memory.folder.iterdir()] == ["0001.safetensors"]


def test_a_damaged_memory_is_told_by_its_file(memory):
    keep(memory, 1, 5.0)
    (memory.folder / "0001.safetensors").write_bytes(b"\x00")

    with pytest.raises(SiteMemoryError, match=r"0001\.safetensors cannot be read .* delete it"):
        memory.recall(1)


def test_who_has_no_memory_recalls_nothing():
    forgetful = NoMemory()
    keep(forgetful, 1, 5.0)

    assert forgetful.recall(1) == (1, {})


def test_the_last_model_is_known_by_its_digest_alone(memory):
    first, second = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    assert memory.model_of(digest_of(first)) is None

    memory.keep_model(first)
    memory.keep_model(second)

    assert memory.model_of(digest_of(first)) is None
    assert torch.equal(memory.model_of(digest_of(second))["w"], second["w"])
    assert memory.recall(5) == (5, {})


def test_a_damaged_model_is_as_good_as_none(memory):
    memory.keep_model({"w": torch.zeros(3)})
    (memory.folder / "model.safetensors").write_bytes(b"\x00")

    assert memory.model_of(digest_of({"w": torch.zeros(3)})) is None
