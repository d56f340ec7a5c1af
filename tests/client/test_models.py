"""A site installs what its federation released and nothing else, over a link that breaks; real TLS on loopback."""

import json
import logging
import queue
import resource
import ssl
import threading
import time

import httpx
import pytest
import torch
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from PIL import Image
from starlette.applications import Starlette
from starlette.routing import Route

from client.cli import main as fed_client
from client.delivery import install_as_they_come
from client.home import Home
from client.models import Models, open_models
from client.policy import DEFAULT
from fedgan import identity
from fedgan.assembly import networks_for
from fedgan.audit import Audit
from fedgan.errors import (
    ForeignKey,
    ForeignRelease,
    ModelError,
    OlderRelease,
    ReleaseUnavailable,
    TamperedRelease,
)
from fedgan.federated.site import weights_of
from fedgan.model_files import WEIGHTS
from fedgan.records import GlobalModel
from fedgan.results.metrics import SiteContribution
from fedgan.results.release import CARD, SIGNATURE, Lineage, Place
from fedgan.results.releasing import sign_release
from fedgan.simulation import open_folder
from server.publishing import publish
from server.releases import Releases

KEY = Ed25519PrivateKey.generate()
PART = SiteContribution(
    trained=2, failed={"NoAnswer": 1}, shares={"forward_generator": 0.25}, planned_shares={"forward_generator": 0.25}
)


class Breaking:
    """An ASGI application that hands on, and breaks the connection when so many bytes of an answer have gone out."""

    def __init__(self, app):
        self.app = app
        self.most = None
        self.asked = []

    async def __call__(self, scope, receive, send):
        gone = 0
        if scope["type"] == "http":
            self.asked.append((scope["path"], dict(scope["headers"]).get(b"range", b"").decode()))

        async def counted(message):
            nonlocal gone
            body, left = message.get("body", b""), None if self.most is None else self.most - gone
            gone += len(body)
            if left is not None and len(body) > left:
                await send({**message, "body": body[:left], "more_body": True})
                raise ConnectionError("the link breaks")
            await send(message)

        await self.app(scope, receive, counted)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Write an authority, the coordinator's server and site A as files, each readable by TLS."""
    folder, authority = tmp_path_factory.mktemp("tls"), identity.Authority.found("demo")
    key, site = identity.new_key(), identity.new_key()
    server = authority.sign_server(key.public_key(), ["127.0.0.1"])
    of_site = authority.sign_site(identity.request_signature(site, "A"), "A")
    for name, held, certificate in (("server", key, server), ("A", site, of_site)):
        (folder / f"{name}.key").write_bytes(identity.private_pem(held))
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(identity.PEM))
    (folder / "ca.crt").write_bytes(authority.certificate.public_bytes(identity.PEM))
    return folder


@pytest.fixture
def coordinator(tmp_path, tiny):
    """Release models as the federation ``demo``."""
    settings = tiny("model=taggan")
    drawing = open_folder(settings, tmp_path / "run").card
    home = tmp_path / "coordinator"
    home.mkdir()
    audit = Audit(home / "audit.jsonl")

    class Coordinator:
        releases = Releases(home / "releases", KEY.public_key(), audit, federation="demo")

        def lineage(self):
            return Lineage(
                run="first",
                rounds=9,
                chosen=False,
                settings="0" * 64,
                sites={"A": PART, "B": PART},
                epsilon={"A": 1.5, "B": None},
                delta={"A": 1e-5},
                metrics={"pixel_ap": 0.5},
                drawing=drawing,
            )

        def publish(self, number, *, federation="demo", weights=None):
            releases = Releases(home / "releases", KEY.public_key(), audit, federation=federation)
            model = GlobalModel(number, weights or {"w": torch.full((2**18,), float(number))})
            return publish(releases, model, self.lineage(), KEY)

        def networks(self):
            return weights_of(networks_for(settings))

    return Coordinator()


