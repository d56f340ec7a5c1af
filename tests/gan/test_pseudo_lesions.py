import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.pseudo_lesions import Lesions, paste_pseudo_lesions, transplant


def head(count: int, size: int = 32) -> torch.Tensor:
    """Grey discs on black: (N, 1, H, W)."""
    axis = torch.linspace(-1, 1, size)
    inside = axis[:, None].square() + axis[None, :].square() < 0.6
    return torch.where(inside, 0.0, -1.0).expand(count, 1, size, size).clone()


def test_every_scan_gets_something_pasted():
    scans = head(16)

    pasted = paste_pseudo_lesions(scans, lesions=Lesions(0.5), rng=torch.Generator())

    assert ((pasted - scans).abs().amax(dim=(1, 2, 3)) > 0.05).all()


def test_air_stays_air():
    scans = head(16)

    pasted = paste_pseudo_lesions(scans, lesions=Lesions(0.5), rng=torch.Generator())

    assert (pasted[:, :, :4, :4] == -1).all()


def test_lesions_of_one_kind_are_brighter_than_what_they_cover():
    scans = head(16)
    rng = torch.Generator().manual_seed(1)

    changed = paste_pseudo_lesions(scans, lesions=Lesions(1.0), rng=rng) - scans

    assert changed.sum() > 0


def test_nothing_is_pasted_into_no_scans():
    assert paste_pseudo_lesions(head(0), lesions=Lesions(0.5), rng=torch.Generator()).shape == (0, 1, 32, 32)


@given(st.integers(0, 1000))
def test_pasted_scans_stay_in_range_and_come_from_the_stream_alone(seed):
    scans = head(3)

    first, second = (
        paste_pseudo_lesions(scans, lesions=Lesions(0.5), rng=torch.Generator().manual_seed(seed)) for _ in "ab"
    )

    assert torch.equal(first, second)
    assert first.abs().max() <= 1


def found_lesion(count: int) -> torch.Tensor:
    """A difference of 0.5 in a square left of the middle, and of 0.05 everywhere else."""
    difference = torch.full((count, 1, 32, 32), 0.05)
    difference[..., 12:20, 6:12] = 0.5
    return difference


def test_a_transplant_puts_in_what_was_found_and_leaves_doubt_behind():
    scans = head(8)

    change = transplant(scans, found_lesion(3), rng=torch.Generator().manual_seed(0)) - scans

    inside = torch.maximum(change, change.flip(-1))[..., 14:18, 8:10]
    assert inside.min() > 0.2
    assert change[..., 22:, :].abs().max() < 0.01
    assert (change.flatten(1).sum(dim=1) > 0).all()


def test_transplants_stay_in_tissue_and_in_range():
    scans = head(4)

    moved = transplant(scans, torch.full((2, 1, 32, 32), 3.0), rng=torch.Generator())

    assert (moved[:, :, :4, :4] == -1).all()
    assert moved.max() == 1


def test_nothing_is_transplanted_where_nothing_was_found():
    scans = head(4)

    assert torch.equal(transplant(scans, found_lesion(2)[:0], rng=torch.Generator()), scans)
    assert torch.equal(transplant(scans, torch.zeros(2, 1, 32, 32), rng=torch.Generator()), scans)


def test_lesions_of_the_lungs_leave_the_bright_half_of_the_tissue_alone():
    scans = head(16)
    scans[:, :, :, 16:] = torch.where(scans[:, :, :, 16:] > -1, 0.5, -1.0)

    changed = paste_pseudo_lesions(scans, lesions=Lesions(1.0, dark=True), rng=torch.Generator()) - scans

    assert (changed.abs().amax(dim=(1, 2, 3)) > 0.05).all()
    assert (changed[:, :, :, 19:] == 0).all()


def test_larger_radii_make_larger_lesions():
    small, large = (
        paste_pseudo_lesions(head(16), lesions=Lesions(1.0, radius=radius), rng=torch.Generator()) - head(16)
        for radius in ((0.04, 0.05), (0.3, 0.35))
    )

    assert (large.abs() > 0.05).sum() > 4 * (small.abs() > 0.05).sum()
