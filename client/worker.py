"""The site's resident process: ``Resident.answer`` behind a Unix socket that only the site's own user can open.

``python -m client.worker SITE HOME SOCKET`` runs until it is told to stop. Who dials the socket is the relay, with
what the coordinator sent: each frame is checked before it is believed. One task at a time, the others wait.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

import grpc
from flwr.app import RecordDict

from client.frames import CALL, FRAME_BYTES, NUMBER, SERVICE, FramesRefused, read_frames, write_frames
from client.resident import Resident
from fedgan.errors import SettingsError
from fedgan.records import SiteFailure
from fedgan.wire import pack_answer

MOST_WAITING = 4
"""Tasks at a time, the one that is worked on included; Flower hands on one, and again one if a relay died."""

log = logging.getLogger(__name__)


def serve(resident: Resident, socket: Path) -> grpc.Server:
    """Return the started server that answers for ``resident`` behind ``socket``.

    Raises:
        OSError: the socket cannot be opened.
    """
    server = grpc.server(
        ThreadPoolExecutor(1),
        options=[("grpc.max_receive_message_length", 2 * FRAME_BYTES), ("grpc.so_reuseport", 0)],
        maximum_concurrent_rpcs=MOST_WAITING,
    )
    call = grpc.stream_stream_rpc_method_handler(partial(_answer, resident))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {CALL: call})])
    before = os.umask(0o177)
    try:
        if not server.add_insecure_port(f"unix:{socket}"):
            raise OSError("the worker's socket cannot be opened")
        server.start()
    finally:
        os.umask(before)
    return server


def _answer(resident: Resident, frames: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
    number = _number(context)
    try:
        content = read_frames(frames, max_bytes=resident.policy().max_bytes)
    except (FramesRefused, SettingsError) as refusal:
        log.error("task %s is refused: %s", number, refusal)  # noqa: TRY400  the message says it all
        resident.audit.record("refused", task=number, reason=type(refusal).__name__)
        return write_frames(_failure(type(refusal).__name__))
    answer = resident.answer(content, number, context.is_active)
    try:
        return write_frames(answer)
    except FramesRefused as refusal:
        log.error("the answer to task %s cannot leave: %s", number, refusal)  # noqa: TRY400
        return write_frames(_failure(type(refusal).__name__))


def _failure(reason: str) -> RecordDict:
    return pack_answer(SiteFailure("", 0, reason))


def _number(context: grpc.ServicerContext) -> str:
    """Return the task's number, or what stands for one that is none."""
    given = str(dict(context.invocation_metadata()).get(NUMBER, ""))
    return given if given.isalnum() and len(given) <= 16 else "unknown"


def main() -> int:
    """Run the worker and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    name, home, socket = sys.argv[1:]
    told = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        told.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    server = serve(Resident(name, Path(home)), Path(socket))
    log.info("site %s answers", name)
    told.wait()
    server.stop(None).wait()
    # Training that is still on has no more to say, and would hold the interpreter until it ends.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