@pytest.fixture
def door(coordinator, certificates):
    """Serve the coordinator's releases over mutual TLS, as its fence does, and tell how it can be broken."""

    def route(path, endpoint):
        async def answer(request):
            return await endpoint("A", request)

        return Route(path, answer)

    app = Breaking(Starlette(routes=[route(*pair) for pair in coordinator.releases.endpoints.items()]))
    config = uvicorn.Config(
        app,
        port=0,
        lifespan="off",
        ws="none",
        log_config=None,
        log_level=logging.CRITICAL,
        ssl_certfile=certificates / "server.crt",
        ssl_keyfile=certificates / "server.key",
        ssl_ca_certs=str(certificates / "ca.crt"),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    app.port = server.servers[0].sockets[0].getsockname()[1]
    yield app
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def link(door, certificates):
    context = ssl.create_default_context(cafile=certificates / "ca.crt")
    context.load_cert_chain(certificates / "A.crt", certificates / "A.key")
    with httpx.Client(base_url=f"https://127.0.0.1:{door.port}", verify=context, trust_env=False) as client:
        yield client


@pytest.fixture
def home(tmp_path, certificates, door):
    """The home of site A, enrolled in the federation ``demo``."""
    home = Home("A", tmp_path / "site-A")
    home.inside("keys")
    home.release_key.write_bytes(identity.public_pem(KEY.public_key()))
    for end, file in (("key", home.key), ("crt", home.certificate)):
        file.write_bytes((certificates / f"A.{end}").read_bytes())
    home.authority.write_bytes((certificates / "ca.crt").read_bytes())
    address = f"127.0.0.1:{door.port}"
    (home.folder / "site.json").write_text(json.dumps({"site": "A", "federation": "demo", "address": address}))
    return home


@pytest.fixture
def site(home, link):
    class Site:
        models = open_models(home)

        def install(self, most_bytes=10**9):
            return self.models.install(link, Audit(home.audit), most_bytes=most_bytes)

        def round(self):
            """Return the round of the installed release, which must be sound."""
            return self.models.verify(self.models.current()).card.round

        def events(self):
            lines = home.audit.read_text().splitlines()
            return [(line["event"], line.get("serial", line.get("reason"))) for line in map(json.loads, lines)]

    return Site()


def test_a_released_model_is_installed_and_the_next_one_after_it(site, coordinator):
    assert site.install() is None

    coordinator.publish(1)
    first = site.install()
    nothing = site.install()
    coordinator.publish(2)
    second = site.install()

    assert nothing is None
    assert (first.card.serial, second.card.serial, second.card.previous) == (1, 2, first.digest)
    assert site.round() == 2
    assert site.events() == [("model installed", 1), ("model installed", 2)]


def test_a_site_that_was_away_installs_the_last(site, coordinator):
    coordinator.publish(1)
    site.install()
    for number in range(2, 8):
        coordinator.publish(number)

    site.install()

    assert site.round() == 7


def test_only_the_last_few_are_kept(site, coordinator, home):
    for number in range(1, 8):
        coordinator.publish(number)
        site.install()

    assert [folder.name for folder in site.models.folders()] == [f"{serial:06d}" for serial in range(7, 2, -1)]
    assert {path.name for path in (home.folder / "models").iterdir()} - {"current"} == {f"{n:06d}" for n in range(3, 8)}


def test_a_download_that_breaks_goes_on_where_it_ended(site, coordinator, door):
    coordinator.publish(1)
    site.install()
    released = coordinator.publish(2)
    door.most = 300_000
    door.asked.clear()

    for _ in range(2):
        with pytest.raises(ReleaseUnavailable, match="goes on where it ended"):
            site.install()
    half = site.round()
    door.most = None
    site.install()

    starts = [int(asked.removeprefix("bytes=").rstrip("-")) for path, asked in door.asked if asked]
    assert half == 1
    assert starts[0] == 0
    assert 0 < starts[1] < starts[2] < released.card.num_bytes
    assert site.round() == 2


def test_what_has_arrived_of_a_release_is_given_up_for_a_newer_one(site, coordinator, door, home):
    coordinator.publish(1)
    door.most = 300_000
    with pytest.raises(ReleaseUnavailable):
        site.install()
    coordinator.publish(2)
    door.most = None

    site.install()

    assert site.round() == 2
    assert not list((home.folder / "models").glob("*.incoming"))


@pytest.mark.parametrize("change", [b"", b"more"], ids=["shorter", "longer"])
def test_weights_of_another_length_than_announced_are_refused(site, coordinator, change):
    file = coordinator.publish(1).folder / WEIGHTS
    content = file.read_bytes()
    file.write_bytes(content + change if change else content[:-1])

    with pytest.raises(TamperedRelease):
        site.install()

    assert site.models.current() is None


def test_tampered_weights_are_refused_and_forgotten(site, coordinator):
    coordinator.publish(1)
    site.install()
    file = coordinator.publish(2).folder / WEIGHTS
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))

    with pytest.raises(TamperedRelease, match="release 2 are not those that were signed"):
        site.install()
    before = site.round()
    file.write_bytes(whole)
    site.install()

    assert (before, site.round()) == (1, 2)
    assert site.events()[1] == ("model refused", "TamperedRelease")


