"""What we start ends with us, however we end, and is started again when it fails."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import fedgan.processes
from fedgan.errors import EngineFailed
from fedgan.processes import flower_environment, free_port, keep_running, process_group, wait_until_open

LOG = "one.log"


# A process with a child; the second takes no notice of being asked to end.
POLITE, STUBBORN = ("sh", "-c", "sleep 60 & wait"), ("sh", "-c", "trap '' TERM; echo up >&2; sleep 60 & wait; wait")

DYING = """\
import os, sys
from pathlib import Path
from fedgan.processes import process_group
with process_group(["sh", "-c", "sleep 60 & wait"], dict(os.environ), Path(sys.argv[1])) as process:
    print(process.pid, flush=True)
    os.kill(os.getpid(), 9)
"""


DYING_EARLY = """\
import os, subprocess, sys
from pathlib import Path
from fedgan.processes import process_group

class Popen(subprocess.Popen):
    started = False

    def __init__(self, *words, **options):
        if Popen.started:
            os.kill(os.getpid(), 9)
        super().__init__(*words, **options)
        Popen.started = True
        print(self.pid, flush=True)

subprocess.Popen = Popen
with process_group(["sh", "-c", "sleep 60 & wait"], dict(os.environ), Path(sys.argv[1])):
    pass
"""


def is_empty(group: int) -> bool:
    """Return whether no process of ``group`` is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(holds, *, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def test_what_is_started_ends_with_the_block_and_its_children_too(tmp_path):
    with process_group(POLITE, dict(os.environ), tmp_path / LOG) as process:
        assert not is_empty(process.pid)

    assert is_empty(process.pid)


def test_what_does_not_end_when_asked_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fedgan.processes, "STOP_TIMEOUT_S", 0.2)

    with process_group(STUBBORN, dict(os.environ), tmp_path / LOG) as process:
        assert wait_until(lambda: b"up" in (tmp_path / LOG).read_bytes())

    assert wait_until(lambda: is_empty(process.pid))


@pytest.mark.parametrize("dying", [DYING, DYING_EARLY], ids=["while it runs", "before it has a guard"])
def test_what_is_started_ends_when_we_are_killed(dying, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(Path(fedgan.processes.__file__).parents[1])}

    killed = subprocess.run([sys.executable, "-c", dying, tmp_path / LOG], env=env, capture_output=True, check=False)

    assert killed.returncode == -9
    assert wait_until(lambda: is_empty(int(killed.stdout)))


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(fedgan.processes, "FIRST_PAUSE_S", 0.01)


def test_what_ends_is_started_again_until_it_is_no_longer_wanted(quick, tmp_path):
    until, codes = threading.Event(), []

    def on_end(code):
        codes.append(code)
        if len(codes) == 3:
            until.set()

    keep_running(["sh", "-c", "echo once; exit 7"], dict(os.environ), tmp_path / LOG, until=until, on_end=on_end)

    assert codes == [7, 7, 7]
    assert (tmp_path / LOG).read_text() == "once\n" * 3


def test_what_runs_is_ended_when_it_is_no_longer_wanted(tmp_path):
    until, started = threading.Event(), []

    def on_start(process):
        started.append(process.pid)
        until.set()

    keep_running(POLITE, dict(os.environ), tmp_path / LOG, until=until, on_start=on_start)

    assert is_empty(*started)


def test_what_does_not_come_up_is_started_again(quick, tmp_path):
    until, starts = threading.Event(), []

    def on_start(process):
        starts.append(process.pid)
        if len(starts) == 2:
            until.set()
        raise EngineFailed("not up")

    keep_running(POLITE, dict(os.environ), tmp_path / LOG, until=until, on_start=on_start)

    assert len(starts) == 2
    assert all(is_empty(group) for group in starts)


def test_who_watches_can_give_up(quick, tmp_path):
    def on_end(code):
        raise EngineFailed(f"ended with {code}")

    with pytest.raises(EngineFailed, match="ended with 3"):
        keep_running(["sh", "-c", "exit 3"], dict(os.environ), tmp_path / LOG, until=threading.Event(), on_end=on_end)


def test_a_log_that_has_grown_long_begins_anew_with_the_next_process(monkeypatch, tmp_path):
    monkeypatch.setattr(fedgan.processes, "LONGEST_LOG_BYTES", 3)

    for word in ("long", "new"):
        with process_group(["echo", word], dict(os.environ), tmp_path / LOG) as process:
            process.wait()

    assert (tmp_path / LOG).read_text() == "new\n"
    assert (tmp_path / f"{LOG}.old").read_text() == "long\n"


def test_what_ends_before_it_listens_is_told_with_its_last_words(tmp_path):
    with (
        process_group(["sh", "-c", "echo no key >&2"], dict(os.environ), tmp_path / LOG) as process,
        pytest.raises(EngineFailed, match="one did not start:\nno key"),
    ):
        wait_until_open(free_port(), process, tmp_path / LOG)


def test_flower_reports_nothing_installs_nothing_and_needs_no_proxy_for_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("NO_PROXY", "pacs.example")

    env = flower_environment(tmp_path)

    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == env["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert env["NO_PROXY"] == "127.0.0.1,localhost,pacs.example"
    assert env["FLWR_HOME"] == str(tmp_path)
