import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

import fedgan

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {path.parent for package in ("fedgan", "server", "client") for path in (ROOT / package).rglob("*.py")}


def test_imports_point_down():
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_everything_public_is_named_and_every_name_is_there():
    named = getattr(fedgan, "__all__", [])
    public = {name for name, value in vars(fedgan).items() if name[0] != "_" and not isinstance(value, ModuleType)}

    assert public - {"import_module", "TYPE_CHECKING", "Any"} <= set(named)
    assert all(hasattr(fedgan, name) for name in named)
    assert list(named) == sorted(set(named))


@pytest.mark.parametrize("folder", sorted(FOLDERS), ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_every_package_says_what_it_is(folder):
    assert (folder / "__init__.py").read_text(encoding="utf-8").startswith('"""')


def test_the_tests_shadow_no_package():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("modules", ["client.cli, client.join", "server.cli, server.up, server.engine"])
def test_what_runs_for_weeks_at_either_end_brings_no_pytorch(modules):
    command = [sys.executable, "-c", f"import {modules}, sys; print('torch' in sys.modules)"]

    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert said.split() == ["False"]
