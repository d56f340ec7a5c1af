"""A site's folder with a policy of tiny phantoms, and the terms of a run that it can answer in a second."""

from pathlib import Path

import pytest
import yaml

from client.policy import DEFAULT
from fedgan.settings import Terms

PHANTOMS = {"kind": "phantoms", "patients": 16, "images_per_patient": 1, "seed": 0}


@pytest.fixture
def site_home(tmp_path):
    """Return a function that makes a site's folder, with what it is given changed in the default policy."""

    def made(name: str = "A", **changes: object) -> Path:
        home = tmp_path / f"site-{name}"
        home.mkdir(mode=0o700, exist_ok=True)
        policy = {**yaml.safe_load(DEFAULT), "scans": PHANTOMS, "device": "cpu", "threads": 1, **changes}
        (home / "policy.yaml").write_text(yaml.safe_dump(policy))
        return home

    return made


@pytest.fixture
def terms(tiny):
    """Return a function that gives the terms of a tiny run with overrides."""

    def made(*overrides: str) -> Terms:
        settings = tiny(*overrides).model_dump()
        known = {name: settings[name] for name in Terms.model_fields}
        scans = settings["data"]
        known["data"] = {"size": scans["size"], "diseases": scans["diseases"], "intensity": "range"}
        return Terms.model_validate({**known, "name": "tiny"})

    return made
