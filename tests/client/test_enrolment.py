"""A site enrols over real TLS, whatever comes between, and takes nothing that is not its coordinator's."""

import json
import stat
import threading

import pytest
from cryptography import x509

from client.cli import main as fed_client
from client.enrolment import enrol
from client.home import Home
from fedgan.errors import InvitationRefused, Unreachable
from fedgan.identity import Invitation, fingerprint, load_key, public_key_of, site_of
from server.authority import found
from server.home import Home as CoordinatorHome


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The folder of site A, and what has been said at it."""
    monkeypatch.setattr("client.enrolment.FIRST_PAUSE_S", 0.05)
    return Home("A", tmp_path / "site-A")


def run(home, invitation, *, until=None, expected=None, say=lambda line: None):
    return enrol(home, invitation, expected=expected, proxy_authority=None, say=say, until=until or threading.Event())


class WhenWaiting:
    """Does something once the site says that it waits."""

    def __init__(self, then):
        self.then = then
        self.lines = []

    def __call__(self, line):
        self.lines.append(line)
        if line.startswith("waiting"):
            self.then()


def approve(coordinator, site="A"):
    enrolment = coordinator.enrolment
    enrolment.approve(site, enrolment.registry.roll.entry(site).request)


def test_a_site_is_enrolled_once_the_coordinator_approves(coordinator, site):
    invitation = coordinator.enrolment.invite("A").encode()
    said = WhenWaiting(lambda: approve(coordinator))

    assert run(site, invitation, say=said)

    certificate = x509.load_pem_x509_certificate(site.certificate.read_bytes())
    key = load_key(site.key.read_bytes())
    assert site_of(certificate) == "A"
    assert public_key_of(certificate) == key.public_key()
    assert site.authority.read_bytes() == coordinator.home.authority_certificate.read_bytes()
    assert (site.folder / "keys/release.pub").read_bytes() == coordinator.home.release_public_key.read_bytes()
    assert site.membership().address == f"127.0.0.1:{coordinator.port}"
    assert not (site.folder / "enrolment").exists()
    assert json.loads(site.audit.read_text())["event"] == "enrolled"


def test_its_keys_are_for_its_owner_alone_and_never_leave(coordinator, site):
    run(site, coordinator.enrolment.invite("A").encode(), say=WhenWaiting(lambda: approve(coordinator)))

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (site.folder / "keys").iterdir()}
    assert modes["site.key"] == modes["site.ssh"] == 0o600
    assert stat.S_IMODE((site.folder / "keys").stat().st_mode) == 0o700
    secret = site.key.read_bytes()
    assert all(secret not in path.read_bytes() for path in coordinator.home.path.rglob("*") if path.is_file())


def test_who_is_cut_off_goes_on_waiting_with_the_same_key(coordinator, site):
    invitation, until = coordinator.enrolment.invite("A").encode(), threading.Event()
    assert not run(site, invitation, until=until, say=WhenWaiting(until.set))
    asked = coordinator.enrolment.registry.roll.entry("A").request
    approve(coordinator)

    assert run(site, invitation)

    key = load_key(site.key.read_bytes()).public_key()
    assert x509.load_pem_x509_csr(asked.encode()).public_key() == key


def test_a_crash_before_the_keys_are_in_place_is_mended_by_the_same_command(coordinator, site, monkeypatch):
    invitation = coordinator.enrolment.invite("A").encode()

    def crash(folder, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("pathlib.Path.rename", crash)
        run(site, invitation, say=WhenWaiting(lambda: approve(coordinator)))

    assert run(site, invitation)
    assert site.membership().site == "A"


def test_a_site_is_renewed_with_another_key(coordinator, site):
    for _ in range(2):
        run(site, coordinator.enrolment.invite("A").encode(), say=WhenWaiting(lambda: approve(coordinator)))
        keys = site.key.read_bytes()

    key = load_key(keys).public_key()
    assert coordinator.enrolment.registry.roll.entry("A").signed.public_key() == key
    assert {path.name for path in site.folder.iterdir()} == {"keys", "site.json", "audit.jsonl"}


def test_a_site_that_the_coordinator_refuses_stops_waiting(coordinator, site):
    invitation = coordinator.enrolment.invite("A").encode()
    said = WhenWaiting(lambda: coordinator.enrolment.end("A", "revoked"))

    with pytest.raises(InvitationRefused, match="the coordinator says: no invitation like this is known"):
        run(site, invitation, say=said)


def test_a_used_invitation_is_refused(coordinator, site, tmp_path):
    invitation = coordinator.enrolment.invite("A").encode()
    run(site, invitation, say=WhenWaiting(lambda: approve(coordinator)))

    with pytest.raises(InvitationRefused, match="has been used"):
        run(Home("A", tmp_path / "thief"), invitation)


def test_another_sites_invitation_is_refused(coordinator, site):
    with pytest.raises(InvitationRefused, match="that of site B, not of site A"):
        run(site, coordinator.enrolment.invite("B").encode())


def test_a_wrong_fingerprint_is_refused_before_anything_is_sent(coordinator, site):
    invitation = coordinator.enrolment.invite("A").encode()

    with pytest.raises(InvitationRefused, match="not the expected one"):
        run(site, invitation, expected="00:11")

    assert coordinator.enrolment.registry.roll.entry("A").request is None
    assert not site.folder.exists()


def test_the_right_fingerprint_is_taken_in_any_form(coordinator, site):
    invitation, until = coordinator.enrolment.invite("A").encode(), threading.Event()
    right = fingerprint(coordinator.home.authority.certificate).replace(":", "").upper()

    assert not run(site, invitation, expected=right, until=until, say=WhenWaiting(until.set))


def test_who_is_not_the_coordinator_of_the_invitation_learns_no_secret(coordinator, site, tmp_path):
    stranger = CoordinatorHome(tmp_path / "stranger")
    other = found(stranger, name="lungs", address=f"127.0.0.1:{coordinator.port}", sites=["A"])["A"]

    with pytest.raises(Unreachable, match="not the coordinator of this invitation"):
        run(site, other.encode())


def test_without_a_coordinator_it_says_what_to_look_at(coordinator, site):
    invitation = coordinator.enrolment.invite("A")
    nowhere = Invitation.model_validate({**invitation.model_dump(), "address": "127.0.0.1:1"})

    with pytest.raises(Unreachable, match="does the firewall or proxy let one outgoing connection there"):
        run(site, nowhere.encode())


@pytest.mark.parametrize("coordinator", ["coordinator.example"], indirect=True)
def test_a_site_enrols_through_its_hospitals_proxy_which_its_own_authority_verifies(
    coordinator, site, corporate_proxy, monkeypatch
):
    invitation, said = coordinator.enrolment.invite("A").encode(), WhenWaiting(lambda: approve(coordinator))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)

    with corporate_proxy(coordinator.port) as (port, authority, asked):
        monkeypatch.setenv("HTTPS_PROXY", f"https://127.0.0.1:{port}")
        with pytest.raises(Unreachable):
            run(site, invitation)
        assert asked == []
        done = enrol(site, invitation, expected=None, proxy_authority=authority, say=said, until=threading.Event())

    assert done
    assert set(asked) == {f"CONNECT coordinator.example:{coordinator.port} HTTP/1.1"}


def test_the_command_takes_the_invitation_from_a_file_and_refuses_a_damaged_one_in_one_line(tmp_path, capsys):
    file = tmp_path / "A.txt"
    file.write_text("bm8gaW52aXRhdGlvbg==")

    code = fed_client(["--site", "A", "--home", str(tmp_path / "site-A"), "enrol", str(file)])

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "the invitation is damaged; copy it anew" in refusal
