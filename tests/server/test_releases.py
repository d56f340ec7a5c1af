"""What the coordinator keeps of its releases; how sites are given them is in tests/client/test_models.py."""

import asyncio
import json

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from starlette.requests import Request

from fedgan.audit import Audit
from fedgan.errors import ForeignKey, HomeError, TamperedRelease
from fedgan.identity import new_key, private_pem
from fedgan.records import GlobalModel
from fedgan.results.release import CARD, Lineage, verify_release
from server import publishing
from server.authority import found
from server.home import Home
from server.releases import Releases, releases_in, signing_key

KEY = Ed25519PrivateKey.generate()
LINEAGE = Lineage(run="first", rounds=9, chosen=False, settings="0" * 64, sites={}, epsilon={}, metrics={}, drawing={})


@pytest.fixture
def releases(tmp_path):
    return Releases(tmp_path / "releases", KEY.public_key(), Audit(tmp_path / "audit.jsonl"), federation="demo", keep=2)


def publish(releases, number, *, chosen=False, key=KEY):
    lineage = LINEAGE.model_copy(update={"chosen": chosen})
    return publishing.publish(releases, GlobalModel(number, {"w": torch.tensor([float(number)])}), lineage, key)


def kept(tmp_path):
    return sorted(int(folder.name) for folder in (tmp_path / "releases").iterdir())


def test_each_release_follows_from_the_one_before(releases, tmp_path):
    first, second = publish(releases, 1), publish(releases, 2)

    assert (first.card.serial, first.card.previous) == (1, None)
    assert (second.card.serial, second.card.previous) == (2, first.digest)
    assert (second.card.federation, second.card.round) == ("demo", 2)
    assert releases.last() == second == verify_release(second.folder, KEY.public_key())
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(event["event"], event["serial"]) for event in events] == [("model released", 1), ("model released", 2)]


def test_the_last_few_are_kept_and_the_last_result(releases, tmp_path):
    for number, chosen in enumerate((True, True, False, False, False), start=1):
        publish(releases, number, chosen=chosen)

    assert kept(tmp_path) == [2, 4, 5]


def test_what_a_crash_left_of_a_forgotten_release_is_deleted(releases, tmp_path):
    half = publish(releases, 1)
    publish(releases, 2)
    (half.folder / CARD).unlink()

    publish(releases, 3)

    assert kept(tmp_path) == [2, 3]


def test_on_a_full_disk_sites_are_still_given_the_release(releases, tmp_path, full_disk, caplog):
    release = publish(releases, 1)
    while (tmp_path / "audit.jsonl").stat().st_size < 1024:
        Audit(tmp_path / "audit.jsonl").record("something")
    send = releases.endpoints["/federation/releases/{digest}"]

    with full_disk():
        request = Request({"type": "http", "path_params": {"digest": release.card.weights}})
        response = asyncio.run(send("A", request))

    assert response.status_code == 200
    assert "the audit cannot be written" in caplog.text


def test_there_is_no_release_before_the_first(releases):
    assert releases.last() is None


def test_nothing_is_built_upon_a_damaged_release(releases, tmp_path):
    (publish(releases, 1).folder / CARD).write_bytes(b"{}")

    with pytest.raises(TamperedRelease):
        publish(releases, 2)
    assert kept(tmp_path) == [1]


def test_a_key_that_is_not_the_federations_signs_nothing(releases, tmp_path):
    with pytest.raises(ForeignKey, match="is not this federation's"):
        publish(releases, 1, key=Ed25519PrivateKey.generate())

    assert not (tmp_path / "releases").exists()


def test_a_federation_finds_its_releases_and_its_key_in_its_home(tmp_path):
    home = Home(tmp_path / "federation")
    found(home, name="demo", address="127.0.0.1:9443", sites=[])

    release = publish(releases_in(home), 1, key=signing_key(home))

    assert release.folder == home.path / "releases" / "000001"
    assert release.card.federation == "demo"
    assert releases_in(home).last() == release


@pytest.mark.parametrize("content", [b"", b"no key", private_pem(new_key())])
def test_a_damaged_key_signs_nothing(tmp_path, content):
    home = Home(tmp_path / "federation")
    found(home, name="demo", address="127.0.0.1:9443", sites=[])
    home.release_key.write_bytes(content)

    with pytest.raises(HomeError, match="restore it from the backup"):
        signing_key(home)
