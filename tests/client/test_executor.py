"""A site's SuperExec forks for each task, and does not where that would not be safe; over the network: test_join.py."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from flwr.supercore.constant import ExecutorType
from flwr.supercore.superexec.executor.factory import get_executor
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

BEGINNING = """
import json, os, signal, sys, time
from pathlib import Path
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from client import executor
from fedgan.bell import ring

executor.WATCH_S = 60.0
home = Path(os.environ["FLWR_HOME"])

def task(number, kind=TaskType.CLIENT_APP):
    return ExecutionSpec(kind, "127.0.0.1:9", "token", True, None, False, os.getpid(), False, number)

def carry_out(**words):
    with (home / "carried-out").open("a") as file:
        file.write(f"{os.getpid()} {words['token']}\\n")

def carried_out():
    file = home / "carried-out"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

executor.run_clientapp = carry_out  # Flower's own
forking = executor.Forking()
forking.reconcile()  # the first is never held up
"""

PROGRAM = """#!/bin/sh
echo "program $*" > "$FLWR_HOME/program.partial"
mv "$FLWR_HOME/program.partial" "$FLWR_HOME/program"
"""

WAIT_FOR_PROGRAM = """
deadline = time.monotonic() + 30
while not (home / "program").exists() and time.monotonic() < deadline:
    time.sleep(0.02)
print(json.dumps([carried_out(), (home / "program").read_text()]))
"""


@pytest.fixture
def alone(tmp_path):
    """Run lines in a process of its own, as a fork is best made in one, and return the JSON that they print."""
    program = tmp_path / "bin" / "flwr-clientapp"
    program.parent.mkdir()
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (program.parent / "flwr-serverapp").symlink_to(program)
    env = os.environ | {
        "FLWR_HOME": str(tmp_path),
        "OPENBLAS_NUM_THREADS": "1",
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
    }

    def run(lines):
        command = [sys.executable, "-W", "error::DeprecationWarning:client", "-c", BEGINNING + textwrap.dedent(lines)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_each_task_has_a_process_of_its_own_that_is_gone_after_it(alone):
    carried_out, own, children = alone("""
        for number in (1, 2):
            forking.launch(task(number))
            forking.reconcile()
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        print(json.dumps([carried_out(), os.getpid(), children]))
        """)

    processes = {process for process, _ in carried_out}
    assert len(processes) == 2
    assert str(own) not in processes
    assert [token for _, token in carried_out] == ["token", "token"]
    assert children == []


def test_a_task_that_breaks_down_takes_nothing_with_it(alone):
    ended = alone("""
        def break_down(**words):
            raise RuntimeError("of a task")
        executor.run_clientapp = break_down
        forking.launch(task(1))
        forking.reconcile()
        executor.run_clientapp = carry_out
        forking.launch(task(2))
        forking.reconcile()
        print(json.dumps(len(carried_out())))
        """)

    assert ended == 1


def test_a_task_whose_log_cannot_be_written_does_not_go_on_as_what_it_was_forked_from(alone):
    went_on = alone("""
        executor.run_clientapp = lambda **words: print("waits in memory")
        written, sys.stdout = sys.stdout, open("/dev/full", "w")
        try:
            forking.launch(task(1))
        except OSError:
            (home / "went-on").touch()
            os._exit(0)
        sys.stdout = written
        forking.reconcile()
        print(json.dumps((home / "went-on").exists()))
        """)

    assert not went_on


def test_what_asks_a_task_to_end_reaches_it_and_not_what_its_parent_does_about_it(alone):
    code = alone("""
        signal.signal(signal.SIGTERM, lambda *_: print("[0]"))
        def linger(**words):
            (home / "lingering").touch()
            time.sleep(60)
        executor.run_clientapp = linger
        forking.launch(task(1))
        (process,) = forking._tasks.values()
        deadline = time.monotonic() + 30
        while not (home / "lingering").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process, signal.SIGTERM)
        print(json.dumps([os.waitpid(process, 0)[1]]))
        """)

    assert code == [15]


def test_tasks_are_asked_for_as_soon_as_the_gate_tells_that_one_has_arrived(alone):
    took_s = alone("""
        began = time.monotonic()
        ring(home / executor.ARRIVED)
        forking.reconcile()
        print(json.dumps(time.monotonic() - began))
        """)

    assert took_s < 30


def test_beside_another_thread_flowers_own_program_is_started(alone):
    carried_out, program = alone(f"""
        import threading
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        forking.launch(task(1))
        {textwrap.indent(WAIT_FOR_PROGRAM, " " * 8).strip()}
        """)

    assert carried_out == []
    assert program.startswith("program --runtime-api-address 127.0.0.1:9 --token token")


def test_what_is_no_sites_task_is_left_to_flowers_own_program(alone):
    carried_out, program = alone(f"""
        forking.launch(task(1, TaskType.SERVER_APP))
        {textwrap.indent(WAIT_FOR_PROGRAM, " " * 8).strip()}
        """)

    assert carried_out == []
    assert program.startswith("program")


def test_flowers_superexec_has_the_executor_that_is_replaced():
    assert type(get_executor(ExecutorType.SUBPROCESS)) is SubprocessExecutor


def test_nothing_of_what_is_forked_has_pytorch(alone):
    assert alone("print(json.dumps('torch' in sys.modules))") is False
