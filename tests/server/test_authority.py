"""What the coordinator decides about sites is kept, once, whatever runs beside it, and is audited."""

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from fedgan.audit import broken_links
from fedgan.errors import HomeError, InvitationRefused, RequestRefused
from fedgan.identity import Invitation, new_key, request_signature, site_of
from server.authority import Enrolment, found, renew_server
from server.home import Home


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "federation")
    found(home, name="lungs", address="coordinator.example:9443", sites=["A", "B"])
    return home


def ask(home, site="A"):
    """Invite a site, and have it ask to be signed."""
    enrolment, request = Enrolment(home), request_signature(new_key(), site)
    secret = enrolment.invite(site).secret
    enrolment.receive(secret, request)
    return enrolment, secret, request.decode()


def events(home):
    return [json.loads(line)["event"] for line in (home.path / "audit.jsonl").read_text().splitlines()]


def test_a_federation_is_founded_once(home):
    before = (home.path / "authority/ca.key").read_bytes()

    with pytest.raises(HomeError, match="holds a federation already"):
        found(home, name="lungs", address="coordinator.example:9443", sites=["A"])

    assert (home.path / "authority/ca.key").read_bytes() == before


def test_what_is_secret_is_for_its_owner_alone(home):
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [home.path, *home.path.rglob("*")]}

    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    secrets = [path for path in modes if path.suffix == ".key" or path.name == "sites.json"]
    assert len(secrets) == 4
    assert all(modes[path] == 0o600 for path in secrets)


def test_an_invitation_carries_all_that_a_site_needs(home):
    invitation = Invitation.decode(Enrolment(home).invite("A").encode())

    assert (invitation.site, invitation.federation, invitation.address) == ("A", "lungs", "coordinator.example:9443")
    assert x509.load_pem_x509_certificate(invitation.authority.encode()) == home.authority.certificate


def test_a_secret_is_not_written_down(home):
    secret = Enrolment(home).invite("A").secret

    assert all(secret.encode() not in path.read_bytes() for path in home.path.rglob("*") if path.is_file())


def test_a_site_that_asked_is_signed_and_takes_its_certificate_home(home):
    enrolment, secret, request = ask(home)
    assert enrolment.collect(secret) is None

    enrolment.approve("A", request)

    admission = enrolment.collect(secret)
    assert site_of(x509.load_pem_x509_certificate(admission.certificate.encode())) == "A"
    assert admission.release_key == (home.path / "release.pub").read_text()
    assert [standing.state for standing in enrolment.standings()] == ["approved", "invited"]
    assert events(home)[-2:] == ["asked to be signed", "approved"]
    assert broken_links(home.path / "audit.jsonl") == []


def test_a_site_that_has_not_asked_cannot_be_approved(home):
    with pytest.raises(RequestRefused, match=r"site B waits for nothing \(it is invited\)"):
        Enrolment(home).approve("B", None)


def test_only_the_request_that_a_person_has_seen_is_signed(home):
    enrolment, _, _ = ask(home)

    with pytest.raises(RequestRefused, match="asked with another key"):
        enrolment.approve("A", request_signature(new_key(), "A").decode())


def test_who_is_not_known_is_named_with_those_who_are(home):
    with pytest.raises(RequestRefused, match=r"site X is not known here .known: A, B."):
        Enrolment(home).end("X", "revoked")


def test_a_new_invitation_replaces_the_one_before(home):
    enrolment = Enrolment(home)
    first = enrolment.invite("A").secret
    enrolment.invite("A")

    with pytest.raises(InvitationRefused, match="no invitation like this"):
        enrolment.receive(first, request_signature(new_key(), "A"))


def test_revoking_takes_the_certificate_the_node_and_what_waits(home):
    enrolment, secret, request = ask(home)
    enrolment.approve("A", request)
    enrolment.registry.change(lambda roll: roll.with_entry(roll.entry("A").model_copy(update={"node": 7})))

    enrolment.end("A", "revoked")

    with pytest.raises(InvitationRefused):
        enrolment.collect(secret)
    assert enrolment.standings()[0].state == "revoked"
    assert enrolment.registry.roll.retired == (7,)


def test_a_renewed_site_keeps_its_certificate_until_the_new_one_is_signed_and_then_its_old_node_is_retired(home):
    enrolment, _, request = ask(home)
    enrolment.approve("A", request)
    enrolment.registry.change(lambda roll: roll.with_entry(roll.entry("A").model_copy(update={"node": 7})))
    before = enrolment.registry.roll.entry("A").certificate

    _, _, renewed = ask(home)
    assert enrolment.registry.roll.entry("A").certificate == before
    assert enrolment.standings()[0].state == "waiting"
    enrolment.approve("A", renewed)

    entry = enrolment.registry.roll.entry("A")
    assert (entry.certificate != before, entry.node, enrolment.registry.roll.retired) == (True, None, (7,))


def test_an_invitation_that_nobody_used_expires(home):
    enrolment = Enrolment(home)
    past = datetime.now(UTC) - timedelta(seconds=1)
    enrolment.registry.change(lambda roll: roll.with_entry(roll.entry("A").model_copy(update={"invited_until": past})))

    assert [standing.state for standing in enrolment.standings()] == ["expired", "invited"]


def test_who_changes_it_at_the_same_time_loses_nothing_of_each_other(home):
    def invite(site):
        Enrolment(home).invite(site)  # each with files and a lock of its own, as another process has

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(invite, [f"X{number}" for number in range(20)]))

    assert len(Enrolment(home).registry.roll.sites) == 22
    assert events(home).count("invited") == 22
    assert broken_links(home.path / "audit.jsonl") == []


def test_the_servers_certificate_is_renewed_only_when_it_is_about_to_expire(home, monkeypatch):
    before = home.server_certificate.read_bytes()
    renew_server(home)
    assert home.server_certificate.read_bytes() == before

    monkeypatch.setattr("server.authority.RENEW_BEFORE", timedelta(days=400))
    renew_server(home)

    assert home.server_certificate.read_bytes() != before
    assert events(home)[-1] == "server certificate renewed"


def test_a_damaged_registry_says_what_to_do(home):
    (home.path / "sites.json").write_text("{}x")

    with pytest.raises(HomeError, match=r"damaged; restore it from the backup"):
        Enrolment(home).standings()


def test_a_full_disk_leaves_the_registry_as_it_was(home, full_disk):
    for site in ("C", "D"):
        Enrolment(home).invite(site)
    before = (home.path / "sites.json").read_bytes()

    with full_disk(), pytest.raises(HomeError, match="free the disk"):
        Enrolment(home).invite("E")

    assert (home.path / "sites.json").read_bytes() == before


def test_a_folder_without_a_federation_says_what_to_do(tmp_path):
    with pytest.raises(HomeError, match="make one with fed-server init"):
        Enrolment(Home(tmp_path)).standings()
