import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.pseudo_lesions import paste_pseudo_lesions


def head(count: int, size: int = 32) -> torch.Tensor:
    """Grey discs on black: (N, 1, H, W)."""
    axis = torch.linspace(-1, 1, size)
    inside = axis[:, None].square() + axis[None, :].square() < 0.6
    return torch.where(inside, 0.0, -1.0).expand(count, 1, size, size).clone()


def test_every_scan_gets_something_pasted():
    scans = head(16)

    pasted = paste_pseudo_lesions(scans, brighter=0.5, rng=torch.Generator())

    assert ((pasted - scans).abs().amax(dim=(1, 2, 3)) > 0.05).all()


def test_air_stays_air():
    scans = head(16)

    pasted = paste_pseudo_lesions(scans, brighter=0.5, rng=torch.Generator())

    assert (pasted[:, :, :4, :4] == -1).all()


def test_lesions_of_one_kind_are_brighter_than_what_they_cover():
    scans = head(16)
    rng = torch.Generator().manual_seed(1)

    changed = paste_pseudo_lesions(scans, brighter=1.0, rng=rng) - scans

    assert changed.sum() > 0


def test_nothing_is_pasted_into_no_scans():
    assert paste_pseudo_lesions(head(0), brighter=0.5, rng=torch.Generator()).shape == (0, 1, 32, 32)


@given(st.integers(0, 1000))
def test_pasted_scans_stay_in_range_and_come_from_the_stream_alone(seed):
    scans = head(3)

    first, second = (paste_pseudo_lesions(scans, brighter=0.5, rng=torch.Generator().manual_seed(seed)) for _ in "ab")

    assert torch.equal(first, second)
    assert first.abs().max() <= 1
