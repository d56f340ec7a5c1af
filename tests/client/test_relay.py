"""The relay carries a message to a worker and its answer back, survives the worker's death, and says only classes."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.frames import CALL, NUMBER, SERVICE, read_frames, write_frames
from client.relay import WorkerLost, ask_worker

WEIGHTS = np.arange(3, dtype=np.float32)
TASK = RecordDict({"task": ConfigRecord({"round": 3}), "weights": ArrayRecord({"w": Array(WEIGHTS)})})


@contextmanager
def worker(socket, answer):
    """Serve ``answer(frames, context)`` behind ``socket``, as the worker does."""
    server = grpc.server(ThreadPoolExecutor(2))
    method = grpc.stream_stream_rpc_method_handler(answer)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {CALL: method})])
    server.add_insecure_port(f"unix:{socket}")
    server.start()
    try:
        yield server
    finally:
        server.stop(None).wait()


def test_the_relay_starts_without_torch_and_without_fedgan():
    said = subprocess.run(
        [sys.executable, "-c", "import client.relay, sys; print({'torch', 'fedgan'} & set(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )

    assert said.stdout.strip() == "set()"


def test_a_task_and_its_number_reach_the_worker_and_its_answer_comes_back(tmp_path):
    seen = {}

    def answer(frames, context):
        seen.update(dict(context.invocation_metadata()), content=read_frames(frames, max_bytes=1000))
        return write_frames(RecordDict({"update": ConfigRecord({"round": 3})}))

    with worker(tmp_path / "s", answer):
        got = ask_worker(TASK, str(tmp_path / "s"), number="0f3a", timeout_s=30)

    assert got["update"]["round"] == 3
    assert seen[NUMBER] == "0f3a"
    assert np.array_equal(seen["content"]["weights"]["w"].numpy(), WEIGHTS)


def test_a_task_is_given_again_to_the_worker_that_comes_after_one_that_died(tmp_path):
    arrived, gone = threading.Event(), threading.Event()

    def dies(frames, context):
        arrived.set()
        gone.wait(30)
        return iter(())

    with ThreadPoolExecutor(1) as pool:
        with worker(tmp_path / "s", dies):
            asked = pool.submit(ask_worker, TASK, str(tmp_path / "s"), number="1", timeout_s=60)
            assert arrived.wait(30)
        gone.set()
        with worker(tmp_path / "s", lambda frames, context: write_frames(read_frames(frames, max_bytes=1000))):
            got = asked.result(60)

    assert got["task"]["round"] == 3


def test_without_a_worker_the_task_fails_when_its_time_is_over(tmp_path):
    with pytest.raises(WorkerLost):
        ask_worker(TASK, str(tmp_path / "s"), number="1", timeout_s=0.2)


def test_a_worker_that_breaks_down_over_a_task_is_lost_and_its_words_with_it(tmp_path):
    def breaks(frames, context):
        raise ValueError("/data/patient-0042.png")

    with worker(tmp_path / "s", breaks), pytest.raises(WorkerLost) as lost:
        ask_worker(TASK, str(tmp_path / "s"), number="1", timeout_s=30)

    assert "0042" not in str(lost.value)
