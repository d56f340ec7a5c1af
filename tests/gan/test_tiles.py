import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.tiles import corners, cut, join, shares, side_of

SIZES, GRIDS, CONTEXTS = (st.sampled_from(some) for some in ([32, 64, 128, 256], [1, 2, 4], [0, 8, 16]))


@given(
    grid=GRIDS,
    context=CONTEXTS,
    size=SIZES,
    channels=st.integers(1, 2),
)
def test_tiles_joined_are_the_scan_they_were_cut_from(grid, context, size, channels):
    scans = torch.rand(2, 1, size, size).expand(-1, channels, -1, -1)

    tiles = cut(scans, grid=grid, side=side_of(size, grid=grid, context=context))

    assert torch.allclose(join(tiles, size=size, grid=grid), scans, atol=1e-6)


@given(grid=GRIDS, context=CONTEXTS, size=SIZES)
def test_every_tile_lies_in_the_scan_and_can_be_halved_three_times(grid, context, size):
    side = side_of(size, grid=grid, context=context)

    assert side % 8 == 0
    assert all(0 <= row <= size - side and 0 <= column <= size - side for row, column in corners(size, grid, side))


@given(grid=st.sampled_from([2, 4]), context=st.sampled_from([8, 16]), size=SIZES)
def test_a_tile_fades_out_where_it_ends(grid, context, size):
    side = side_of(size, grid=grid, context=context)

    for share, (row, column) in zip(shares(size, grid, side), corners(size, grid, side), strict=True):
        in_scan = torch.nn.functional.pad(share[0], (column, size - column - side, row, size - row - side))
        assert max(float(in_scan.diff(dim=dim).abs().max()) for dim in (0, 1)) < 0.3
