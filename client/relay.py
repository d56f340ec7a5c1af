"""The bundle's ClientApp: it hands a message to the site's resident worker, and the worker's answer back.

Each message has a process of its own, so it imports neither torch nor fedgan. It decides nothing, and
what leaves through it besides the worker's answer is the name of a class.
"""

import logging
import time

import grpc
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.frames import CALL, NUMBER, SERVICE, read_frames, write_frames

ANSWER_BYTES = 16 * 1024**3
"""Largest answer; the worker is the site's own, so that this only bounds a fault."""

START_S = 120.0
"""How long a worker may take to start, or to start again."""

ATTEMPTS = 3
"""How often a task is given to a worker that dies over it; asked twice, it answers alike."""

log = logging.getLogger(__name__)

app = ClientApp()


class WorkerLost(Exception):
    """The worker is not there, or died each time it was asked; its log says why."""


@app.train()
def train(message: Message, context: Context) -> Message:
    """Return the worker's answer, or that there is none."""
    try:
        content = ask_worker(
            message.content,
            str(context.node_config["worker"]),
            number=message.metadata.message_id[:12],
            timeout_s=_lifetime_s(message),
        )
    except Exception as fault:  # Flower would send the exception's text, and with it whatever that quotes
        log.exception("the worker could not be asked")
        content = RecordDict({"failure": ConfigRecord({"reason": type(fault).__name__})})
    return Message(content, reply_to=message)


def ask_worker(content: RecordDict, socket: str, *, number: str, timeout_s: float) -> RecordDict:
    """Return what the worker behind ``socket`` answers, waiting at most ``timeout_s``.

    Raises:
        WorkerLost: it is not there, does not answer in time, or was lost each time.
        FramesRefused: ``content`` or the answer cannot be carried.
    """
    deadline = time.monotonic() + timeout_s
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        call = channel.stream_stream(f"/{SERVICE}/{CALL}")
        for attempt in range(1, ATTEMPTS + 1):
            left_s = max(0.0, deadline - time.monotonic())
            try:
                grpc.channel_ready_future(channel).result(timeout=min(START_S, left_s))
                answer = call(write_frames(content), left_s, metadata=((NUMBER, number),))
                return read_frames(answer, max_bytes=ANSWER_BYTES)
            except grpc.FutureTimeoutError as error:
                raise WorkerLost("there is no worker") from error
            except grpc.RpcError as error:
                log.warning("attempt %d of %d: the worker was lost (%s)", attempt, ATTEMPTS, error.code())
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    break
    raise WorkerLost("the worker gives no answer")


def _lifetime_s(message: Message) -> float:
    """Return how long the coordinator still waits for the answer, in seconds."""
    return max(1.0, message.metadata.created_at + message.metadata.ttl - time.time())
