"""Tiny settings and phantoms, so that the real loop runs in seconds."""

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import hypothesis
import pytest
import torch

from fedgan.config import load
from fedgan.settings import Simulation

hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is slow, not wrong
hypothesis.settings.load_profile("untimed")

TINY = (
    "data.size=32",
    "data.sites=[A,B]",
    "data.patients=16",
    "data.images_per_patient=1",
    "model.width=4",
    "model.critic_width=4",
    "model.batch_size=2",
    "rounds=2",
    "local_steps=2",
    "bootstrap=20",
    "threads=1",
    "precision=float32",
    "device=cpu",
)


@pytest.fixture(autouse=True)
def one_thread():
    """Keep PyTorch to one thread: quick for tiny networks, and the same sums everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_overrides(tmp_path) -> list[str]:
    """What to put on the command line for two sites and two rounds in seconds."""
    return [*TINY, f"runs={tmp_path}"]


@pytest.fixture
def tiny(tiny_overrides):
    """Settings of two sites and two rounds, from the real configs."""

    def settings(*overrides: str) -> Simulation:
        return load("simulate", Simulation, [*tiny_overrides, *overrides])

    return settings


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """Let no file of this process grow beyond a kilobyte for a while, as when the disk has no room."""

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full
