"""From another address nothing of Flower's can be reached but a site's own calls; each refusal is one line of audit."""

import http.client
import json
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata

from fedgan.audit import broken_links
from fedgan.identity import Authority, new_key, private_pem, request_signature
from server.authority import renew_server
from server.door import MOST_STRANGERS_THERE
from server.long_poll import ANSWERED, SENT, note_sent
from server.presence import PRESENCE, activations

OUTSIDE = "127.0.0.2"
PULL, PUSH, ACTIVATE = "/v1/fleet/pull-messages", "/v1/fleet/push-object", "/v1/fleet/activate-node"
ANSWER, CONFIRM = "/v1/fleet/push-messages", "/v1/fleet/confirm-message-received"


def wait_until(holds, *, timeout_s=10):
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


NOTHING = (
    ("POST", "/v1/control/start-run"),
    ("POST", "/v1/control/list-runs"),
    ("POST", "/v1/runtime/acquire-task"),
    ("POST", "/v1/runtime/pull-task-input"),
    ("POST", "/v1/fleet/register-node"),
    ("POST", "/v1/fleet/unregister-node"),
    ("POST", "/v1/fleet/../control/list-runs"),
    ("POST", "/v1/fleet/%2e%2e/control/list-runs"),
    ("POST", f"{PULL}/"),
    ("POST", "//v1/control/list-runs"),
    ("GET", PULL),
    ("GET", "/docs"),
    ("GET", "/openapi.json"),
    ("GET", "/federation/releases/latest"),
    ("GET", "/"),
)


@pytest.mark.parametrize("badged", [False, True], ids=["stranger", "site"])
def test_from_outside_there_is_nothing_but_what_sites_need(coordinator, badged):
    badge = coordinator.admit("A") if badged else None

    # Not httpx, which would mend the paths.
    statuses = []
    for method, path in NOTHING:
        connection = http.client.HTTPSConnection(
            "127.0.0.1", coordinator.port, context=coordinator.context(badge), source_address=(OUTSIDE, 0)
        )
        connection.request(method, path, headers=badge.flower if badge else {})
        statuses.append(connection.getresponse().status)
        connection.close()

    assert statuses == [404] * len(NOTHING)
    assert coordinator.passed == []
    noted = [(line["path"], line["address"], line.get("site")) for line in coordinator.refusals()]
    assert [address for _, address, _ in noted] == [OUTSIDE] * len(NOTHING)
    assert {site for _, _, site in noted} == {"A" if badged else None}


def test_an_approved_sites_calls_reach_flower_and_their_answers_come_back(coordinator):
    badge, body = coordinator.admit("A"), b"object" * 500_000

    with coordinator.client(badge, address=OUTSIDE) as client:
        response = client.post(PUSH, content=body, headers={**badge.flower, "x-forwarded-for": "10.0.0.1"})

    (passed,) = coordinator.passed
    assert response.content == body[::-1]
    assert passed["body"] == body
    assert passed["path"] == PUSH
    assert b"x-forwarded-for" not in passed["headers"]
    assert response.headers["content-type"] == "x/flower"
    assert coordinator.refusals() == []


def test_a_body_of_unknown_length_reaches_flower_too(coordinator):
    badge = coordinator.admit("A")

    with coordinator.client(badge) as client:
        response = client.post(PUSH, content=iter([b"in ", b"parts"]), headers=badge.flower)

    assert response.content == b"in parts"[::-1]


def test_when_a_site_came_in_is_written_down(coordinator):
    badge = coordinator.admit("A")

    with coordinator.client(badge) as client:
        for _ in range(2):
            assert client.post(ACTIVATE, headers=badge.flower).status_code == 200

    assert wait_until(lambda: activations(coordinator.home.path / PRESENCE)["A"].times == 2)
    assert abs(activations(coordinator.home.path / PRESENCE)["A"].at - time.time()) < 60


def test_a_site_that_asks_for_tasks_again_waits_until_some_have_been_sent(coordinator):
    badge = coordinator.admit("A")

    with coordinator.client(badge) as client, ThreadPoolExecutor(1) as pool:
        client.post(PULL, headers=badge.flower)
        asking = pool.submit(client.post, PULL, headers=badge.flower)
        waits = not wait([asking], timeout=0.5).done
        coordinator.home.folder("link")
        (coordinator.home.path / SENT).touch()
        response = asking.result()

    assert waits
    assert (response.status_code, len(coordinator.passed)) == (200, 2)


