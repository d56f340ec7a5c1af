import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.federated.compression import BLOCK, SCALE, decode, encode, expected, part_of, with_feedback

KINDS = st.sampled_from(["none", "fp16", "int8"])
TENSORS = st.tuples(st.integers(0, 2**31), st.integers(1, 3 * BLOCK), st.floats(1e-6, 100)).map(
    lambda made: made[2] * torch.randn(made[1], generator=torch.Generator().manual_seed(made[0]))
)


@given(TENSORS, KINDS)
def test_what_arrives_is_near_what_was_sent(tensor, kind):
    arrived = decode(encode({"w": tensor}, {"w": kind}))["w"]

    precision = {"none": 0.0, "fp16": 2**-11, "int8": 0.51 / 127}[kind]
    assert arrived.dtype == torch.float32
    assert (arrived - tensor).abs().max() <= precision * tensor.abs().max() + 1e-7


@given(TENSORS, KINDS)
def test_what_travels_is_what_is_expected(tensor, kind):
    encoded = encode({"w": tensor}, {"w": kind})

    found = {name: (part.shape, part.dtype) for name, part in encoded.items()}
    assert found == expected({"w": tensor}, {"w": kind})


@given(TENSORS, KINDS, st.data())
def test_a_part_is_the_part_of_the_whole(tensor, kind, data):
    start = data.draw(st.integers(0, len(tensor) - 1))
    part = slice(start, data.draw(st.integers(start + 1, len(tensor))))
    encoded = encode({"w": tensor}, {"w": kind})

    assert torch.equal(part_of(encoded, "w", part).float(), decode(encoded)["w"][part])


def test_a_large_number_costs_the_other_blocks_nothing():
    tensor = torch.full((2 * BLOCK,), 0.01)
    tensor[0] = 1000.0

    arrived = decode(encode({"w": tensor}, {"w": "int8"}))["w"]

    assert arrived[1].item() == 0.0
    assert arrived[BLOCK:] == pytest.approx(0.01, rel=1e-6)


def test_a_block_of_zeros_stays_one():
    assert decode(encode({"w": torch.zeros(5)}, {"w": "int8"}))["w"].tolist() == [0.0] * 5


def test_eight_bits_are_a_quarter_of_the_traffic():
    encoded = encode({"w": torch.randn(64, 64, 3, 3)}, {"w": "int8"})

    assert sum(part.numel() * part.element_size() for part in encoded.values()) < 0.255 * 4 * 64 * 64 * 9


@given(st.integers(0, 2**31), st.sampled_from(["fp16", "int8"]))
def test_what_one_round_loses_a_later_one_brings(seed, kind):
    rng = torch.Generator().manual_seed(seed)
    steps, residual, arrived = [], {}, torch.zeros(50)
    for _ in range(30):
        steps.append(torch.randn(50, generator=rng))
        encoded, residual = with_feedback({"w": steps[-1]}, residual, {"w": kind})
        arrived += decode(encoded)["w"]

    assert torch.allclose(arrived + residual["w"], torch.stack(steps).sum(0), atol=1e-4)
    assert residual["w"].abs().max() < 0.05


def test_tensors_without_an_encoding_lose_nothing_and_leave_no_residual():
    encoded, residual = with_feedback({"n": torch.tensor(3)}, {}, {})

    assert (encoded["n"].item(), residual) == (3, {})
    assert not any(name.endswith(SCALE) for name in encoded)
