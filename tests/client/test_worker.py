"""The worker's socket: real processes, killed and started anew, and a coordinator that sends what it should not."""

import json
import signal
import socket as sockets
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.frames import CALL, FRAME_BYTES, NUMBER, SERVICE, read_frames
from client.relay import WorkerLost, ask_worker
from fedgan.assembly import networks_for
from fedgan.config import dump
from fedgan.federated.site import weights_of
from fedgan.records import GlobalModel, RoundTask, SiteUpdate
from fedgan.wire import pack_task, unpack_answer

START_S = 120


@contextmanager
def worker(home, name="A"):
    """Run the worker of ``home`` until the block ends."""
    socket = home / "worker.sock"
    socket.unlink(missing_ok=True)
    with (home / "worker.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, "-m", "client.worker", name, str(home), str(socket)], stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while not socket.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert socket.exists(), (home / "worker.log").read_text()
        yield process
    finally:
        process.terminate()
        process.wait(30)


def ask(home, task, timeout_s=120):
    records = ask_worker(pack_task(task), str(home / "worker.sock"), number="0f3a", timeout_s=timeout_s)
    return unpack_answer(records, site="A", round=task.model.round)


def send(home, *frames):
    """Return the records that come back when ``frames`` are sent as they are."""
    with grpc.insecure_channel(f"unix:{home / 'worker.sock'}") as channel:
        grpc.channel_ready_future(channel).result(30)
        call = channel.stream_stream(f"/{SERVICE}/{CALL}")
        return read_frames(call(iter(frames), 60, metadata=((NUMBER, "0f3a"),)), max_bytes=10**6)


def task_of(terms, number=0, local_steps=2):
    return RoundTask(GlobalModel(number, weights_of(networks_for(terms))), local_steps, dump(terms))


def header(**array):
    sound = {"name": "w", "dtype": "float32", "shape": [2], "nbytes": 8}
    records = {"weights": {"kind": "arrays", "arrays": [{**sound, **array}]}}
    return json.dumps({"version": 1, "records": records}).encode()


def peak_kib(process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


@pytest.mark.slow
def test_a_worker_killed_between_rounds_gives_the_same_updates_as_one_that_lives_on(site_home, terms):
    asked = terms("aggregation.moments=both", "compress.generator=int8")
    living, dying = site_home("living"), site_home("dying")
    with worker(living, "A"):
        expected = [ask(living, task_of(asked, number)) for number in range(2)]

    answers = []
    for number in range(2):
        with worker(dying, "A") as process:
            answers.append(ask(dying, task_of(asked, number)))
            process.kill()

    for answer, other in zip(answers, expected, strict=True):
        assert isinstance(answer, SiteUpdate)
        assert answer.metrics == other.metrics
        assert all(torch.equal(answer.delta[name], other.delta[name]) for name in other.delta)


@pytest.mark.slow
def test_the_socket_is_the_sites_own_and_refuses_what_is_no_task(site_home):
    home = site_home(longest_task={"local_steps": 10, "seconds": 60, "megabytes": 100})
    with worker(home) as process:
        before = peak_kib(process)

        malformed = {
            "a wrong type": [header(dtype="float64"), bytes(8)],
            "a wrong shape": [header(shape=[3]), bytes(8)],
            "no number": [header(shape=[float("nan")]), bytes(8)],
            "a billion elements": [header(shape=[10**9], nbytes=4 * 10**9)],
            "many more": [header(shape=[2**39, 2**20], nbytes=2**61)],
            "too few bytes": [header(), bytes(7)],
            "too many bytes": [header(), bytes(9)],
            "one frame more": [header(), bytes(8), bytes(8)],
            "a long frame": [header(shape=[FRAME_BYTES], nbytes=4 * FRAME_BYTES), bytes(FRAME_BYTES + 1)],
            "no header": [b"\x80\x04\x95"],
            "nothing": [],
        }
        reasons = {name: send(home, *frames)["failure"]["reason"] for name, frames in malformed.items()}

        assert set(reasons.values()) == {"FramesRefused"}
        assert peak_kib(process) - before < 64 * 1024
        assert (home / "worker.sock").stat().st_mode & 0o077 == 0
        audited = [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]
        assert [event["reason"] for event in audited] == ["FramesRefused"] * len(malformed)


@pytest.mark.slow
def test_a_frame_that_grpc_itself_refuses_costs_the_task_and_not_the_worker(site_home, terms):
    home = site_home()
    with worker(home) as process:
        with pytest.raises(grpc.RpcError):
            send(home, bytes(3 * FRAME_BYTES))
        with sockets.socket(sockets.AF_UNIX) as raw:
            raw.connect(str(home / "worker.sock"))
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")

        assert isinstance(ask(home, task_of(terms())), SiteUpdate)
        assert process.poll() is None


@pytest.mark.slow
def test_what_is_understood_and_is_no_task_is_refused_by_its_class(site_home):
    home = site_home()
    content = RecordDict({"task": ConfigRecord({"round": 0}), "weights": ArrayRecord({})})
    with worker(home):
        refused = ask_worker(content, str(home / "worker.sock"), number="1", timeout_s=60)

    assert dict(refused["failure"]) == {"reason": "UpdateRejected"}


@pytest.mark.slow
def test_a_worker_in_training_ends_at_once_when_told_to(site_home, terms):
    home = site_home()
    with worker(home) as process:
        with pytest.raises(WorkerLost):
            ask(home, task_of(terms(), local_steps=2000), timeout_s=4)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(30)

    assert process.returncode == 0
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_task_that_nobody_waits_for_makes_room_for_the_next(site_home, terms):
    home = site_home()
    with worker(home):
        with pytest.raises(WorkerLost):
            ask(home, task_of(terms(), local_steps=2000), timeout_s=4)

        answer = ask(home, task_of(terms()))

    assert isinstance(answer, SiteUpdate)
    assert "TaskAbandoned" in (home / "audit.jsonl").read_text()