def times_here(coordinator, site):
    known = activations(coordinator.home.path / PRESENCE).get(site)
    return known.times if known else 0


@pytest.mark.parametrize(("between", "times"), [((), 1), ((CONFIRM,), 0)], ids=["lost", "confirmed"])
def test_a_site_that_asks_again_without_confirming_what_it_was_sent_counts_as_come_anew(coordinator, between, times):
    badge = coordinator.admit("A")
    coordinator.home.folder("link")
    with coordinator.client(badge) as client:
        client.post(PULL, content=b"task", headers=badge.flower)  # answered with something: a task
        for path in between:
            client.post(path, headers=badge.flower)
        (coordinator.home.path / SENT).touch()

        response = client.post(PULL, headers=badge.flower)

    assert response.status_code == 200
    assert times_here(coordinator, "A") == times


def test_a_site_that_is_revoked_while_it_waits_gets_no_task(coordinator):
    badge = coordinator.admit("A")
    coordinator.home.folder("link")
    with coordinator.client(badge) as client, ThreadPoolExecutor(1) as pool:
        client.post(PULL, headers=badge.flower)
        asking = pool.submit(client.post, PULL, headers=badge.flower)
        waits = not wait([asking], timeout=0.5).done
        coordinator.enrolment.end("A", "revoked")
        (coordinator.home.path / SENT).touch()
        response = asking.result()

    assert waits
    assert (response.status_code, len(coordinator.passed)) == (401, 1)


def test_who_shows_no_certificate_does_not_reach_flower(coordinator):
    badge = coordinator.admit("A")

    with coordinator.client(address=OUTSIDE) as client:
        response = client.post(PULL, headers=badge.flower)

    (refusal,) = coordinator.refusals()
    assert (response.status_code, coordinator.passed) == (401, [])
    assert refusal["reason"] == response.json()["error"] == "no certificate of an approved site"


def test_a_site_that_sends_another_sites_key_does_not_reach_flower(coordinator):
    badge, other = coordinator.admit("A"), coordinator.admit("B")

    with coordinator.client(badge) as client:
        statuses = [
            client.post(PULL, headers=headers).status_code
            for headers in (other.flower, {}, {"flwr-public-key": b"\xe9"})
        ]

    assert statuses == [401, 401, 401]
    assert coordinator.passed == []
    assert [refusal["site"] for refusal in coordinator.refusals()] == ["A", "A", "A"]


def pushed(*metadata):
    """Return a SuperNode's request to push messages of these senders that answer these tasks."""
    messages = [Message(metadata=Metadata(src_node_id=node, reply_to_message_id=task)) for node, task in metadata]
    return PushMessagesRequest(messages_list=messages).SerializeToString()


def test_an_answer_reaches_flower_whole(coordinator):
    badge = coordinator.admit("A")
    body = pushed((coordinator.node_of("A"), "7"))

    with coordinator.client(badge) as client:
        response = client.post(ANSWER, content=body, headers=badge.flower)

    (passed,) = coordinator.passed
    assert (response.status_code, passed["body"]) == (200, body)


@pytest.mark.parametrize(
    "messages",
    [[("SuperLink", "")], [("B", "7")], [("A", "")], [("A", "7"), ("SuperLink", "")], []],
    ids=["as the SuperLink", "as another site", "to no task", "two", "none"],
)
def test_a_site_can_send_nothing_but_its_own_answer(coordinator, messages):
    badge, _ = coordinator.admit("A"), coordinator.admit("B")
    nodes = {"SuperLink": 1, "A": coordinator.node_of("A"), "B": coordinator.node_of("B")}
    body = pushed(*((nodes[sender], task) for sender, task in messages))

    with coordinator.client(badge) as client:
        response = client.post(ANSWER, content=body, headers=badge.flower)

    (refusal,) = coordinator.refusals()
    assert (response.status_code, coordinator.passed) == (400, [])
    assert (refusal["site"], refusal["reason"]) == ("A", "a message that is not the site's answer to a task")


def test_what_is_no_message_does_not_reach_flower(coordinator):
    badge = coordinator.admit("A")

    with coordinator.client(badge) as client:
        response = client.post(ANSWER, content=b"\xff", headers=badge.flower)

    assert (response.status_code, coordinator.passed) == (400, [])


