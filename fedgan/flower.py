"""Flower's simulation engine on this machine: its processes started, followed and always stopped.

Flower is driven through its command line, the one surface of it that is stable. Nothing is reported to its makers,
nothing is installed at run time, and all its files are in a folder that goes with it.
"""

# ruff: noqa: S603 - every command below is Flower's own, found beside this Python, with arguments made here

import importlib.util
import json
import os
import re
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedgan.bundle import build_bundle, files
from fedgan.errors import EngineFailed, SettingsError
from fedgan.processes import flower_environment, free_port, process_group, wait_until_open

CONNECTION = "simulation"
TESTED = "1.41."
LOG = "engine.log"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


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
        quoted = json.dumps(str(folder.resolve()), ensure_ascii=False)
        app = files("fedgan-simulation", client="client.app", config=f"run-folder = {quoted}")
        bundle = build_bundle(self.home / "bundle", app)
        processes = min(num_sites, os.cpu_count() or 1)
        resources = f"num-supernodes={num_sites} client-resources-num-cpus=1 init-args-num-cpus={processes}"
        return str(self.ask("run", str(bundle), CONNECTION, "--federation-config", resources)["run-id"])

    def ask(self, *words: str) -> dict[str, Any]:
        """Return what the ``flwr`` command answers."""
        return ask_flower(self.env, *words)

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


def check_flower() -> None:
    """Check that Flower is of the version whose undocumented ways, on which a deployment rests, are known.

    Raises:
        SettingsError: it is another.
    """
    found = version("flwr")
    if not found.startswith(TESTED):
        raise SettingsError(
            f"flwr {found} is installed, and only {TESTED}* is known to work: pip install 'flwr>=1.41,<1.42'"
        )


def ask_flower(env: dict[str, str], *words: str) -> dict[str, Any]:
    """Return what the ``flwr`` command answers; its exit code is 0 even when it fails.

    Raises:
        EngineFailed: it fails; the message says why.
    """
    command = ["flwr", *words, "--format", "json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError:
        answer = {"error-message": done.stdout + done.stderr}
    if not answer.get("success"):
        raise EngineFailed(f"flwr {words[0]} was refused: {answer.get('error-message')}")
    return answer


@contextmanager
def _running_engine(home: Path) -> Iterator[_Engine]:
    """Run Flower's two long-lived processes, with their files in ``home``, until the block ends, however it ends."""
    port = free_port()
    (home / "config.toml").write_text(f'[superlink.{CONNECTION}]\naddress = "127.0.0.1:{port}"\ninsecure = true\n')
    secret = home / "secret"
    secret.write_bytes(os.urandom(32))
    # Flower can start its SuperExec itself, but then in a process group that we would not know.
    link = ["flower-superlink", "--simulation", "--host=127.0.0.1", f"--port={port}", "--isolation=process"]
    executor = ["flower-superexec", f"--runtime-api-address=127.0.0.1:{port}"]
    shared = ["--insecure", f"--superexec-auth-secret-file={secret}"]
    env = _environment(home)
    with process_group([*link, *shared], env, home / LOG) as superlink:
        wait_until_open(port, superlink, home / LOG)
        with process_group([*executor, *shared], env, home / LOG) as superexec:
            yield _Engine(home, env, superexec)


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of everything that is started."""
    own = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # sites see the GPU without each having to reserve a share of it
    }
    # Ray puts sockets there, and the path of a socket may have only about a hundred letters.
    return {**flower_environment(home), **own} | ({"RAY_TMPDIR": str(home)} if len(str(home)) < 32 else {})


def _end_after(first: subprocess.Popen[bytes], then: subprocess.Popen[str]) -> None:
    """End ``then`` once ``first`` is gone: without its executor a run never ends, nor does its log."""
    first.wait()
    then.terminate()
