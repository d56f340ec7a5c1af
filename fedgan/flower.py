"""Flower's simulation engine on this machine: its processes started, followed and always stopped.

Flower is driven through its command line, the one surface of it that is stable. Nothing is reported to its makers,
nothing is installed at run time, and all its files are in a folder that goes with it.
"""

# ruff: noqa: S603 - every command below is Flower's own, found beside this Python, with arguments made here

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgan.errors import EngineFailed, SettingsError

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0
CONNECTION = "simulation"
LOG = "engine.log"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")

# What Flower is given only points to the packages installed here. It looks for plain assignments.
BUNDLE = {
    "server_app.py": "import server.app\n\napp = server.app.app\n",
    "client_app.py": "import client.app\n\napp = client.app.app\n",
    "pyproject.toml": """\
[project]
name = "fedgan-simulation"
version = "1.0.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "fedgan"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

[tool.flwr.app.config]
run-folder = {folder}
""",
}

# Its input ends when we close it or die, whatever we die of.
GUARD = """\
import contextlib, os, signal, sys
sys.stdin.read()
with contextlib.suppress(ProcessLookupError):
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""


def run_on_flower(folder: Path, *, num_sites: int, on_output: Callable[[str], None]) -> None:
    """Train the run in ``folder`` with its sites as nodes of Flower's simulation, handing on each line that is said.

    Raises:
        SettingsError: Ray, which runs Flower's simulated nodes, is not installed.
        EngineFailed: Flower did not start, or the run did not finish; the message ends with its last lines.
    """
    if importlib.util.find_spec("ray") is None:
        raise SettingsError("engine=flower needs Ray: pip install 'fedgan[simulation]', or choose engine=process")
    with (
        tempfile.TemporaryDirectory(prefix="fedgan-", ignore_cleanup_errors=True) as home,
        _running_engine(Path(home)) as engine,
    ):
        number = engine.submit(folder, num_sites)
        tail = engine.follow(number, on_output)
        run = engine.ask("list", CONNECTION, "--run-id", number)["runs"][0]
    if run["status"] != "finished:completed":
        raise EngineFailed(
            "\n  ".join([f"Flower's run is {run['status']}: {run['status-details']}; its last lines:", *tail])
        )


@dataclass(frozen=True, slots=True)
class _Engine:
    """Flower while it runs, and how to speak to it."""

    home: Path
    env: dict[str, str]
    superexec: subprocess.Popen[bytes]

    def submit(self, folder: Path, num_sites: int) -> str:
        """Hand the run in ``folder`` to Flower and return Flower's number for it."""
        bundle = self.home / "bundle"
        bundle.mkdir()
        quoted = json.dumps(str(folder.resolve()), ensure_ascii=False)
        for name, text in BUNDLE.items():
            (bundle / name).write_text(text.replace("{folder}", quoted), encoding="utf-8")
        processes = min(num_sites, os.cpu_count() or 1)
        resources = f"num-supernodes={num_sites} client-resources-num-cpus=1 init-args-num-cpus={processes}"
        return str(self.ask("run", str(bundle), CONNECTION, "--federation-config", resources)["run-id"])

    def ask(self, *words: str) -> dict[str, Any]:
        """Return what the ``flwr`` command answers; its exit code is 0 even when it fails."""
        command = ["flwr", *words, "--format", "json"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"error-message": done.stdout + done.stderr}
        if not answer.get("success"):
            raise EngineFailed(f"flwr {words[0]} was refused: {answer.get('error-message')}")
        return answer

    def follow(self, number: str, on_output: Callable[[str], None]) -> Sequence[str]:
        """Hand on each line of run ``number`` until it ends, and return the last."""
        tail: deque[str] = deque(maxlen=20)
        command = ["flwr", "log", number, CONNECTION]
        log = subprocess.Popen(command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        threading.Thread(target=_end_after, args=(self.superexec, log), daemon=True).start()
        with log:
            try:
                for line in log.stdout or ():
                    tail.append(COLOUR.sub("", line.rstrip()))
                    on_output(tail[-1])
            finally:
                log.terminate()
        return tail


@contextmanager
def _running_engine(home: Path) -> Iterator[_Engine]:
    """Run Flower's two long-lived processes, with their files in ``home``, until the block ends, however it ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / "config.toml").write_text(f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    secret = home / "secret"
    secret.write_bytes(os.urandom(32))
    # Flower can start its SuperExec itself, but then in a process group that we would not know.
    link = ["flower-superlink", "--simulation", "--host=127.0.0.1", f"--port={port}", "--isolation=process"]
    executor = ["flower-superexec", f"--runtime-api-address=127.0.0.1:{port}"]
    shared = ["--insecure", f"--superexec-auth-secret-file={secret}"]
    env = _environment(home)
    with _process_group([*link, *shared], env, home) as superlink:
        _wait_until_open(port, superlink, home / LOG)
        with _process_group([*executor, *shared], env, home) as superexec:
            yield _Engine(home, env, superexec)


@contextmanager
def _process_group(command: Sequence[str], env: dict[str, str], home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` and what it starts, Ray included, until the block ends or this process dies."""
    with (
        (home / LOG).open("ab") as log,
        subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True) as process,
        subprocess.Popen(
            [sys.executable, "-I", "-c", GUARD, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        ),
    ):
        try:
            yield process
        finally:
            _stop(process)


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of everything that is started."""
    own = {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # sites see the GPU without each having to reserve a share of it
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PYTHONPATH": _path(str(Path(__file__).parents[1]), "PYTHONPATH"),
        "PATH": _path(sysconfig.get_path("scripts"), "PATH"),
    }
    # Ray puts sockets there, and the path of a socket may have only about a hundred letters.
    return {**os.environ, **own} | ({"RAY_TMPDIR": str(home)} if len(str(home)) < 32 else {})


def _path(first: str, variable: str) -> str:
    return os.pathsep.join(filter(None, [first, os.environ.get(variable)]))


def _wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise EngineFailed(f"Flower did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _end_after(first: subprocess.Popen[bytes], then: subprocess.Popen[str]) -> None:
    """End ``then`` once ``first`` is gone: without its executor a run never ends, nor does its log."""
    first.wait()
    then.terminate()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the group of ``process`` to end, and give it time; the guard ends what is left."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
