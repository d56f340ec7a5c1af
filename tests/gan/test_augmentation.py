import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.augmentation import jitter, vary
from fedgan.records import Batch


def batch_of(abnormal: int, normal: int, unlabelled: int) -> Batch:
    disc = torch.linspace(-1, 1, 32)[:, None].square() + torch.linspace(-1, 1, 32).square() < 0.3
    scans = torch.where(disc, 0.2, -1.0).expand(abnormal + normal + unlabelled, 1, 32, 32)
    ill, well, unknown = scans.split([abnormal, normal, unlabelled])
    return Batch(ill, well, torch.eye(2)[torch.arange(abnormal) % 2], unknown)


@given(counts=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), seed=st.integers(0, 1000))
def test_varied_scans_keep_their_range_and_each_kind_its_number(counts, seed):
    batch = batch_of(*counts)

    varied = vary(batch, torch.Generator().manual_seed(seed))

    for before, after in zip((batch.abnormal, batch.normal), (varied.abnormal, varied.normal), strict=True):
        assert after.shape == before.shape
        assert not len(after) or (after.min() >= -1 and after.max() <= 1)
    assert torch.equal(varied.diseases, batch.diseases)


def test_every_scan_of_a_batch_is_varied_in_its_own_way():
    first, second = vary(batch_of(2, 0, 0), torch.Generator().manual_seed(0)).abnormal

    assert (first - second).abs().max() > 0.1


def test_what_is_moved_in_is_background():
    varied = vary(batch_of(0, 8, 0), torch.Generator().manual_seed(0)).normal

    assert (varied[..., 0, :] == -1).all()


def test_a_critics_jitter_lets_the_gradient_through():
    scans = batch_of(3, 0, 0).abnormal.clone().requires_grad_()

    (gradient,) = torch.autograd.grad(jitter(scans, torch.Generator().manual_seed(0)).sum(), scans)

    assert (gradient.flatten(1).norm(dim=1) > 0).all()