def test_a_revoked_site_is_refused_on_the_connection_that_it_has_open(coordinator):
    badge = coordinator.admit("A")
    with coordinator.client(badge) as client:
        assert client.post(PULL, headers=badge.flower).status_code == 200

        coordinator.enrolment.end("A", "revoked")
        response = client.post(PULL, headers=badge.flower)

    (refusal,) = coordinator.refusals()
    assert response.status_code == refusal["status"] == 401


def test_a_certificate_that_was_replaced_no_longer_counts(coordinator):
    before = coordinator.admit("A")
    after = coordinator.admit("A")

    with coordinator.client(before) as old, coordinator.client(after) as new:
        assert old.post(PULL, headers=before.flower).status_code == 401
        assert new.post(PULL, headers=after.flower).status_code == 200


def test_a_site_that_flower_does_not_know_yet_is_asked_to_come_again(coordinator):
    badge = coordinator.admit("A")
    coordinator.enrolment.registry.change(lambda roll: roll.without_node("A"))

    with coordinator.client(badge) as client:
        assert client.post(PULL, headers=badge.flower).status_code == 503

    assert coordinator.refusals() == []


@pytest.mark.parametrize(
    ("path", "content"),
    [(PUSH, b"x" * (33 * 2**20)), (PUSH, iter([b"x" * 2**20] * 33)), (ANSWER, b"x" * 2**21)],
    ids=["told", "untold", "answer"],
)
def test_a_message_that_is_too_long_does_not_reach_flower(coordinator, path, content):
    badge = coordinator.admit("A")

    with coordinator.client(badge) as client:
        try:
            status = client.post(path, content=content, headers=badge.flower).status_code
        except httpx.TransportError:  # refused and closed before all of it was sent
            status = 413

    assert status == 413
    assert wait_until(coordinator.refusals)
    (refusal,) = coordinator.refusals()
    assert (refusal["status"], refusal["site"]) == (413, "A")
    assert coordinator.passed == []


def test_a_site_cannot_fill_the_disk_with_an_answer_and_may_answer_the_next_task(coordinator, monkeypatch):
    monkeypatch.setattr("server.fleet.MOST_BESIDE_BYTES", 1000)
    badge, part = coordinator.admit("A"), b"x" * 3000
    coordinator.home.folder("link")
    note_sent(coordinator.home.path / SENT, 2000)

    with coordinator.client(badge) as client:

        def push():
            return client.post(PUSH, content=part, headers=badge.flower).status_code

        client.post(PULL, content=b"task", headers=badge.flower)  # answered with something: a task
        statuses = [push() for _ in range(4)]
        client.post(CONFIRM, headers=badge.flower)
        note_sent(coordinator.home.path / SENT, 2000)
        client.post(PULL, content=b"task", headers=badge.flower)
        statuses.append(push())

    (refusal,) = coordinator.refusals()
    assert statuses == [200, 200, 200, 413, 200]
    assert (refusal["site"], refusal["reason"]) == ("A", "an answer much longer than the model")


def test_a_site_that_asks_for_the_next_task_has_sent_all_of_its_answer_which_rings_a_bell(coordinator):
    badge, bell = coordinator.admit("A"), coordinator.home.folder("link") / Path(ANSWERED).name
    answer = pushed((coordinator.node_of("A"), "7"))

    with coordinator.client(badge) as client:
        client.post(PULL, headers=badge.flower)
        client.post(ANSWER, content=answer, headers=badge.flower)
        client.post(PUSH, content=b"part", headers=badge.flower)
        before = bell.exists()
        note_sent(coordinator.home.path / SENT, 2000)
        client.post(PULL, headers=badge.flower)

    assert (before, bell.exists()) == (False, True)


def test_plain_text_does_not_come_in(coordinator):
    with socket.create_connection(("127.0.0.1", coordinator.port), source_address=(OUTSIDE, 0)) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answered = plain.recv(100)

    assert not answered.startswith(b"HTTP")
    assert wait_until(coordinator.refusals)
    (refusal,) = coordinator.refusals()
    assert refusal["address"] == OUTSIDE
    assert "HTTP_REQUEST" in refusal["reason"]


