"""The site's gate over real TLS: Flower's calls pass, other paths do not, and code only if it is approved."""

import gzip
import hashlib
import json
import ssl
import time

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.fab_pb2 import Fab, GetFabResponse
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.fab import Fab as ReceivedFab
from flwr.supercore.inflatable.inflatable_object import get_object_id, get_object_tree, iterate_object_tree
from flwr.supernode.start_client_internal import _verify_fab
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from client.gate import Gate, open_gate
from client.link import tls_context
from client.loopback import SIGNER, make_loopback
from fedgan.audit import Audit
from fedgan.forward import streaming_client

CODE = b"reviewed"
APPROVED = hashlib.sha256(CODE).hexdigest()


class Coordinator:
    """What the fleet's calls reach: it echoes, and ships the code that it is told to."""

    def __init__(self) -> None:
        self.ships = Fab(hash_str=APPROVED, content=CODE)
        self.raw: bytes | None = None
        self.says: Response | None = None
        self.pushed: list[bytes] = []

    async def echo(self, request: Request) -> Response:
        return Response(await request.body(), headers={"x-key": request.headers.get("x-key", "")})

    async def fab(self, request: Request) -> Response:
        await request.body()
        return Response(self.raw if self.raw is not None else GetFabResponse(fab=self.ships).SerializeToString())

    async def push(self, request: Request) -> Response:
        """Ask for all objects of a message, as Flower's SuperLink does of one that is new to it, and for a guess."""
        self.pushed.append(await request.body())
        said = PushMessagesRequest.FromString(self.pushed[-1])
        wanted = [tree.object_id for top in said.message_object_trees for tree in iterate_object_tree(top)]
        return Response(PushMessagesResponse(objects_to_push=[*wanted, "b" * 64], session_id="s").SerializeToString())

    async def store(self, request: Request) -> Response:
        self.pushed.append(await request.body())
        return Response(PushObjectResponse(stored=True).SerializeToString())

    async def heartbeat(self, request: Request) -> Response:
        assert "accept-encoding" not in request.headers
        return self.says

    async def absent(self, request: Request) -> Response:
        return Response(status_code=403)

    def app(self) -> Starlette:
        paths = {
            "get-fab": self.fab,
            "get-run": self.absent,
            "send-node-heartbeat": self.heartbeat,
            "push-messages": self.push,
            "push-object": self.store,
        }
        routes = [Route(f"/v1/fleet/{name}", call, methods=["POST"]) for name, call in paths.items()]
        return Starlette(
            routes=[
                *routes,
                Route("/v1/fleet/{call}", self.echo, methods=["POST"]),
                Route("/v1/control/list-runs", self.echo, methods=["POST", "GET"]),
            ]
        )


def gate_of(home, loopback, address, *, approved=frozenset, proxy=None):
    client = streaming_client(tls_context(home), proxy=proxy)
    return Gate(
        address,
        client,
        approved,
        loopback.signer,
        Audit(home.audit),
        task_bytes=lambda: 5_000_000,
        arrived=(home.folder / "arrived").touch,
    )


@pytest.fixture
def coordinator():
    return Coordinator()


@pytest.fixture
def dial(coordinator, federation, served, site_home):
    """Dial the gate of an enrolled site, as its SuperNode does."""
    home = federation.enrol(site_home(), "A", "unused:1")
    loopback = make_loopback(home.inside("link"))
    address = f"localhost:{served(coordinator.app())}"
    gate = gate_of(home, loopback, address, approved=lambda: frozenset({APPROVED}))
    with open_gate(gate, loopback) as port:
        trust = ssl.create_default_context(cafile=str(loopback.root))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False) as dialled:
            yield dialled


def received(dial, home) -> tuple[Fab, bool]:
    """Return the bundle that comes through, and whether the SuperNode would take it, by Flower's own judgement."""
    fab = GetFabResponse.FromString(dial.post("/v1/fleet/get-fab", content=b"which").content).fab
    identity, _, key = (home / "link" / "trusted.yaml").read_text().strip().partition(": ")
    came = ReceivedFab(fab.hash_str, fab.content, dict(fab.verifications))
    return fab, bool(came.verifications.get("valid_license")) and _verify_fab(came, {identity: key})


def audited(home):
    path = home / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def audited_soon(home):
    """Return what is audited once an answer has gone."""
    deadline = time.monotonic() + 10
    while not audited(home) and time.monotonic() < deadline:
        time.sleep(0.02)
    return audited(home)


