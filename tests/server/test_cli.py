"""``fed-server`` as the coordinator's engineer types it; what it keeps up is in test_up.py."""

import builtins
from importlib.metadata import version

import pytest

from fedgan.identity import Invitation, key_fingerprint, new_key, request_signature
from server.authority import Enrolment
from server.cli import main
from server.home import home_at


@pytest.fixture
def fed_server(tmp_path):
    """Run a command in the home of this test."""

    def run(command, *words):
        return main([command, "--home", str(tmp_path / "home"), *words])

    return run


@pytest.fixture
def asked(fed_server, tmp_path, capsys):
    """A federation in which site A has asked to be signed, and A's key."""
    fed_server("init", "--sites", "A,B", "--address", "coordinator.example:9443")
    capsys.readouterr()
    key, enrolment = new_key(), Enrolment(home_at(tmp_path / "home"))
    invitation = Invitation.decode((tmp_path / "home/invitations/A.txt").read_text())
    enrolment.receive(invitation.secret, request_signature(key, "A"))
    return key


def test_init_leaves_an_invitation_per_site_and_says_where_but_shows_no_secret(fed_server, tmp_path, capsys):
    assert fed_server("init", "--sites", "A,B", "--address", "coordinator.example:9443") == 0

    printed = capsys.readouterr().out
    files = [tmp_path / "home/invitations" / f"{site}.txt" for site in "AB"]
    assert all(str(file) in printed for file in files)
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    assert files[0].read_text().strip() not in printed
    assert "fed-server up" in printed


def test_a_second_init_is_refused_in_one_line(fed_server, capsys):
    fed_server("init")
    capsys.readouterr()

    code = fed_server("init")

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "holds a federation already" in refusal


@pytest.mark.parametrize("words", [["--sites", "A,../B"], ["--address", "coordinator"], ["--address", "c:99999"]])
def test_what_cannot_be_a_name_or_an_address_is_refused(fed_server, words, capsys):
    with pytest.raises(SystemExit, match="2"):
        fed_server("init", *words)

    assert "fed-server init: error: argument" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "code"), [("y", 0), ("Y", 0), ("", 1), ("n", 1)])
def test_approve_shows_the_key_and_asks(fed_server, asked, monkeypatch, capsys, typed, code):
    monkeypatch.setattr(builtins, "input", lambda question: typed)

    assert fed_server("approve", "A") == code

    assert key_fingerprint(asked.public_key()) in capsys.readouterr().out
    fed_server("list")
    assert ("approved" in capsys.readouterr().out) == (code == 0)


def test_a_site_that_has_not_asked_is_not_approved(fed_server, asked, capsys):
    code = fed_server("approve", "B", "--yes")

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "fed-client --site B enrol" in refusal


def test_list_shows_how_far_each_site_is_and_until_when(fed_server, asked, capsys):
    fed_server("approve", "A", "--yes")
    fed_server("revoke", "B")
    fed_server("invite", "C")
    capsys.readouterr()

    fed_server("list")

    table = capsys.readouterr().out
    assert [state in table for state in ("approved", "revoked", "invited")] == [True, True, True]
    assert "364 days" in table
    assert "13 days" in table


@pytest.mark.parametrize("words", [["up"], ["stop"], ["list"], ["invite", "A"], ["approve", "A"], ["revoke", "A"]])
def test_without_a_federation_it_says_how_to_make_one(fed_server, words, capsys):
    code = fed_server(*words)

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "make one with fed-server init" in refusal


def test_without_a_command_it_shows_what_there_is(capsys):
    assert main([]) == 2

    shown = capsys.readouterr().err
    assert all(command in shown for command in ("init", "up", "invite", "approve", "revoke", "list"))


def test_version_is_the_installed_one(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedgan {version('fedgan')}\n"
