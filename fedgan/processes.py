"""Processes that we start: each with its children in a group of its own, and never longer than we live."""

# ruff: noqa: S603 - what is started is the caller's own command, never one that came from elsewhere

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from fedgan.errors import EngineFailed

START_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 10.0

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Before what has ended is started again: twice as long each time, and from the beginning if it had lasted a while."""

STEADY_S = 60.0
"""What has run for so long did not fail because it was started."""

TAIL_BYTES = 2000
"""How much of the end of a log says why a process failed."""

LONGEST_LOG_BYTES = 10 * 2**20

# Becomes the command when it is told to, once there is a guard; its input ends if we die before.
WAITING = ("/bin/sh", "-c", 'read go && exec "$@" </dev/null', "sh")

# Its input ends when we close it or die, whatever we die of.
GUARD = """\
import contextlib, os, signal, sys
sys.stdin.read()
with contextlib.suppress(ProcessLookupError):
    os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""


@contextmanager
def process_group(
    command: Sequence[str], env: dict[str, str], log: Path, *, cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` and what it starts, what they say appended to ``log``, until the block ends or this process dies.

    At the end of the block they are asked to end (SIGTERM), and killed if they take longer than ``STOP_TIMEOUT_S``.
    """
    with (
        started_log(log).open("ab") as file,
        subprocess.Popen(
            [*WAITING, *command],
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
        subprocess.Popen(
            [sys.executable, "-I", "-c", GUARD, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
        ),
    ):
        try:
            _let_go(process)
            yield process
        finally:
            _stop(process)


def keep_running(
    command: Sequence[str],
    env: dict[str, str],
    log: Path,
    *,
    until: threading.Event,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    on_end: Callable[[int], None] = lambda code: None,
) -> None:
    """Run ``command``, and again whenever it ends, with growing pauses between, until the event; then end it.

    ``on_start`` is called with each process, ``on_end`` with each exit code. What they raise ends the process and goes
    on to the caller, except an ``EngineFailed`` from ``on_start``: a process that does not come up is started again.

    Raises:
        As ``on_start`` and ``on_end``.
    """
    pause_s = FIRST_PAUSE_S
    while not until.is_set():
        began = time.monotonic()
        with process_group(command, env, log) as process, suppress(EngineFailed):
            on_start(process)
            while process.poll() is None and not until.wait(0.2):
                pass
        if until.is_set():
            return
        on_end(process.wait())
        pause_s = FIRST_PAUSE_S if time.monotonic() - began > STEADY_S else min(2 * pause_s, LONGEST_PAUSE_S)
        until.wait(pause_s)


def wait_until_open(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``process`` listens on a port of this machine.

    Raises:
        EngineFailed: it has ended, or not begun to listen within ``START_TIMEOUT_S``; the message ends with its log.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise EngineFailed(f"{log.stem} did not start:\n{tail_of(log)}")


def started_log(path: Path) -> Path:
    """Return the log at ``path``; one that has grown long begins anew, and the old one stays beside it."""
    if path.exists() and path.stat().st_size > LONGEST_LOG_BYTES:
        path.replace(path.with_suffix(".log.old"))
    return path


def tail_of(log: Path) -> str:
    """Return the end of a log."""
    return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")


def free_port() -> int:
    """Return a port of this machine's loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def flower_environment(home: Path) -> dict[str, str]:
    """Return the environment of whatever we start of Flower, with Flower's own files in ``home``.

    It reports nothing to its makers, installs nothing, and reaches this machine's own ports past any proxy.
    """
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "NO_PROXY": _listed("127.0.0.1,localhost", "NO_PROXY", ","),
        "no_proxy": _listed("127.0.0.1,localhost", "no_proxy", ","),
        "PYTHONPATH": _listed(str(Path(__file__).parents[1]), "PYTHONPATH", os.pathsep),
        "PATH": _listed(sysconfig.get_path("scripts"), "PATH", os.pathsep),
    }


def _listed(first: str, variable: str, separator: str) -> str:
    return separator.join(filter(None, [first, os.environ.get(variable)]))


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Have what waits become its command."""
    with suppress(BrokenPipeError), cast(IO[bytes], process.stdin) as told:
        told.write(b"\n")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the group of ``process`` to end, and give it time; the guard ends what is left."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with suppress(ProcessLookupError):  # nobody is left
        os.killpg(process.pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)