def test_flowers_calls_pass_with_their_headers_by_the_sites_own_certificate(dial):
    said = dial.post("/v1/fleet/pull-object", content=b"x" * 5_000_000, headers={"x-key": "public"})

    assert (said.status_code, len(said.content), said.headers["x-key"]) == (200, 5_000_000, "public")


def test_when_all_of_a_task_has_arrived_who_answers_it_is_told(dial, site_home):
    told = site_home() / "arrived"

    dial.post("/v1/fleet/pull-object", content=b"part")
    before = told.exists()
    dial.post("/v1/fleet/confirm-message-received", content=b"task")

    assert (before, told.exists()) == (False, True)


def test_flowers_calls_pass_through_the_hospitals_proxy(coordinator, federation, served, site_home, corporate_proxy):
    home = federation.enrol(site_home(), "A", "unused:1")
    loopback, to_port = make_loopback(home.inside("link")), served(coordinator.app())
    with corporate_proxy(to_port) as (proxy_port, authority, asked):
        context = ssl.create_default_context(cafile=authority)
        proxy = httpx.Proxy(f"https://127.0.0.1:{proxy_port}", ssl_context=context)
        gate = gate_of(home, loopback, f"localhost:{to_port}", proxy=proxy)

        with open_gate(gate, loopback) as port:
            trust = ssl.create_default_context(cafile=str(loopback.root))
            url = f"https://127.0.0.1:{port}/v1/fleet/pull-object"
            said = httpx.post(url, content=b"x" * 5_000_000, verify=trust, trust_env=False)

    assert (said.status_code, len(said.content)) == (200, 5_000_000)
    assert asked == [f"CONNECT localhost:{to_port} HTTP/1.1"]


@pytest.mark.parametrize("path", ["/v1/control/list-runs", "/v1/runtime/acquire-task", "/docs", "/", "/v1/fleet"])
def test_nothing_but_flowers_fleet_calls_passes(dial, path):
    assert dial.post(path).status_code == 404
    assert dial.get("/v1/fleet/pull-messages").status_code == 404


def test_the_coordinators_refusals_pass_as_they_are(dial):
    assert dial.post("/v1/fleet/get-run").status_code == 403


def test_no_task_comes_in_that_is_much_longer_than_the_policy_allows(dial, site_home):
    def statuses(count):
        return [dial.post("/v1/fleet/pull-object", content=bytes(5_000_000)).status_code for _ in range(count)]

    first = statuses(3)
    dial.post("/v1/fleet/pull-messages")
    next_one = statuses(2)

    assert first == [200, 200, 413]
    assert next_one == [200, 200]
    assert [event["reason"] for event in audited_soon(site_home())] == ["too long"]


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (Response(status_code=307, headers={"location": "http://pacs.example/studies"}), "redirect"),
        (Response(status_code=304), "redirect"),
        (Response(gzip.compress(bytes(10_000_000)), headers={"content-encoding": "gzip"}), "compressed"),
        (Response(b"", status_code=403, headers={"content-encoding": "br"}), "compressed"),
    ],
)
def test_no_answer_leads_elsewhere_or_must_be_unpacked(dial, site_home, coordinator, says, why):
    coordinator.says = says

    said = dial.post("/v1/fleet/send-node-heartbeat", content=b"here")

    assert (said.status_code, said.content) == (502, b"")
    assert "location" not in said.headers
    assert [(event["event"], event["reason"]) for event in audited_soon(site_home())] == [("answer refused", why)]


def reply(said: RecordDict | Error) -> tuple[Message, PushMessagesRequest]:
    """Return a reply as the SuperNode's store has it, and as the SuperNode sends it."""
    asked = Metadata(7, "a" * 64, 1, 5, "", "1", 0.0, 60.0, "train")
    message = Message(said, reply_to=make_message(asked, RecordDict()))
    message.metadata.__dict__["_message_id"] = message.object_id
    return message, PushMessagesRequest(
        node=Node(node_id=5),
        messages_list=[message_to_proto(remove_content_from_message(message))],
        message_object_trees=[get_object_tree(message)],
        clientapp_runtime_list=[1.0],
    )


def test_an_answer_of_the_worker_passes_as_it_is(dial, coordinator):
    message, sent = reply(RecordDict({"failure": ConfigRecord({"reason": "Diverged"})}))

    said = dial.post("/v1/fleet/push-messages", content=sent.SerializeToString())

    assert coordinator.pushed == [sent.SerializeToString()]
    assert message.object_id in PushMessagesResponse.FromString(said.content).objects_to_push


