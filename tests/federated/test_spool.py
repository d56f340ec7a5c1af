import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save

from fedgan.errors import RunFolderError
from fedgan.federated.spool import Spool
from fedgan.records import ScanCounts, SiteUpdate


def update(site, **delta):
    return SiteUpdate(site, 3, "", delta, ScanCounts(1), {})


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def test_an_update_is_the_same_on_disk_as_in_memory(spool):
    given = update("A", w=torch.randn(3, 4), count=torch.tensor(7), half=torch.randn(2).half())

    found = spool.put(given)

    assert (found.site, found.round, found.counts) == (given.site, given.round, given.counts)
    assert set(found.delta) == set(given.delta)
    for name, tensor in given.delta.items():
        assert found.delta[name].dtype == tensor.dtype
        assert torch.equal(found.delta[name], tensor)
    assert "other" not in found.delta


def test_an_update_that_came_as_a_file_is_kept_as_it_came(spool):
    packed = save({"w": torch.arange(4.0)})

    found = spool.keep("A", memoryview(packed))

    assert torch.equal(found["w"], torch.arange(4.0))
    assert found.path.read_bytes() == packed


@pytest.mark.parametrize("damaged", [b"", b"no file", save({"w": torch.zeros(9)})[:-1]], ids=["empty", "other", "cut"])
def test_what_is_no_file_of_tensors_is_not_kept(spool, damaged):
    with pytest.raises(SafetensorError):
        spool.keep("A", memoryview(damaged))

    assert list(spool.folder.iterdir()) == []


def test_the_next_round_finds_an_empty_spool(spool):
    spool.put(update("A", w=torch.ones(1)))

    spool.clear()

    assert list(spool.folder.iterdir()) == []


def test_an_update_without_a_delta_needs_no_disk(spool):
    assert spool.put(update("A")) == update("A")
    assert not spool.folder.exists()


def test_a_full_disk_is_told_before_the_round_goes_on(spool, full_disk):
    with full_disk(), pytest.raises(RunFolderError, match="free space on the disk"):
        spool.put(update("A", w=torch.zeros(10_000)))
    with full_disk(), pytest.raises(RunFolderError, match="free space on the disk"):
        spool.keep("A", memoryview(save({"w": torch.zeros(10_000)})))

    assert list(spool.folder.iterdir()) == []