def rewrite(folder, **changes):
    """Change a released card and sign it again, as who has stolen the key could."""
    content = json.dumps({**json.loads((folder / CARD).read_text()), **changes}).encode()
    (folder / CARD).write_bytes(content)
    (folder / SIGNATURE).write_bytes(KEY.sign(content))


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"federation": "other"}, ForeignRelease),
        ({"serial": 1}, OlderRelease),
        ({"previous": "0" * 64}, OlderRelease),
        ({"drawing": {"model": {"kind": "unheard"}}}, ModelError),
    ],
)
def test_a_release_out_of_place_leaves_the_model_before(site, coordinator, change, refusal):
    coordinator.publish(1)
    site.install()
    rewrite(coordinator.publish(2).folder, **change)

    with pytest.raises(refusal):
        site.install()

    assert site.round() == 1
    assert site.events()[1:] == [("model refused", refusal.__name__)]


def test_a_release_signed_with_another_key_is_refused(link, coordinator, home):
    coordinator.publish(1)
    models = Models(home.folder / "models", Ed25519PrivateKey.generate().public_key(), federation="demo")

    with pytest.raises(ForeignKey):
        models.install(link, Audit(home.audit), most_bytes=10**9)

    assert models.current() is None


def test_a_site_that_has_left_another_federation_keeps_nothing_of_it(site, coordinator, home):
    lineage = coordinator.lineage()
    for serial in range(10, 16):
        place = Place(federation="before", serial=serial, previous=None)
        folder = home.inside("models") / f"{serial:06d}"
        sign_release(folder, GlobalModel(1, {"w": torch.zeros(1)}), lineage, place, Ed25519PrivateKey.generate())
    (home.folder / "models" / "current").symlink_to("000015")
    coordinator.publish(1)

    site.install()

    assert [folder.name for folder in site.models.folders()] == ["000001"]
    assert site.round() == 1


def test_a_release_longer_than_the_policy_allows_is_refused_before_it_is_fetched(site, coordinator, door):
    released = coordinator.publish(1)

    with pytest.raises(ModelError, match="longest_task"):
        site.install(most_bytes=released.card.num_bytes - 1)

    assert [path for path, _ in door.asked] == ["/federation/releases/latest"]
    assert site.events() == [("model refused", "ModelError")]
    assert site.install(most_bytes=released.card.num_bytes)


def test_a_release_for_which_the_disk_has_no_room_leaves_none_of_itself_there(site, coordinator, home):
    coordinator.publish(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))

    try:
        with pytest.raises(ReleaseUnavailable, match="free space"):
            site.install()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert list((home.folder / "models").iterdir()) == []
    assert site.install()


class Crash(BaseException):
    """The power is gone."""


@pytest.mark.parametrize(
    "step",
    [
        "client.models._fetch",
        "client.models.write_card",
        "shutil.rmtree",
        "pathlib.Path.rename",
        "client.models.Models._switch_to",
    ],
)
def test_a_crash_at_any_step_leaves_a_sound_model_and_the_next_attempt_installs(
    site, coordinator, monkeypatch, step, home
):
    for number in range(1, 6):
        coordinator.publish(number)
        site.install()
    coordinator.publish(6)

    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patched:
        patched.setattr(step, crash)
        with pytest.raises(Crash):
            site.install()
    after_crash = site.round()
    site.install()

    assert (after_crash, site.round()) == (5, 6)
    assert {path.name for path in (home.folder / "models").iterdir()} - {"current"} == {f"{n:06d}" for n in range(2, 7)}


def test_an_installed_release_that_is_damaged_is_fetched_again_once_it_is_deleted(site, coordinator):
    coordinator.publish(1)
    site.install()
    folder = site.models.current()
    (folder / WEIGHTS).write_bytes(b"")

    with pytest.raises(TamperedRelease, match="delete the folder"):
        site.round()
    for file in folder.iterdir():
        file.unlink()
    site.install()

    assert site.round() == 1