def test_a_certificate_of_another_authority_does_not_come_in(coordinator, tmp_path):
    key = new_key()
    forged = Authority.found("lungs").sign_site(request_signature(key, "A"), "A")
    file = tmp_path / "forged.pem"
    file.write_bytes(forged.public_bytes(Encoding.PEM) + private_pem(key))
    context = coordinator.context()
    context.load_cert_chain(file)

    with httpx.Client(verify=context) as client, pytest.raises(httpx.TransportError):
        client.get(f"{coordinator.url}/health")

    assert wait_until(coordinator.refusals)
    (refusal,) = coordinator.refusals()
    assert "CERTIFICATE_VERIFY_FAILED" in refusal["reason"]


def test_who_has_no_certificate_takes_no_place_from_sites(coordinator):
    badge, context = coordinator.admit("A"), coordinator.context()
    with ExitStack() as idle:
        for _ in range(MOST_STRANGERS_THERE + 3):
            connection = socket.create_connection(("127.0.0.1", coordinator.port), source_address=(OUTSIDE, 0))
            idle.enter_context(context.wrap_socket(connection, server_hostname="127.0.0.1"))

        with coordinator.client(badge, address=OUTSIDE) as site, coordinator.client() as elsewhere:
            statuses = [client.get("/health").status_code for client in (site, elsewhere)]
        assert wait_until(lambda: len(coordinator.refusals()) == 3)

    assert statuses == [200, 200]
    assert {(line["address"], line["reason"]) for line in coordinator.refusals()} == {(OUTSIDE, "too many connections")}


def test_who_left_makes_room_for_others(coordinator):
    context = coordinator.context()
    for _ in range(2 * MOST_STRANGERS_THERE):
        with socket.create_connection(("127.0.0.1", coordinator.port), source_address=(OUTSIDE, 0)) as connection:
            context.wrap_socket(connection, server_hostname="127.0.0.1").close()

    def is_let_in():
        with coordinator.client(address=OUTSIDE) as stranger, suppress(httpx.TransportError):
            return stranger.get("/health").status_code == 200

    assert wait_until(is_let_in)