def test_an_error_of_flowers_leaves_without_its_text(dial, coordinator, caplog):
    text = "<class 'OSError'>:<'[Errno 28] No space left on device: '/data/Doe^Jane/link/apps''>"
    message, sent = reply(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, text))

    said = dial.post("/v1/fleet/push-messages", content=sent.SerializeToString(), headers={"x-key": "public"})

    (told, uploaded) = coordinator.pushed
    upload = PushObjectRequest.FromString(uploaded)
    arrived = Message.inflate(upload.object_content)
    (known,) = PushMessagesRequest.FromString(told).messages_list
    assert list(PushMessagesResponse.FromString(said.content).objects_to_push) == []  # the SuperNode's has the text
    assert not any(word in content for content in coordinator.pushed for word in (b"Doe", b"OSError"))
    assert (upload.object_id, upload.session_id, upload.run_id) == (get_object_id(upload.object_content), "s", 7)
    assert known.metadata.message_id == upload.object_id != message.object_id
    assert known.metadata.reply_to_message_id == arrived.metadata.reply_to_message_id == "a" * 64
    assert (arrived.error.code, arrived.error.reason) == (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, None)
    assert "Doe^Jane" in caplog.text


def test_joining_is_audited(dial, site_home):
    dial.post("/v1/fleet/activate-node", content=b"key")

    assert [event["event"] for event in audited_soon(site_home())] == ["joined"]


def test_approved_code_comes_in_signed_as_the_supernode_wants_it(dial, site_home):
    fab, taken = received(dial, site_home())

    assert (fab.content, fab.hash_str, taken) == (CODE, APPROVED, True)
    assert audited(site_home()) == []


@pytest.mark.parametrize(
    "ships",
    [
        Fab(hash_str=hashlib.sha256(b"changed").hexdigest(), content=b"changed"),
        Fab(hash_str=APPROVED, content=b"changed"),
        Fab(hash_str="0" * 64, content=CODE),
        Fab(
            hash_str=hashlib.sha256(b"changed").hexdigest(),
            content=b"changed",
            verifications={"valid_license": "yes", SIGNER: '{"signed_at": 1, "signature": "AAAA"}'},
        ),
    ],
)
def test_code_that_is_not_approved_stays_outside_and_is_audited(dial, site_home, coordinator, ships):
    coordinator.ships = ships

    fab, taken = received(dial, site_home())

    assert (fab.content, taken) == (b"", False)
    assert [event["reason"] for event in audited(site_home())] == ["BundleRefused"]


def test_what_is_no_bundle_stays_outside(dial, site_home, coordinator):
    coordinator.raw = b"\xff\xff\xff"

    fab, taken = received(dial, site_home())

    assert (fab.content, taken) == (b"", False)


def test_approved_code_still_comes_in_after_a_refusal(dial, site_home, coordinator):
    sound, coordinator.ships = coordinator.ships, Fab(hash_str=APPROVED, content=b"changed")
    received(dial, site_home())
    coordinator.ships = sound

    _, taken = received(dial, site_home())

    assert taken


def test_without_a_coordinator_the_supernode_is_told_to_ask_again(federation, site_home):
    home = federation.enrol(site_home(), "A", "unused:1")
    loopback = make_loopback(home.inside("link"))
    gate = gate_of(home, loopback, "localhost:9")

    with open_gate(gate, loopback) as port:
        trust = ssl.create_default_context(cafile=str(loopback.root))
        statuses = [
            httpx.post(f"https://127.0.0.1:{port}/v1/fleet/{call}", verify=trust, trust_env=False).status_code
            for call in ("pull-messages", "get-fab", "push-messages")
        ]

    assert statuses == [502, 502, 502]


def test_a_gate_trusts_no_coordinator_of_another_authority(federation, served, site_home, tmp_path):
    other = type(federation)(type(federation.authority).found("other"), tmp_path)
    home = other.enrol(site_home(), "A", "unused:1")
    loopback, address = make_loopback(home.inside("link")), f"localhost:{served(Coordinator().app())}"
    gate = gate_of(home, loopback, address)

    with open_gate(gate, loopback) as port:
        trust = ssl.create_default_context(cafile=str(loopback.root))
        said = httpx.post(f"https://127.0.0.1:{port}/v1/fleet/pull-messages", verify=trust, trust_env=False)

    assert said.status_code == 502
