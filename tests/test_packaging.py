import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedgan", "server", "client")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def shipped(folder):
    paths = (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(ROOT).as_posix() for path in paths}


def imported():
    """Return the top-level modules that the packages import, ours and Python's own left out."""
    modules = set()
    for file in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module)
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - set(PACKAGES)


def normalised(requirement):
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower().replace("_", "-")


def test_every_import_is_declared_and_every_dependency_is_imported():
    owners = packages_distributions()
    extra = {normalised(name) for name in PROJECT["optional-dependencies"]["simulation"]} | {"ray", "pydantic-core"}

    needed = {normalised(owners[module][0]) for module in imported()}

    declared = {normalised(name) for name in PROJECT["dependencies"]}
    assert needed - extra == declared - extra


@pytest.mark.parametrize(("command", "target"), PROJECT["scripts"].items())
def test_every_command_leads_to_a_function(command, target):
    module, _, function = target.partition(":")

    assert callable(getattr(import_module(module), function)), command


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Install the wheel into an empty folder that comes before this checkout on the path."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture
def run(installed, tmp_path):
    """Return how to run a command of the installed wheel in an empty folder; the result is what it printed."""

    def run(*command):
        environment = os.environ | {"PYTHONPATH": str(installed), "PYTHONSAFEPATH": "1"}
        ended = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert list(tmp_path.iterdir()) == []
        return ended.stdout

    return run


@pytest.mark.slow
def test_the_wheel_holds_the_packages_their_configuration_and_nothing_else(wheel):
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())

    about = {name for name in names if name.startswith(f"fedgan-{PROJECT['version']}.dist-info/")}
    source = set().union(*map(shipped, PACKAGES))
    assert names - about == source | {f"fedgan/{name}" for name in shipped("configs")}
    assert any(name.endswith("licenses/LICENSE") for name in about)


@pytest.mark.slow
def test_an_installed_wheel_finds_its_own_configuration(run, installed):
    printed = run(
        sys.executable,
        "-c",
        "from fedgan import config; from fedgan.settings import Simulation; "
        "print(config.__file__); config.load('simulate', Simulation, ['experiment=tiny'])",
    )

    assert Path(printed.strip()).is_relative_to(installed)


@pytest.mark.slow
@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_every_installed_command_helps_from_an_empty_folder(run, installed, command):
    assert command in run(sys.executable, installed / "bin" / command, "--help")


@pytest.mark.slow
def test_the_generic_package_names_are_ours_alone(run):
    owners = json.loads(
        run(
            sys.executable,
            "-c",
            "import json; from importlib.metadata import packages_distributions as owners; print(json.dumps(owners()))",
        )
    )

    assert [owners[name] for name in PACKAGES] == [["fedgan"]] * 3
