"""Flower's failures come back in words."""

import sys

import pytest

from fedgan.errors import EngineFailed, SettingsError
from fedgan.flower import run_on_flower


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(SettingsError, match=r"pip install 'fedgan\[simulation\]'"):
        run_on_flower(tmp_path, num_sites=2, on_output=print)


@pytest.mark.slow
def test_a_run_that_cannot_begin_fails_with_its_reason(tmp_path):
    pytest.importorskip("ray", reason="Ray, Flower's simulation engine, is not installed")

    with pytest.raises(EngineFailed, match=r"config\.yaml: cannot be read"):
        run_on_flower(tmp_path, num_sites=1, on_output=print)
