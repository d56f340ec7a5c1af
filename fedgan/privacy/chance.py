"""Chance that nobody can replay: from the operating system alone, never from a run's seed.

PyTorch's own generators will not do for noise. On a processor, a ``torch.Generator`` uses 32 bits of its seed, so that
whoever sees a noisy sum can try all seeds; and what it has put out tells what it will put out next.
"""

import math
import os

import torch
from torch import Tensor

BITS = 53
"""Of each number in [0, 1): all that float64 holds."""


def secret_uniform(count: int) -> Tensor:
    """Return independent numbers, uniform over the middles of 2^53 equal parts of (0, 1), in float64: (N,)."""
    drawn = torch.frombuffer(bytearray(os.urandom(8 * max(1, count))), dtype=torch.int64)[:count]
    parts: Tensor = (drawn & (2**BITS - 1)).double() + 0.5
    return parts * 2.0**-BITS


def secret_normal(count: int) -> Tensor:
    """Return independent standard normal numbers in float64 (Box and Muller 1958, doi:10.1214/aoms/1177706645): (N,).

    None is larger than 8.7, which 10^17 draws would hardly reach.
    """
    radius, angle = secret_uniform(count + count % 2).view(2, -1)
    radius, angle = (-2 * radius.log()).sqrt(), 2 * math.pi * angle
    return torch.cat([radius * angle.cos(), radius * angle.sin()])[:count]


def secret_stream() -> torch.Generator:
    """Return a random stream for what needs no secrecy, as augmentation, yet must not depend on other patients."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(8)) >> 1)
