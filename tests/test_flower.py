"""Flower's processes end with us, however we end, and their failures come back in words."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fedgan.flower
from fedgan.errors import EngineFailed, SettingsError
from fedgan.flower import _process_group, run_on_flower

# A process with a child; the second takes no notice of being asked to end.
POLITE, STUBBORN = ("sh", "-c", "sleep 60 & wait"), ("sh", "-c", "trap '' TERM; echo up >&2; sleep 60 & wait; wait")

DYING = """\
import os, sys
from pathlib import Path
from fedgan.flower import _process_group
with _process_group(["sh", "-c", "sleep 60 & wait"], dict(os.environ), Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def is_empty(group: int) -> bool:
    """Return whether no process of ``group`` is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(holds, *, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_what_is_started_ends_with_the_block_and_its_children_too(tmp_path):
    with _process_group(POLITE, dict(os.environ), tmp_path) as process:
        assert not is_empty(process.pid)

    assert is_empty(process.pid)


def test_what_does_not_end_when_asked_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fedgan.flower, "STOP_TIMEOUT_S", 0.2)

    with _process_group(STUBBORN, dict(os.environ), tmp_path) as process:
        assert wait_until(lambda: b"up" in (tmp_path / fedgan.flower.LOG).read_bytes())

    assert wait_until(lambda: is_empty(process.pid))


def test_what_is_started_ends_when_we_are_killed(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(fedgan.flower.__file__).parents[1])}

    killed = subprocess.run([sys.executable, "-c", DYING, tmp_path], env=env, capture_output=True, check=False)

    assert killed.returncode == -9
    assert wait_until(lambda: is_empty(int(killed.stdout)))


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(SettingsError, match=r"pip install 'fedgan\[simulation\]'"):
        run_on_flower(tmp_path, num_sites=2, on_output=print)


@pytest.mark.slow
def test_a_run_that_cannot_begin_fails_with_its_reason(tmp_path):
    pytest.importorskip("ray", reason="Ray, Flower's simulation engine, is not installed")

    with pytest.raises(EngineFailed, match=r"config\.yaml: cannot be read"):
        run_on_flower(tmp_path, num_sites=1, on_output=print)
