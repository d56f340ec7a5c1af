"""Flower's SuperExec as its own command starts it, except that what answers a site's task is forked from it.

``python -m client.executor`` takes the words of ``flower-superexec``. For each task that starts ``flwr-clientapp``,
which spends more than a processor second on its imports; here they are made once. A task still has a process of its
own, of which nothing stays, and its token is no longer in a command line, where all users of the machine can read it.

Nor does it ask the SuperNode for tasks all the time: it waits until the gate tells that all of one has arrived. Before
that, what is to answer it would only wait, and longer than for what is still to come.
"""

import gc
import logging
import os
import select
import signal
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult, SubprocessExecutor, factory
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime.run_clientapp import run_clientapp

import client.relay  # noqa: F401 - imported once, for each task
from client.supernode import ARRIVED
from fedgan.bell import Bell

WATCH_S = 10.0
"""For so long at most, tasks are not asked for: while nothing rings, and while one, of which a SuperNode has one at a
time, is being answered."""

log = logging.getLogger(__name__)


class Forking(SubprocessExecutor):
    """Forks this process for each task of a site; whatever else there is starts as Flower starts it."""

    def __init__(self) -> None:
        """Begin without tasks, in Flower's environment."""
        self._bell = Bell(Path(os.environ["FLWR_HOME"]) / ARRIVED)
        self._tasks: dict[int, int] = {}
        """Processes, by the pipe that is closed when they end."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Fork for a task, or start Flower's own program for it where a fork would not be safe."""
        if spec.task_type is not TaskType.CLIENT_APP or not _is_alone():
            log.warning("a task is left to Flower's own program")
            return super().launch(spec)
        ended, lasting = os.pipe()
        process = os.fork()
        if not process:
            _answer(spec)
        os.close(lasting)
        self._tasks[ended] = process
        return LaunchResult.accepted()

    def reconcile(self) -> None:
        """Wait until it is time to ask for tasks, and let go of those that have been answered."""
        if not self._tasks:
            self._bell.wait(WATCH_S)
            return
        ended, _, _ = select.select(self._tasks, (), (), WATCH_S)
        for task in ended:
            os.waitpid(self._tasks.pop(task), 0)
            os.close(task)


def _is_alone() -> bool:
    """Return whether this process is known to have but one thread; a fork may wait for ever for what another held."""
    return sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) == 1


def _answer(spec: ExecutionSpec) -> NoReturn:
    """Be the process of one task, as ``flwr-clientapp`` is, and end."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        run_clientapp(
            runtime_api_address=spec.runtime_api_address,
            token=spec.token,
            insecure=spec.insecure,
            certificates=validate_and_resolve_root_certificates(spec.root_certificates_path, spec.insecure),
            parent_pid=spec.parent_pid,
            runtime_dependency_install=spec.runtime_dependency_install,
        )
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever it is, this process is not to go on as its parent
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # also if the log cannot be written, as on a full disk
            os._exit(code)


def main() -> int:
    """Run the SuperExec until it is told to end."""
    setattr(factory, SubprocessExecutor.__name__, Forking)
    gc.freeze()  # what is here is shared with each fork
    (command,) = entry_points(group="console_scripts", name="flower-superexec")
    return int(command.load()() or 0)


if __name__ == "__main__":
    sys.exit(main())
