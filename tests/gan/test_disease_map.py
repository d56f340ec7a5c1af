import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.disease_map import evidence_of


def test_no_difference_is_no_evidence():
    assert evidence_of(torch.zeros(1, 8, 8), smoothing=1.0).tolist() == torch.zeros(1, 8, 8).tolist()


def test_a_difference_of_an_eighth_of_the_grey_range_is_evidence_of_0_63():
    evidence = evidence_of(torch.full((1, 2, 2), 0.25), smoothing=0)

    assert torch.allclose(evidence, torch.full((1, 2, 2), 0.6321), atol=1e-4)


def test_what_is_too_dark_counts_as_what_is_too_bright():
    difference = torch.linspace(-1, 1, 64).view(1, 8, 8)

    assert torch.equal(evidence_of(difference, smoothing=0), evidence_of(-difference, smoothing=0))


def test_smoothing_follows_the_size_of_the_scan():
    small, large = torch.zeros(1, 64, 64), torch.zeros(1, 128, 128)
    small[0, 32:36, 32:36] = large[0, 64:72, 64:72] = 1.0

    peaks = [float(evidence_of(difference, smoothing=1.0).max()) for difference in (small, large)]

    assert abs(peaks[0] - peaks[1]) < 0.02


@given(st.floats(-2, 2, width=32), st.floats(-2, 2, width=32))
def test_evidence_lies_in_0_to_1_and_keeps_the_order_of_sizes(first, second):
    evidence = evidence_of(torch.tensor([[[first, second]]]), smoothing=0)[0, 0].tolist()

    assert all(0 <= value <= 1 for value in evidence)
    assert (abs(first) <= abs(second)) <= (evidence[0] <= evidence[1])
