import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.foreign_squares import paste_squares


def scans_of(count, size=64):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


@given(count=st.integers(2, 5), size=st.sampled_from([32, 64, 128]), seed=st.integers(0, 1000))
def test_a_pasted_square_blends_the_scan_before_it_in_and_leaves_the_rest(count, size, seed):
    scans = scans_of(count, size=size)

    change = paste_squares(scans, rng=torch.Generator().manual_seed(seed)) - scans

    other = scans.roll(1, dims=0) - scans
    for scan in range(count):
        rows, columns = change[scan, 0].nonzero(as_tuple=True)
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        alpha = (change[scan] / other[scan])[0][rows, columns]
        assert height == width
        assert round(0.05 * size) <= height / 2 < round(0.2 * size)
        assert 0 < alpha.mean() < 1
        assert torch.allclose(alpha, alpha.mean(), atol=1e-2)


def test_a_scan_alone_gets_a_square_of_its_mirror_image():
    scan = scans_of(1)

    pasted = paste_squares(scan, rng=torch.Generator())

    assert not torch.equal(pasted, scan)
    assert torch.all((pasted - scan) * (pasted - scan.flip(-1)) <= 0)  # between the two everywhere