def beginning_of_a_post(path, badge):
    """Return the head of a request of nine bytes, and some of them."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
    return f"{head}flwr-public-key: {badge.flower['flwr-public-key']}\r\n\r\nhalf".encode()


def test_an_answer_that_breaks_off_is_no_refusal(coordinator):
    badge = coordinator.admit("A")
    with socket.create_connection(("127.0.0.1", coordinator.port)) as connection:
        broken = coordinator.context(badge).wrap_socket(connection, server_hostname="127.0.0.1")
        broken.sendall(beginning_of_a_post(ANSWER, badge))
        broken.close()

    with coordinator.client(badge) as site:
        site.post(PUSH, headers=badge.flower)

    assert [line["path"] for line in coordinator.passed] == [PUSH]
    assert coordinator.refusals() == []


@pytest.mark.slow
def test_a_site_that_fell_silent_in_the_middle_of_its_answer_gets_its_place_back(coordinator, monkeypatch):
    monkeypatch.setattr("fedgan.forward.PATIENCE_S", 0.5)
    monkeypatch.setattr("server.door.MOST_OF_ONE_SITE", 1)
    badge = coordinator.admit("A")

    def is_let_in():
        with coordinator.client(badge) as site, suppress(httpx.TransportError):
            return site.get("/health").status_code == 200

    with socket.create_connection(("127.0.0.1", coordinator.port)) as connection:
        silent = coordinator.context(badge).wrap_socket(connection, server_hostname="127.0.0.1")
        silent.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        came_in = silent.recv(100).startswith(b"HTTP/1.1 200")
        silent.sendall(beginning_of_a_post(PUSH, badge))
        others = [is_let_in(), wait_until(is_let_in, timeout_s=60)]  # TLS waits half a minute for its farewell
        silent.close()

    assert came_in
    assert others == [None, True]


def test_a_renewed_certificate_is_shown_to_who_comes_in_from_then_on(coordinator, monkeypatch):
    def shown():
        connection = socket.create_connection(("127.0.0.1", coordinator.port))
        with coordinator.context().wrap_socket(connection, server_hostname="127.0.0.1") as secured:
            return secured.getpeercert()["serialNumber"]

    before = shown()
    monkeypatch.setattr("server.authority.RENEW_BEFORE", timedelta(days=400))

    renew_server(coordinator.home)

    assert wait_until(lambda: shown() != before)


def test_old_tls_does_not_come_in(coordinator):
    context = coordinator.context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2

    with httpx.Client(verify=context) as client, pytest.raises(httpx.TransportError):
        client.get(f"{coordinator.url}/health")

    assert wait_until(coordinator.refusals)


def test_a_site_is_told_who_it_is_and_what_runs_there(coordinator):
    with coordinator.client(coordinator.admit("A")) as client:
        said = client.get("/federation/hello").json()

    assert said["site"] == "A"
    assert abs(datetime.fromisoformat(said["time"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert said["flwr"].startswith("1.41.")


def test_a_site_that_leaves_is_out(coordinator):
    with coordinator.client(coordinator.admit("A")) as client:
        assert client.post("/federation/leave").status_code == 204
        assert client.get("/federation/hello").status_code == 401

    assert coordinator.enrolment.standings()[0].state == "left"


def test_further_paths_learn_which_site_asks_and_are_for_sites_alone(coordinator):
    with coordinator.client(coordinator.admit("B")) as site, coordinator.client() as stranger:
        assert site.get("/federation/models/7").text == "B asks for /federation/models/7"
        assert stranger.get("/federation/models/7").status_code == 401


def ask(coordinator, secret, request):
    with coordinator.client(address=OUTSIDE) as client:
        return client.post("/federation/enrolment", json={"secret": secret, "request": request.decode()})


def test_a_used_invitation_is_refused_to_another_key_and_not_to_the_same(coordinator):
    secret, mine = coordinator.enrolment.invite("A").secret, request_signature(new_key(), "A")
    assert ask(coordinator, secret, mine).status_code == 202

    again, other = ask(coordinator, secret, mine), ask(coordinator, secret, request_signature(new_key(), "A"))

    (refusal,) = coordinator.refusals()
    assert (again.status_code, other.status_code) == (202, 403)
    assert "the invitation of site A has been used" in other.json()["error"]
    assert (refusal["status"], refusal["address"]) == (403, OUTSIDE)


def test_an_unknown_secret_is_refused(coordinator):
    response = ask(coordinator, "x" * 43, request_signature(new_key(), "A"))

    assert response.status_code == 403
    assert len(coordinator.refusals()) == 1


def test_an_expired_invitation_is_refused(coordinator):
    secret = coordinator.enrolment.invite("A").secret
    past = datetime.now(UTC) - timedelta(seconds=1)
    coordinator.enrolment.registry.change(
        lambda roll: roll.with_entry(roll.entry("A").model_copy(update={"invited_until": past}))
    )

    response = ask(coordinator, secret, request_signature(new_key(), "A"))

    assert response.status_code == 403
    assert "expired" in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"no JSON", 400),
        (json.dumps({"secret": "x", "request": "y", "site": "A"}).encode(), 400),
        (b"x" * 70_000, 413),
        (iter([b"{}"]), 413),
    ],
)
def test_what_is_no_request_is_refused(coordinator, content, status):
    with coordinator.client(address=OUTSIDE) as client:
        response = client.post("/federation/enrolment", content=content)

    (refusal,) = coordinator.refusals()
    assert response.status_code == refusal["status"] == status


def test_an_invitation_for_one_name_does_not_sign_another(coordinator):
    secret = coordinator.enrolment.invite("A").secret

    response = ask(coordinator, secret, request_signature(new_key(), "B"))

    assert response.status_code == 400
    assert coordinator.enrolment.standings()[0].state == "invited"


def test_who_asks_too_often_is_refused_and_does_not_fill_the_audit(coordinator):
    with coordinator.client(address=OUTSIDE) as client:
        statuses = [client.get("/federation/certificate").status_code for _ in range(70)]

    assert statuses[0] == 403
    assert 429 in statuses
    assert len(coordinator.refusals()) <= 65
    assert broken_links(coordinator.home.path / "audit.jsonl") == []


def test_on_a_full_disk_strangers_stay_outside_and_sites_are_served(coordinator, full_disk):
    badge = coordinator.admit("A")
    with coordinator.client(badge) as site, coordinator.client(address=OUTSIDE) as stranger:
        while len((coordinator.home.path / "audit.jsonl").read_bytes()) < 1024:
            stranger.get("/docs")

        with full_disk():
            refused, served = stranger.post(PULL), site.post(ACTIVATE, headers=badge.flower)

    assert (refused.status_code, served.status_code) == (401, 200)
