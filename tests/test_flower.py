"""Flower's failures come back in words."""

import sys

import pytest

from fedgan.errors import EngineFailed, SettingsError
from fedgan.flower import check_flower, run_on_flower


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(SettingsError, match=r"pip install 'fedgan\[simulation\]'"):
        run_on_flower(tmp_path, num_sites=2, on_output=print)


def test_another_version_of_flower_is_refused_with_what_to_install(monkeypatch):
    check_flower()
    monkeypatch.setattr("fedgan.flower.version", lambda name: "1.50.0")

    with pytest.raises(SettingsError, match=r"flwr 1\.50\.0 is installed.*pip install 'flwr>=1\.41,<1\.42'"):
        check_flower()


@pytest.mark.slow
def test_a_run_that_cannot_begin_fails_with_its_reason(tmp_path):
    pytest.importorskip("ray", reason="Ray, Flower's simulation engine, is not installed")

    with pytest.raises(EngineFailed, match=r"config\.yaml: cannot be read"):
        run_on_flower(tmp_path, num_sites=1, on_output=print)
