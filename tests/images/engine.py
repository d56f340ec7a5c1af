"""The steps of the images and services, performed without a container engine.

Each image is a folder that processes take for their root, in namespaces of the kernel as containers have them: without
the checkout, and with no network but a loopback. Of this machine there are its system folders, and the packages of
this environment without fedgan, which stand for what a registry would bring; all of them can only be read.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path
from shlex import quote
from typing import IO

from recipes import DOCKER, PROJECT, STAGES, Service, assignments

PYTHON = os.path.realpath(sys.executable)
SYSTEM = {"/usr": "/usr", "/proc": "/proc", "/dev": "/dev", sys.base_prefix: sys.base_prefix}
PACKAGES = {sysconfig.get_path("purelib"): "/environment"}
TEMPORARY = "tmp"
GIVEN = {"PATH": "/venv/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
PIP = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
"""Nothing is downloaded: what is needed is there, also what builds the wheel (pip reads this 0 as a yes)."""

Process = subprocess.Popen[str]


@dataclass
class Engine:
    """Roots, volumes and a network."""

    folder: Path
    network: int
    """A process whose network all share."""
    volumes: dict[str, Path] = field(default_factory=dict)

    def build(self, name: str) -> Path:
        """Perform a stage's steps, after those of the stage that it goes on from, and return its root."""
        root, stage = self.folder / "images" / name, STAGES[name]
        if root.exists():
            return root
        if stage.base in STAGES:
            subprocess.run(["cp", "--archive", "--no-target-directory", self.build(stage.base), root], check=True)
        else:
            self._begin(root)
        folder, arguments = "/", assignments(stage.all("ARG"))
        for word, rest in stage.own:
            if word == "WORKDIR":
                folder = rest
                (root / folder[1:]).mkdir(parents=True, exist_ok=True)
            elif word == "COPY":
                self._copy(rest.split(), root / folder[1:], root)
            elif word == "RUN":
                self._run(root, ["sh", "-ec", rest], arguments | PIP, folder)
        return root

    def start(self, service: Service, words: Sequence[str] | None = None, log: IO[str] | None = None) -> Process:
        """Start a service, or another command where it runs; what it says is in ``log``, or can be read."""
        image = service.image
        root = self.build(service.asked["build"]["target"])
        mounts = {where: (self._volume(what, root / where[1:]), read_only) for what, where, read_only in service.mounts}
        command = self._command(root, words or service.command, image.variables, image.folder, image.user, mounts)
        return subprocess.Popen(command, stdout=log or subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def _begin(self, root: Path) -> None:
        """Make a root with a Python that finds this environment's packages, but not fedgan."""
        for name in (TEMPORARY, "etc", "packages"):
            (root / name).mkdir(parents=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        (root / "etc/hosts").write_text("127.0.0.1 localhost coordinator\n")
        (root / "etc/nsswitch.conf").write_text("hosts: files\n")
        for package in Path(sysconfig.get_path("purelib")).iterdir():
            if "fedgan" not in package.name and package.suffix != ".pth":
                (root / "packages" / package.name).symlink_to(f"/environment/{package.name}")
        self._run(root, [PYTHON, "-m", "venv", "--without-pip", "/venv"], {}, "/")
        (site,) = (root / "venv/lib").glob("python*/site-packages")
        (site / "packages.pth").write_text("/packages\n")
        for entry in distribution("flwr").entry_points.select(group="console_scripts"):
            script = root / "venv/bin" / entry.name
            script.write_text(f"#!/venv/bin/python\nfrom {entry.module} import {entry.attr} as main\n\nmain()\n")
            script.chmod(0o755)

    def _copy(self, words: list[str], folder: Path, root: Path) -> None:
        source = self.build(words.pop(0).partition("=")[2]) if words[0].startswith("--from=") else PROJECT
        *names, into = words
        target = root / into[1:] if into.startswith("/") else folder / into
        for path in (source / name.lstrip("/") for name in names):
            if path.is_dir():
                shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, target)

    def _volume(self, what: str, shown: Path) -> Path:
        """Return what is mounted; a volume that is new begins as what the image has there, and belongs to whom."""
        if what.startswith("."):
            return DOCKER / what
        if what not in self.volumes:
            volume = self.volumes[what] = self.folder / "volumes" / what
            volume.parent.mkdir(exist_ok=True)
            shown.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "--archive", "--no-target-directory", shown, volume], check=True)
        return self.volumes[what]

    def _run(self, root: Path, words: Sequence[str], variables: Mapping[str, str], folder: str) -> None:
        command = self._command(root, words, variables, folder)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"

    def _command(
        self,
        root: Path,
        words: Sequence[str],
        variables: Mapping[str, str],
        folder: str,
        user: tuple[int, int] | None = None,
        mounts: Mapping[str, tuple[Path, bool]] | None = None,
    ) -> list[str]:
        """Return what runs ``words`` in a root; as ``user`` without any privilege, in a root that can only be read."""
        steps = ["PATH=$PATH:/usr/sbin:/sbin", f"mount --bind {root} {root}"]
        for source, target in {**SYSTEM, **PACKAGES}.items():
            steps += [f"mkdir -p {root}{target}", f"mount --rbind {source} {root}{target}"]
            if target not in ("/proc", "/dev"):
                steps.append(f"mount -o remount,bind,ro {root}{target}")
        confined = []
        if user:
            for target, (source, read_only) in (mounts or {}).items():
                make = "mkdir -p" if source.is_dir() else "touch"
                steps += [f"test -e {root}{target} || {make} {root}{target}", f"mount --bind {source} {root}{target}"]
                steps += [f"mount -o remount,bind,ro {root}{target}"] * read_only
            steps += [f"mount -o remount,bind,ro {root}", f"mount -t tmpfs -o mode=1777 tmpfs {root / TEMPORARY}"]
            confined = ["setpriv", f"--reuid={user[0]}", f"--regid={user[1]}", "--clear-groups"]
            confined += ["--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        given = [f"{name}={value}" for name, value in (GIVEN | variables).items()]
        env = ["env", "--ignore-environment", f"--chdir={folder}", *given]
        inside = ["chroot", str(root), *confined, *env, *words]
        script = "\n".join([*steps, f"exec {' '.join(map(quote, inside))}"])
        alone = ["unshare", "--mount", "--propagation=private", "sh", "-ec", script]
        return ["nsenter", f"--net=/proc/{self.network}/ns/net", "--", *alone]


@contextmanager
def loopback_alone() -> Iterator[int]:
    """Give a process that has a network of its own, with nothing in it but a loopback.

    Raises:
        OSError: the kernel does not let this user.
    """
    command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        if not holder.stdout or holder.stdout.readline() != "up\n":
            raise OSError("no namespaces")
        yield holder.pid
