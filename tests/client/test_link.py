"""Which way leads to the coordinator: directly, or through the hospital's proxy."""

import pytest

from client.link import proxy_for


@pytest.fixture
def environment(monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_without_a_proxy_the_way_is_direct(environment):
    assert proxy_for("coordinator.example:8443", None) is None


def test_the_environments_proxy_is_taken(environment):
    environment.setenv("HTTPS_PROXY", "http://proxy.hospital.example:3128")

    assert str(proxy_for("coordinator.example:8443", None).url) == "http://proxy.hospital.example:3128"


@pytest.mark.parametrize("address", ["127.0.0.1:8443", "localhost:8443", "[::1]:8443", "near.hospital.example:8443"])
def test_this_machine_and_what_the_environment_exempts_are_reached_directly(environment, address):
    environment.setenv("HTTPS_PROXY", "http://proxy.hospital.example:3128")
    environment.setenv("NO_PROXY", ".hospital.example")

    assert proxy_for(address, None) is None
