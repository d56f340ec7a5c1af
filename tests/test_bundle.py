"""The bundle is the same wherever it is built, and says nothing but where the installed packages are."""

import os
import subprocess
import sys
import zipfile
from hashlib import sha256

from fedgan.bundle import FILES, build_bundle, bundle_digest

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def test_flower_builds_the_approved_bundle_from_the_files_and_from_nothing_else(tmp_path):
    app = build_bundle(tmp_path / "anywhere")

    subprocess.run(
        [sys.executable, "-c", "from flwr.cli.app import app; app()", "build", "--app", str(app)],
        cwd=tmp_path,
        env={**os.environ, **QUIET, "FLWR_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )

    (built,) = tmp_path.glob("*.fab")
    assert sha256(built.read_bytes()).hexdigest() == bundle_digest()
    assert set(zipfile.ZipFile(built).namelist()) == {*FILES, ".info/CONTENT"}
