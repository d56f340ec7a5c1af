"""The steps of ``docker/``, performed: from the wheel to a model trained between two sites and pushed back to them."""

import os
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from engine import Engine, loopback_alone
from recipes import SERVICES

pytestmark = pytest.mark.slow

WAIT_S = 400.0
SITES = {"A": "site-a", "B": "site-b"}
RUN = ["name=first", "rounds=1", "local_steps=2", "quorum=2", "data.size=32", "data.diseases=[diffuse]"]
RUN += ["model.width=4", "model.critic_width=4"]


@pytest.fixture(scope="module")
def engine():
    """Give an engine in a folder that everybody may enter, as users without a name must."""
    if os.geteuid() != 0 or sys.platform != "linux":
        pytest.skip("only root may give itself up: as another user, neither a root of our own nor a user can be had")
    with ExitStack() as ending:
        try:
            network = ending.enter_context(loopback_alone())
        except OSError as reason:
            pytest.skip(f"the kernel lets nobody have a root and a network of their own here ({reason})")
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="images-", dir="/tmp")))
        folder.chmod(0o755)
        yield Engine(folder, network)


@contextmanager
def up(engine, name):
    """Keep a service up, and end it as an engine does; if the test fails, show what it has said."""
    with tempfile.TemporaryFile("w+") as log, engine.start(SERVICES[name], log=log) as process:
        try:
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(f"{name}:\n{log.read()}")
            raise
        finally:
            process.terminate()
            if process.poll() is None:
                process.wait(60)


def said(engine, name, words=None):
    """Return what a service says until it has ended well, or another command where it runs."""
    with engine.start(SERVICES[name], words) as process:
        output, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, output
    return output


def wait_for(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s: {what}"
        time.sleep(0.5)


def well(engine, name):
    with engine.start(SERVICES[name], SERVICES[name].image.health) as process:
        process.communicate(timeout=60)
    return process.returncode == 0


def test_two_sites_enrol_train_and_get_the_signed_model(engine):
    first = said(engine, "found")
    again = said(engine, "found")
    with ExitStack() as running:
        running.enter_context(up(engine, "coordinator"))
        wait_for(lambda: well(engine, "coordinator"), "the coordinator is well")
        for site, service in SITES.items():
            enrolling = running.enter_context(up(engine, f"enrol-{site.lower()}"))
            wait_for(lambda site=site: "waiting" in said(engine, "coordinator", ["fed-server", "list"]), "it asks")
            said(engine, "coordinator", ["fed-server", "approve", site, "--yes"])
            assert enrolling.wait(WAIT_S) == 0
            running.enter_context(up(engine, service))
        for service in SITES.values():
            wait_for(lambda service=service: well(engine, service), f"{service} is well")
        trained = said(engine, "coordinator", ["fed-server", *RUN])
        models = [engine.volumes[service] / "models/current" for service in SITES.values()]
        wait_for(lambda: all(path.exists() for path in models), "the model is pushed back")
        signed = [said(engine, service, ["fed-client", "--site", site, "model"]) for site, service in SITES.items()]

    assert "Invitation of site A" in first
    assert again == ""
    assert "round 1 is released" in trained
    assert all("first" in card for card in signed)
