"""From the coordinator's signature to a map at a site: both commands' own processes, through the real fence."""

import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import pytest
from PIL import Image

from client.cli import main as fed_client
from client.home import home_of
from client.link import tls_context
from client.models import open_models
from fedgan.assembly import networks_for
from fedgan.audit import Audit, broken_links
from fedgan.federated.site import weights_of
from fedgan.records import Contribution, GlobalModel, ScanCounts, SiteUpdate
from fedgan.results.releasing import lineage_of
from fedgan.simulation import open_folder
from server.home import Home
from server.publishing import publish
from server.releases import releases_in, signing_key

TIMEOUT_S = 120


def run(module, *words):
    command = [sys.executable, "-m", module, *map(str, words)]
    subprocess.run(command, check=True, timeout=TIMEOUT_S, capture_output=True)


@contextmanager
def running(module, *words):
    process = subprocess.Popen([sys.executable, "-m", module, *map(str, words)], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def wait_for(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def federation(tmp_path):
    """A federation that is up, with site A enrolled, as the two commands leave it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    home, site = tmp_path / "federation", tmp_path / "site-A"
    run("server.cli", "init", "--sites", "A", "--address", address, "--name", "demo", "--home", home)
    invitation = home / "invitations" / "A.txt"
    with running("server.cli", "up", "--home", home):
        with running("client.cli", "--site", "A", "--home", site, "enrol", invitation) as enrolling:
            wait_for(lambda: b'"request": "-----' in (home / "sites.json").read_bytes())
            run("server.cli", "approve", "A", "--yes", "--home", home)
            assert enrolling.wait(TIMEOUT_S) == 0
        yield Home(home), home_of("A", site)


@pytest.mark.slow
def test_a_kept_round_becomes_the_model_with_which_a_site_draws(federation, tiny, tmp_path, capsys):
    coordinator, site = federation
    settings = tiny("model=taggan")
    folder = open_folder(settings, tmp_path / "first")
    folder.write("config.yaml", "seed: 0\n")
    answers = [SiteUpdate("A", 0, "0" * 64, {}, ScanCounts(), {})]
    folder.keep(GlobalModel(1, weights_of(networks_for(settings))), answers, Contribution({}, {}))
    lineage = lineage_of(folder, 1, rounds=2, epsilon={}, chosen=False)
    Image.linear_gradient("L").save(tmp_path / "scan.png")

    publish(releases_in(coordinator), folder.latest(), lineage, signing_key(coordinator))
    address = site.membership().address
    with httpx.Client(base_url=f"https://{address}", verify=tls_context(site), trust_env=False) as link:
        installed = open_models(site).install(link, Audit(site.audit), most_bytes=10**9)
    command = ["--site", "A", "--home", str(site.folder)]
    codes = [
        fed_client([*command, "model"]),
        fed_client([*command, "map", str(tmp_path / "scan.png"), "--out", str(tmp_path / "maps")]),
    ]

    assert codes == [0, 0]
    assert (installed.card.run, installed.card.round) == ("first", 1)
    assert "signature   good" in capsys.readouterr().out
    assert (tmp_path / "maps" / "scan-map.png").exists()
    assert '"event": "release sent"' in (coordinator.path / "audit.jsonl").read_text()
    assert broken_links(coordinator.path / "audit.jsonl") == []


@pytest.mark.slow
def test_nobody_without_a_certificate_is_given_a_release(federation):
    coordinator, site = federation
    url = f"https://{site.membership().address}/federation/releases/latest"
    trust = ssl.create_default_context(cafile=coordinator.authority_certificate)

    answer = httpx.get(url, verify=trust, trust_env=False)

    assert answer.status_code == 401
