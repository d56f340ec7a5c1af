import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.gan.build import build_networks
from fedgan.gan.disease_map import Drawing, draw_maps, evidence_of


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


def networks_and_scans(settings):
    networks = build_networks(settings.model, num_diseases=2, seed=0, device=torch.device("cpu"))
    return networks, torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_flip_averaging_draws_the_mirrored_map_of_a_mirrored_scan(tiny):
    networks, scans = networks_and_scans(tiny())
    drawing = Drawing(smoothing=0, flip=True)

    maps, of_mirrored = (draw_maps(networks, x, torch.ones(3, 2), drawing=drawing) for x in (scans, scans.flip(-1)))
    plain = draw_maps(networks, scans, torch.ones(3, 2), drawing=Drawing(smoothing=0))

    assert torch.allclose(maps.evidence, of_mirrored.evidence.flip(-1), atol=1e-6)
    assert not torch.allclose(maps.evidence, plain.evidence, atol=1e-3)


def test_tissue_masking_leaves_no_evidence_in_air_and_all_of_it_in_tissue(tiny):
    networks, scans = networks_and_scans(tiny())
    scans = scans.abs()
    scans[..., :16] = -1

    masked, plain = (
        draw_maps(networks, scans, torch.ones(3, 2), drawing=Drawing(smoothing=0, tissue=tissue)).evidence
        for tissue in (True, False)
    )

    assert masked[..., :14].max() == 0 < plain[..., :14].max()
    inside = (slice(None), slice(4, 28), slice(18, 28))
    assert torch.equal(masked[inside], plain[inside])
