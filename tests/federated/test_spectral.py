"""After averaging, a weight's vectors are those of its largest singular value, whatever they were before."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.federated.spectral import as_matrix, leading_vectors


@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 999), kept=st.integers(0, 11))
def test_what_divides_a_weight_is_its_largest_singular_value(rows, columns, seed, kept):
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    start = torch.linalg.svd(weight).U[:, kept % rows]  # at the worst, of another singular value

    left, right = leading_vectors(weight, 0, start)

    assert float(left @ weight @ right) == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=1e-5)
    assert float(left.norm()) == pytest.approx(1, rel=1e-5)
    assert float(left @ start) >= -1e-6


@pytest.mark.parametrize("gap", [0.1, 0.01, 0.001])
def test_two_singular_values_that_change_places_are_told_apart(gap):
    u, _, v = torch.linalg.svd(torch.randn(64, 576, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    weight = u @ torch.diag(torch.linspace(1 - gap, 0.1, 64).index_fill(0, torch.tensor([0]), 1.0)) @ v

    left, right = leading_vectors(weight.view(64, 64, 3, 3), 0, u[:, 1])

    assert 1 / float(left @ as_matrix(weight.view(64, 64, 3, 3), 0) @ right) == pytest.approx(1, rel=1e-5)


def test_a_weight_of_zeros_has_finite_vectors():
    left, right = leading_vectors(torch.zeros(4, 6), 0, torch.ones(4) / 2)

    assert left.isfinite().all()
    assert right.isfinite().all()
