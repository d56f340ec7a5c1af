"""A request is handed on as it is, its answer comes back as it is, and no more than may pass does."""

import asyncio
import socket
import ssl

import pytest

from fedgan.forward import forward, streaming_client
from fedgan.processes import free_port

TOO_MUCH = 1000


def answering(*parts):
    """Serve one connection: read a request's head, and answer with what is given."""

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
        await writer.drain()
        writer.close()

    return serve


def ask(serve=None, *, headers=(), body=(b"",), events=(), takes=1000):
    """Forward one request to what ``serve`` says, and return the status and all that was sent back.

    Who asks takes so many parts of the answer, and is silent when there are no more ``events``.
    """
    sent = []
    waiting = [
        *({"type": "http.request", "body": part, "more_body": True} for part in body[:-1]),
        {"type": "http.request", "body": body[-1], "more_body": False},
    ]
    coming = iter(events or waiting)

    async def receive():
        return next(coming, None) or await asyncio.Event().wait()

    async def send(event):
        if len(sent) == takes:
            await asyncio.Event().wait()
        sent.append(event)

    async def run():
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1] if serve else free_port()
        server = await asyncio.start_server(serve or answering(), sock=listening)
        scope = {"type": "http", "method": "POST", "headers": list(headers)}
        async with server, streaming_client(ssl.create_default_context()) as client:
            return await forward(scope, receive, send, client, f"http://127.0.0.1:{port}/x", most_bytes=TOO_MUCH)

    return asyncio.run(run()), sent


def test_an_answer_comes_back_without_what_is_for_one_connection_alone():
    head = b"HTTP/1.1 206 \r\nContent-Length: 4\r\nX-Mine: 1\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: 5\r\n\r\n"

    status, (start, *parts) = ask(answering(head, b"body"))

    assert status == start["status"] == 206
    assert start["headers"] == [(b"content-length", b"4"), (b"x-mine", b"1")]
    assert b"".join(part["body"] for part in parts) == b"body"


def test_a_server_behind_that_is_not_there_is_a_bad_gateway_that_says_no_more():
    status, (start, end) = ask()

    assert status == start["status"] == 502
    assert end["body"] == b""


def test_an_answer_that_announces_too_much_is_a_bad_gateway():
    status, (start, _) = ask(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"))

    assert status == start["status"] == 502


@pytest.mark.parametrize(
    "parts",
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * (TOO_MUCH + 1)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b"four"),
    ],
    ids=["too much", "broken off"],
)
def test_an_answer_that_cannot_end_well_breaks_off(parts):
    with pytest.raises(ConnectionError):
        ask(answering(*parts))


@pytest.mark.parametrize(
    ("headers", "body"),
    [([(b"content-length", b"1001")], [b""]), ([(b"transfer-encoding", b"chunked")], [b"x" * 600, b"x" * 600])],
    ids=["told", "untold"],
)
def test_a_request_that_is_too_long_is_refused(headers, body):
    status, (start, _) = ask(answering(), headers=headers, body=body)

    assert status == start["status"] == 413
    assert (b"connection", b"close") in start["headers"]


def test_who_leaves_in_the_middle_gets_no_answer():
    events = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

    _, sent = ask(answering(), headers=[(b"transfer-encoding", b"chunked")], events=events)

    assert sent == []


def test_who_falls_silent_in_the_middle_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("fedgan.forward.PATIENCE_S", 0.1)
    half = {"type": "http.request", "body": b"half", "more_body": True}

    status, sent = ask(answering(), headers=[(b"transfer-encoding", b"chunked")], events=[half])

    assert (status, sent) == (499, [])


@pytest.mark.parametrize("takes", [0, 1, 2], ids=["nothing", "its head", "all but its end"])
def test_an_answer_that_nobody_takes_is_given_up(monkeypatch, takes):
    monkeypatch.setattr("fedgan.forward.PATIENCE_S", 0.1)
    answers = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"body")

    status, sent = ask(answers, takes=takes)

    assert (status, len(sent)) == (499, takes)


def test_no_proxy_is_taken_from_the_environment(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")

    status, _ = ask(answering(b"HTTP/1.1 204 No Content\r\n\r\n"))

    assert status == 204
