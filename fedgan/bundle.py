"""The bundle that Flower ships to sites: two fixed files that only point to the packages installed there.

A site approves bundles by the SHA-256 of what ``flwr build`` makes of them, which is the same for the same files, so
that a coordinator and a site of one version of fedgan agree without a word. What one run differs in from another is
in its tasks, and never in here.
"""

# ruff: noqa: S603 - the command below is Flower's own, with arguments made here

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from fedgan.errors import EngineFailed
from fedgan.processes import flower_environment

_APP = """\
[project]
name = "{name}"
version = "1.0.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedgan"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
{config}
"""


def app_toml(name: str, config: str) -> str:
    """Return what ``pyproject.toml`` says of the app ``name``, with the lines of the run's configuration."""
    return _APP.format(name=name, config=config)


def files(name: str, *, client: str, config: str) -> Mapping[str, str]:
    """Return the files of the bundle ``name``, by their names.

    Args:
        name: of Flower's app.
        client: module in which the site's ``app`` is; the coordinator's is ``server.app``.
        config: the lines of the run's configuration that Flower hands on.
    """
    return {  # Flower looks for plain assignments
        "server_app.py": "import server.app\n\napp = server.app.app\n",
        "client_app.py": f"import {client}\n\napp = {client}.app\n",
        "pyproject.toml": app_toml(name, config),
    }


FILES = files("fedgan-federation", client="client.relay", config='run = ""')
"""What hospitals approve."""

_BUILD = "from flwr.cli.app import app; app()"
"""Flower's command line, of this Python's Flower, whatever else is on the path."""


def build_bundle(folder: Path, texts: Mapping[str, str] = FILES) -> Path:
    """Write a bundle's files into ``folder``, which is made if need be, and return it, for ``flwr run``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return folder


def digest_of_bundle(folder: Path) -> str:
    """Return the SHA-256, in hex, by which Flower and the sites know the bundle in ``folder``.

    Raises:
        EngineFailed: Flower cannot build it.
    """
    with tempfile.TemporaryDirectory(prefix="fedgan-") as home:
        command = [sys.executable, "-P", "-c", _BUILD, "build", "--app", str(folder.absolute())]
        env = flower_environment(Path(home))
        done = subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=False)
        built = list(Path(home).glob("*.fab"))
        if done.returncode or len(built) != 1:
            raise EngineFailed(f"Flower could not build a bundle; is flwr installed whole?\n{done.stderr[-2000:]}")
        return hashlib.sha256(built[0].read_bytes()).hexdigest()


@cache
def bundle_digest() -> str:
    """Return the SHA-256 of the installed bundle.

    Raises:
        EngineFailed: Flower cannot build it.
    """
    with tempfile.TemporaryDirectory(prefix="fedgan-") as folder:
        return digest_of_bundle(build_bundle(Path(folder) / "bundle"))
