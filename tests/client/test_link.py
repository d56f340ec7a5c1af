"""Which way leads to the coordinator, directly or through the hospital's proxy; and how a site leaves it."""

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from client.cli import main as fed_client
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


@pytest.mark.parametrize(("status", "word"), [(204, "has left test"), (401, "revoked"), (502, "502")])
def test_a_site_leaves_when_the_coordinator_says_so(federation, served, site_home, capsys, status, word):
    asked = []

    async def gone(request):
        asked.append((request.method, request.url.path))
        return Response(status_code=status)

    port = served(Starlette(routes=[Route("/federation/leave", gone, methods=["POST"])]))
    home = federation.enrol(site_home(), "A", f"localhost:{port}")

    left = fed_client(["--site", "A", "--home", str(home.folder), "leave"])

    assert left == int(status != 204)
    assert asked == [("POST", "/federation/leave")]
    assert word in "".join(capsys.readouterr())
    assert home.audit.exists() == (status == 204)
