"""The check before the first round finds what is wrong, says what to do, and goes on looking."""

import csv
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest
from PIL import Image
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import fedgan.flower
from client.cli import main as fed_client
from client.preflight import preflight

SOUND = {"site": "A", "fedgan": version("fedgan"), "flwr": version("flwr")}


def coordinator(said):
    """Return a coordinator that says something, or whose clock is a number of seconds ahead."""

    async def hello(_request):
        if isinstance(said, int):
            there = datetime.now(UTC) + timedelta(seconds=said)
            return JSONResponse({**SOUND, "time": there.isoformat()})
        return said if isinstance(said, Response) else JSONResponse(said)

    return Starlette(routes=[Route("/federation/hello", hello)])


@pytest.fixture
def found(federation, served, site_home):
    """Look at an enrolled site whose coordinator says something, and return what is found by its name."""

    def look(said=None, **policy):
        address = f"localhost:{served(coordinator(said))}" if said is not None else "localhost:9"
        home = federation.enrol(site_home(**policy), "A", address)
        return {finding.what: finding for finding in preflight(home)}

    return look


def test_a_site_that_can_take_part_is_fine_in_all(found):
    findings = found(0)

    assert [(finding.what, finding.said) for finding in findings.values() if not finding.fine] == []
    assert "of 16 patients" in findings["scans"].said
    assert "holds for 36" in findings["certificate"].said


def test_a_flower_of_an_unknown_version_is_told(found, monkeypatch):
    monkeypatch.setattr(fedgan.flower, "TESTED", "1.0.")

    findings = found(0)

    assert [what for what, finding in findings.items() if not finding.fine] == ["software"]


def test_a_coordinator_that_cannot_be_reached_does_not_hide_the_rest(found):
    findings = found()

    assert [what for what, finding in findings.items() if not finding.fine] == ["coordinator"]
    assert "firewall" in findings["coordinator"].said


@pytest.mark.parametrize("seconds", [-60, 60])
def test_clocks_that_disagree_are_told(found, seconds):
    finding = found(seconds)["coordinator"]

    assert not finding.fine
    assert "NTP" in finding.said


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (Response(status_code=401), "revoked"),
        (Response(status_code=404), "status 404"),
        (Response("no JSON"), "no coordinator"),
        ({**SOUND, "time": "noon"}, "no coordinator"),
        ({**SOUND, "time": "2026-11-21T12:00:00+00:00", "fedgan": "0.0.9"}, "install"),
    ],
)
def test_a_coordinator_that_does_not_let_the_site_in_is_told(found, said, word):
    finding = found(said)["coordinator"]

    assert not finding.fine
    assert word in finding.said


def test_a_manifest_that_is_missing_is_told(found):
    scans = {"kind": "manifest", "root": "x", "manifest": "m.csv", "where": None, "site": None, "cache": "cache"}

    finding = found(0, scans=scans)["scans"]

    assert not finding.fine


SCANS = {"kind": "manifest", "root": "scans", "manifest": "manifest.csv", "where": None, "site": None, "cache": "cache"}


def write_manifest(root, *more):
    """Write a manifest of six scans, and lines besides."""
    root.mkdir()
    with (root / "manifest.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "patient", "label", "disease"])
        for number in range(6):
            Image.effect_noise((64, 64), 20 + number).save(root / f"{number}.png")
            rows.writerow([f"{number}.png", f"P{number}", *(("abnormal", "glioma") if number % 2 else ("normal", ""))])
        rows.writerows(more)


def test_the_scans_of_a_manifest_are_counted_whatever_its_diseases_are_called(found, site_home):
    write_manifest(site_home() / "scans")

    finding = found(0, scans=SCANS)["scans"]

    assert finding.fine, finding.said
    assert finding.said == "3 normal, 3 abnormal scans of 6 patients"


def test_scans_of_diseases_that_the_policy_does_not_give_are_counted_as_left_out(found, site_home):
    root = site_home() / "scans"
    write_manifest(root, ("x.png", "X", "abnormal", "rare"))
    Image.effect_noise((64, 64), 50).save(root / "x.png")

    finding = found(0, scans=SCANS, diseases=["glioma"])["scans"]

    assert finding.fine, finding.said
    assert finding.said == "3 normal, 3 abnormal scans of 6 patients; 1 of other diseases left out"


def test_a_delta_that_is_too_large_for_the_sites_patients_is_told_with_one_that_is_not(found):
    finding = found(0, privacy={"epsilon": None, "delta": 0.05})["scans"]

    assert not finding.fine
    assert "privacy.delta is 0.05" in finding.said
    assert "give 0.01 or less" in finding.said


def test_lines_that_would_be_left_out_because_something_is_wrong_are_told(found, site_home):
    write_manifest(site_home() / "scans", ("gone.png", "X", "abnormal", "glioma"))

    finding = found(0, scans=SCANS)["scans"]

    assert not finding.fine
    assert "line 8: there is no file gone.png" in finding.said


def test_a_policy_that_cannot_be_read_is_told_alone(found):
    findings = found(0, device="tpu")

    assert [what for what, finding in findings.items() if not finding.fine] == ["policy"]


def test_the_command_says_each_finding_and_fails_if_one_is_a_problem(federation, site_home, capsys):
    home = federation.enrol(site_home(), "A", "localhost:9").folder

    code = fed_client(["--site", "A", "--home", str(home), "check"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 1
    assert [line.split()[:2] for line in lines][-2:] == [["ok", "certificate"], ["PROBLEM", "coordinator"]]


def test_a_site_that_is_not_enrolled_is_told_how(site_home, capsys):
    code = fed_client(["--site", "A", "--home", str(site_home())])

    assert code == 1
    assert "fed-client --site A enrol" in capsys.readouterr().err


def test_a_folder_of_another_site_is_not_taken_for_this_one(federation, site_home, capsys):
    home = federation.enrol(site_home(), "B", "localhost:9").folder

    code = fed_client(["--site", "A", "--home", str(home)])

    assert code == 1
    assert "site B" in capsys.readouterr().err


def test_a_site_without_a_policy_is_given_one_to_fill_in(federation, site_home, capsys):
    home = federation.enrol(site_home(), "A", "localhost:9").folder
    (home / "policy.yaml").unlink()

    code = fed_client(["--site", "A", "--home", str(home)])

    assert code == 1
    assert "where the scans are" in capsys.readouterr().err
    assert (home / "policy.yaml").is_file()
