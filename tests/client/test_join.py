"""A site says what stands between it and its coordinator; taking part itself is in tests/test_join.py."""

import threading
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import fedgan.flower
from client.join import join
from fedgan.errors import HomeError, SettingsError, SiteRefused


def coordinator(*, fedgan: str = version("fedgan"), ahead_s: float = 0.0, status: int = 200) -> Starlette:
    async def hello(_request: Request) -> JSONResponse:
        time = datetime.now(UTC) + timedelta(seconds=ahead_s)
        said = {"site": "A", "fedgan": fedgan, "flwr": version("flwr"), "time": time.isoformat()}
        return JSONResponse(said, status)

    return Starlette(routes=[Route("/federation/hello", hello)])


@pytest.fixture
def enrolled(federation, site_home):
    """Return a function that enrols a site whose coordinator is at a port."""

    def enrolled(port):
        home = federation.enrol(site_home(), "A", f"localhost:{port}")
        public = Ed25519PrivateKey.generate().public_key()
        home.release_key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return home

    return enrolled


def told_to_stop() -> threading.Event:
    stop = threading.Event()
    stop.set()
    return stop


@pytest.mark.parametrize(
    ("there", "word"), [({"fedgan": "0.0.9"}, "install the coordinator's versions"), ({"ahead_s": 60.0}, "NTP")]
)
def test_a_site_that_cannot_work_with_its_coordinator_says_so_when_it_starts(enrolled, served, there, word):
    said = []

    join(enrolled(served(coordinator(**there))), say=said.append, stop=told_to_stop())

    assert len(said) == 3
    assert word in said[1]


def test_a_site_that_can_says_nothing_of_it(enrolled, served):
    said = []

    join(enrolled(served(coordinator())), say=said.append, stop=told_to_stop())

    assert [line.split()[0] for line in said] == ["waiting", "stopped"]


def test_a_site_with_an_unknown_flower_does_not_start(enrolled, monkeypatch):
    monkeypatch.setattr(fedgan.flower, "TESTED", "1.0.")

    with pytest.raises(SettingsError, match="pip install"):
        join(enrolled(9), say=[].append, stop=told_to_stop())


def test_a_site_that_is_not_let_in_does_not_start(enrolled, served):
    with pytest.raises(SiteRefused, match="revoked"):
        join(enrolled(served(coordinator(status=401))), say=[].append, stop=told_to_stop())


@pytest.mark.slow
def test_a_site_that_is_enrolled_anew_while_it_takes_part_says_that_it_must_be_started_again(
    enrolled, served, federation
):
    async def forget(_request: Request) -> Response:
        federation.enrol(home.folder, "A", home.membership().address)
        return Response(status_code=401)

    app = coordinator()
    app.router.routes.append(Route("/v1/fleet/{call}", forget, methods=["POST"]))
    home = enrolled(served(app))

    with pytest.raises(HomeError, match="start fed-client again"):
        join(home, say=[].append, stop=threading.Event())