def test_a_coordinator_that_cannot_be_reached_is_tried_later(home, site):
    with (
        httpx.Client(base_url="https://127.0.0.1:1", trust_env=False) as nowhere,
        pytest.raises(ReleaseUnavailable, match="try later"),
    ):
        site.models.install(nowhere, Audit(home.audit), most_bytes=10**9)

    assert site.models.current() is None


def test_who_has_no_certificate_gets_no_release(door, certificates, coordinator):
    coordinator.publish(1)
    context = ssl.create_default_context(cafile=certificates / "ca.crt")

    with (
        httpx.Client(base_url=f"https://127.0.0.1:{door.port}", verify=context, trust_env=False) as outsider,
        pytest.raises(httpx.HTTPError),
    ):
        outsider.get("/federation/releases/latest")

    assert door.asked == []


def test_a_disk_without_room_keeps_what_there_is(site, coordinator, full_disk):
    coordinator.publish(1)
    site.install()
    coordinator.publish(2)

    with full_disk(), pytest.raises(ReleaseUnavailable, match="free space"):
        site.install()

    assert site.round() == 1
    site.install()
    assert site.round() == 2


def test_the_site_is_told_who_made_its_model(site, coordinator, home, capsys):
    coordinator.publish(1)
    site.install()
    coordinator.publish(2)
    site.install()

    code = fed_client(["--site", "A", "--home", str(home.folder), "model"])

    first, *lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert first.startswith("Release 2 of 20")
    assert first.endswith("UTC: round 2 of 9 of run first, installed for drawing maps")
    assert any("signature   good" in line for line in lines)
    assert "    A  in 2 round(s), missing in 1; forward_generator 25%; epsilon 1.50 at delta 1e-05" in lines
    assert "    B  in 2 round(s), missing in 1; forward_generator 25%; no privacy promised" in lines
    assert lines[-1].startswith("Also kept: Release 1 of ")


def test_a_model_that_was_changed_is_neither_praised_nor_drawn_with(site, coordinator, home, tmp_path, capsys):
    coordinator.publish(1)
    site.install()
    with (site.models.current() / WEIGHTS).open("ab") as file:
        file.write(b"\0")

    codes = [
        fed_client(["--site", "A", "--home", str(home.folder), *words]) for words in (["model"], ["map", "scan.png"])
    ]

    told = capsys.readouterr()
    assert codes == [1, 1]
    assert told.out == ""
    assert all("are not those that were signed" in line for line in told.err.splitlines())


@pytest.mark.parametrize("words", [["model"], ["map", "scan.png"]])
def test_a_site_that_is_not_enrolled_is_told_so(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)

    assert fed_client(["--site", "A", *words]) == 1

    assert "the site is not enrolled yet" in capsys.readouterr().err


def test_maps_are_drawn_with_the_installed_model(site, coordinator, home, tmp_path, monkeypatch, capsys):
    coordinator.publish(1, weights=coordinator.networks())
    site.install()
    monkeypatch.setenv("FEDGAN_HOME", str(home.folder))
    picture = tmp_path / "scan.png"
    Image.linear_gradient("L").save(picture)

    code = fed_client(["--site", "A", "map", str(picture), "--out", str(tmp_path / "maps")])

    assert code == 0
    assert (tmp_path / "maps" / "scan-map.png").exists()


def test_a_site_that_takes_part_installs_what_is_released(coordinator, home, site, monkeypatch):
    monkeypatch.setattr("client.delivery.LOOK_S", 0.02)
    home.policy.write_text(DEFAULT)
    said, stop = queue.Queue(), threading.Event()
    part = threading.Thread(
        target=install_as_they_come, args=(home, home.membership()), kwargs={"say": said.put, "stop": stop}
    )
    part.start()

    coordinator.publish(1)
    first = said.get(timeout=30)
    coordinator.publish(2, federation="other")
    second = said.get(timeout=30)
    stop.set()
    part.join(30)

    assert first == "release 1 installed: round 1 of 9 of run first"
    assert second.startswith("the installed model stays: a release is of another federation than demo")
    assert site.round() == 1
