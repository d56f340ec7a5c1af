"""The coordinator's side of Flower: one answer per site, whatever the sites and the network do."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

import httpx
import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata
from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as site_app
from fedgan.errors import EngineFailed, FedganError, QuorumNotMet
from fedgan.federated.compression import encode, take_step
from fedgan.federated.memory import FolderMemory
from fedgan.federated.spool import Spool
from fedgan.records import GlobalModel, ModelStep, RoundTask, ScanCounts, SiteFailure, SiteUpdate, digest_of
from fedgan.wire import pack_answer, pack_partition, pack_task, size_of, unpack_task
from server import federation as federation_module
from server.federation import FlowerFederation, bind_simulated_nodes

TASK = RoundTask(GlobalModel(4, {"w": torch.tensor([1.0, 2.0])}), local_steps=3)

Node = Callable[[Message], Message | None]


class Loopback:
    """As much of Flower's Grid as a federation uses: the nodes are functions, called at once."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes = nodes
        self.messages: list[Message] = []
        self.pulled: list[str] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        first = len(self.messages)
        self.messages += messages
        numbers = [str(number) for number in range(first, len(self.messages))]
        for number, message in zip(numbers, self.messages[first:], strict=True):
            message.metadata.__dict__["_message_id"] = number  # as Flower's own Grids do
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (number,) = message_ids
        message = self.messages[int(number)]
        reply = self.nodes[message.metadata.dst_node_id](message)
        self.pulled.append(number)
        return [] if reply is None else [reply]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.messages += messages
        replies = [self.nodes[message.metadata.dst_node_id](message) for message in self.messages]
        return [reply for reply in reversed(replies) if reply is not None]


class Faulty(Loopback):
    """A Grid whose SuperLink breaks down over one of its calls, the first so many times."""

    def __init__(self, nodes: Mapping[int, Node], call: str, *, times: int, status: int = 500) -> None:
        super().__init__(nodes)
        self.call, self.times, self.status = call, times, status
        self.seen: Callable[[Message], None] = lambda message: None

    def get_node_ids(self) -> Iterable[int]:
        self.break_down("get_node_ids")
        return super().get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        for message in messages:
            self.seen(message)
        self.break_down("push_messages")
        return super().push_messages(messages)

    def break_down(self, call: str) -> None:
        if call == self.call and self.times > 0:
            self.times -= 1
            request = httpx.Request("POST", "https://link")
            raise httpx.HTTPStatusError("", request=request, response=httpx.Response(self.status))


@pytest.fixture(autouse=True)
def _flower_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be a task of Flower's, without which it makes no message."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def doubles(message: Message) -> Message:
    """Train by doubling: a site that claims to be somebody else."""
    task = unpack_task(message.content)
    counts = ScanCounts(abnormal=task.local_steps)
    update = SiteUpdate("Mallory", task.model.round, "0" * 64, task.model.weights, counts, {"loss/cycle": 0.5})
    return Message(pack_answer(update), reply_to=message)


def fails(message: Message) -> Message:
    return Message(pack_answer(SiteFailure("B", 0, "Diverged")), reply_to=message)


def breaks_down(message: Message) -> Message:
    return Message(Error(code=2, reason="cannot read scans/P0042.png"), reply_to=message)


def babbles(message: Message) -> Message:
    return Message(RecordDict({"hello": ConfigRecord({})}), reply_to=message)


def is_gone(message: Message) -> Message:
    """Answer as Flower does for a node whose heartbeat has stopped."""
    return Message(Error(code=5, reason="gone"), reply_to=message)


def says_nothing(message: Message) -> None:
    return None


def forged() -> Message:
    """Return an update that answers nothing: what Flower hands over of a site that poses as its SuperLink."""
    update = SiteUpdate("B", TASK.model.round, "0" * 64, TASK.model.weights, ScanCounts(abnormal=666), {})
    return Message(pack_answer(update), dst_node_id=1, message_type="train")


def flower_object(kind: str, body: bytes, *children: bytes) -> bytes:
    """Return an object that Flower's store takes, since it reads its head alone."""
    numbers = ",".join(map(get_object_id, children))
    content = f"{kind} {numbers} {len(body)}".encode() + b"\x00" + body
    validate_object_content(content)
    return content


def sends_object(content: bytes, *children: bytes) -> Node:
    objects = {get_object_id(one): one for one in (content, *children)}
    number = get_object_id(content)

    def answer(message: Message) -> Message:
        inflated = inflate_object_from_contents(number, dict(objects))
        inflated.metadata.__dict__["_message_id"] = number
        return inflated

    return answer


CHUNK = flower_object("ArrayChunk", b"")
HOLLOW = flower_object("Message", MessageProto(metadata=Metadata(message_type="train")).SerializeToString(), CHUNK)


class Forging(Loopback):
    """A Grid that hands over a forgery with each look for replies."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [forged(), *super().pull_messages(message_ids), forged()]


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


def test_each_site_answers_under_the_name_the_coordinator_knows_its_node_by(spool):
    federation = FlowerFederation(Loopback({7: doubles, 9: doubles}), {9: "A", 7: "B"}, timeout_s=5, spool=spool)

    answers = federation.ask(TASK)

    assert [answer.site for answer in answers] == ["A", "B"]
    assert all(isinstance(answer, SiteUpdate) for answer in answers)
    assert torch.equal(answers[0].delta["w"], TASK.model.weights["w"])
    assert (answers[0].round, answers[0].counts.abnormal, answers[0].metrics["loss/cycle"]) == (4, 3, 0.5)


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (fails, "Diverged"),
        (breaks_down, "FlowerError"),
        (babbles, "UpdateRejected"),
        (says_nothing, "NoAnswer"),
        (sends_object(flower_object("Message", b"\xff\xff")), "UpdateRejected"),
        (sends_object(flower_object("Message", b"")), "UpdateRejected"),
        (sends_object(flower_object("RecordDict", b"garbage")), "UpdateRejected"),
        (sends_object(flower_object("RecordDict", b"{}")), "UpdateRejected"),
        (sends_object(flower_object("Array", b"{}")), "UpdateRejected"),
        (sends_object(HOLLOW, CHUNK), "UpdateRejected"),
        (sends_object(flower_object("MetricRecord", b"\x0a\x05\x0a\x01a\x12\x00")), "UpdateRejected"),
    ],
)
def test_a_site_that_does_not_train_fails_alone_and_without_details(node, reason, spool):
    federation = FlowerFederation(Loopback({1: doubles, 2: node}), {1: "A", 2: "B"}, timeout_s=0.3, spool=spool)

    trained, failed = federation.ask(TASK)

    assert isinstance(trained, SiteUpdate)
    assert failed == SiteFailure("B", TASK.model.round, reason)


@pytest.mark.parametrize(("node", "counted"), [(doubles, 3), (says_nothing, None)])
def test_no_site_can_answer_as_another(node, counted, spool):
    grid = Forging({1: doubles, 2: node})

    answers = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=0.3, spool=spool).ask(TASK)

    counts = [answer.counts.abnormal if isinstance(answer, SiteUpdate) else None for answer in answers]
    assert counts == [3, counted]


def test_an_answer_that_is_still_being_uploaded_keeps_neither_the_others_nor_the_deadline_waiting(spool, monkeypatch):
    monkeypatch.setattr(federation_module, "PATIENCE_S", 0.1)
    given_up = threading.Event()

    def uploads_for_ever(message: Message) -> Message | None:
        given_up.wait(60)
        return None

    grid = Loopback({1: uploads_for_ever, 2: doubles})
    began = time.monotonic()

    answers = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=1, spool=spool, quorum=2).ask(TASK)

    lasted_s = time.monotonic() - began
    given_up.set()
    assert [type(answer) for answer in answers] == [SiteFailure, SiteUpdate]
    assert lasted_s < 20


def test_an_answer_whose_upload_takes_longer_than_others_wait_counts_when_it_is_whole(spool, monkeypatch):
    monkeypatch.setattr(federation_module, "PATIENCE_S", 0.0)
    fetched = threading.Event()

    def uploads_slowly(message: Message) -> Message:
        fetched.wait(60)
        return doubles(message)

    def answers_meanwhile(message: Message) -> Message:
        fetched.set()
        return doubles(message)

    grid = Loopback({1: uploads_slowly, 2: answers_meanwhile})

    answers = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=60, spool=spool, quorum=2).ask(TASK)

    assert all(isinstance(answer, SiteUpdate) for answer in answers)


def test_whoever_must_know_is_told_when_tasks_have_been_sent_and_how_large_the_model_is(spool):
    told = []

    FlowerFederation(Loopback({1: doubles}), {1: "A"}, timeout_s=5, spool=spool, sent=told.append).ask(TASK)

    assert told == [TASK.model.weights["w"].nbytes]


def test_while_somebody_tells_of_answers_flower_is_not_asked_all_the_time(spool):
    arrived = []
    grid = Loopback({1: lambda message: doubles(message) if arrived else None})

    def wait(most_s):
        arrived.append(most_s)

    (answer,) = FlowerFederation(grid, {1: "A"}, timeout_s=60, spool=spool, wait=wait).ask(TASK)

    assert isinstance(answer, SiteUpdate)
    assert arrived == [federation_module.LOOK_S]
    assert len(grid.pulled) == 2


def test_a_failure_is_logged_under_the_number_that_the_sites_own_log_has(spool, caplog):
    grid = Loopback({1: fails})

    FlowerFederation(grid, {1: "A"}, timeout_s=5, spool=spool).ask(TASK)

    (task,) = grid.messages
    assert f"task {task.metadata.message_id[:12]} failed at site A: Diverged" in caplog.text


def test_a_task_expires_with_its_round_also_if_it_is_sent_late(spool, monkeypatch):
    grid = Faulty({1: says_nothing}, "get_node_ids", times=1)
    monkeypatch.setattr(federation_module, "LOOK_S", 0.5)

    FlowerFederation(grid, {1: "A"}, timeout_s=2, spool=spool).ask(TASK)

    (late,) = grid.messages
    assert 1 <= late.metadata.ttl <= 1.5


def test_replies_are_fetched_one_by_one_and_wait_on_disk(spool):
    grid = Loopback({1: doubles, 2: doubles})

    answers = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=5, spool=spool).ask(TASK)

    assert grid.pulled == ["0", "1"]
    assert [answer.delta.path.name for answer in answers] == ["A.safetensors", "B.safetensors"]


def test_a_superlink_that_cannot_answer_now_is_asked_again(spool):
    locked = httpx.HTTPStatusError("", request=httpx.Request("POST", "https://link"), response=httpx.Response(500))
    faults = [locked]

    def doubles_after_a_fault(message):
        if faults:
            raise faults.pop()
        return doubles(message)

    (answer,) = FlowerFederation(Loopback({1: doubles_after_a_fault}), {1: "A"}, timeout_s=5, spool=spool).ask(TASK)

    assert isinstance(answer, SiteUpdate)


@pytest.mark.parametrize("call", ["get_node_ids", "push_messages"])
def test_a_superlink_that_cannot_take_the_task_is_given_the_same_messages_again(call, spool, monkeypatch):
    monkeypatch.setattr(federation_module, "LOOK_S", 0.01)
    grid, handed = Faulty({9: doubles}, call, times=2), []
    grid.seen = handed.append

    answers = FlowerFederation(grid, {9: "A"}, timeout_s=5, spool=spool).ask(TASK)

    assert [answer.site for answer in answers] == ["A"]
    assert len({id(message) for message in handed}) == 1


@pytest.mark.parametrize(("status", "timeout_s"), [(500, 0.05), (409, 3600)])
def test_a_superlink_that_never_takes_the_task_ends_the_run_by_name(status, timeout_s, spool, monkeypatch):
    monkeypatch.setattr(federation_module, "LOOK_S", 0.01)
    grid = Faulty({9: doubles}, "push_messages", times=10**6, status=status)

    with pytest.raises(EngineFailed, match=str(status)):
        FlowerFederation(grid, {9: "A"}, timeout_s=timeout_s, spool=spool).ask(TASK)


def test_a_reply_that_flower_lost_fails_the_site_that_was_to_send_it(spool):
    answers = FlowerFederation(Loopback({1: is_gone}), {1: "A"}, timeout_s=0.3, spool=spool).ask(TASK)

    assert answers == [SiteFailure("A", TASK.model.round, "Away")]


def test_a_site_that_is_not_there_is_not_waited_for_once_the_quorum_has_answered(spool):
    federation = FlowerFederation(Loopback({1: doubles}), {1: "A", 2: "B"}, timeout_s=600, spool=spool)

    trained, away = federation.ask(TASK)

    assert isinstance(trained, SiteUpdate)
    assert away == SiteFailure("B", TASK.model.round, "Away")


def test_a_site_that_goes_away_is_not_waited_for_once_the_quorum_has_answered(spool):
    grid = Loopback({1: doubles, 2: is_gone})

    trained, lost = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=600, spool=spool).ask(TASK)

    assert isinstance(trained, SiteUpdate)
    assert lost == SiteFailure("B", TASK.model.round, "Away")


def test_a_site_that_was_unreachable_for_a_while_is_asked_again_in_the_same_round(spool, monkeypatch):
    monkeypatch.setattr("server.federation.LOOK_S", 0.0)
    asked = []

    def is_gone_once(message: Message) -> Message:
        asked.append(message)
        return is_gone(message) if len(asked) == 1 else doubles(message)

    federation = FlowerFederation(Loopback({1: doubles, 2: is_gone_once}), {1: "A", 2: "B"}, 600, spool, quorum=2)

    answers = federation.ask(TASK)

    assert all(isinstance(answer, SiteUpdate) for answer in answers)


def test_sites_that_come_later_are_waited_for_while_the_quorum_lacks_them(spool, monkeypatch):
    monkeypatch.setattr("server.federation.LOOK_S", 0.0)
    grid = Loopback({1: doubles})

    def fetched_by_a(message: Message) -> Message:
        grid.nodes[2] = doubles
        return doubles(message)

    grid.nodes[1] = fetched_by_a

    answers = FlowerFederation(grid, {1: "A", 2: "B"}, timeout_s=600, spool=spool, quorum=2).ask(TASK)

    assert all(isinstance(answer, SiteUpdate) for answer in answers)


def test_a_site_that_joins_anew_is_sent_the_task_again_because_it_lost_the_first(spool, monkeypatch):
    monkeypatch.setattr("server.federation.LOOK_S", 0.0)
    restarted = []

    def loses_the_first(message: Message) -> Message | None:
        restarted.append(message)
        return doubles(message) if len(restarted) > 1 else None

    def joined_anew(site: str, since: float) -> bool:
        return len(restarted) == 1

    grid = Loopback({1: loses_the_first})
    federation = FlowerFederation(grid, {1: "A"}, timeout_s=600, spool=spool, joined_anew=joined_anew)

    (answer,) = federation.ask(TASK)

    assert isinstance(answer, SiteUpdate)
    assert len(grid.messages) == 2


def plays(number: int) -> Node:
    return lambda message: Message(pack_partition(number), reply_to=message)


def test_simulated_nodes_play_the_sites_of_their_numbers():
    grid = Loopback({11: plays(1), 12: plays(0)})

    assert bind_simulated_nodes(grid, ["A", "B"], timeout_s=5) == {12: "A", 11: "B"}


@pytest.mark.parametrize("nodes", [{}, {11: plays(0)}, {11: plays(0), 12: plays(0)}, {11: plays(0), 12: plays(2)}])
def test_a_simulation_without_all_its_sites_does_not_begin(nodes):
    with pytest.raises(QuorumNotMet, match="simulated sites"):
        bind_simulated_nodes(Loopback(nodes), ["A", "B"], timeout_s=0.2)


def test_what_breaks_inside_a_site_leaves_it_as_the_name_of_a_class(tmp_path, caplog, spool):
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0},
        state=RecordDict(),
        run_config={"run-folder": str(tmp_path / "P0042")},
    )
    grid = Loopback({1: lambda message: site_app(message, context)})
    federation = FlowerFederation(grid, {1: "A"}, timeout_s=5, spool=spool)

    answers = federation.ask(TASK)

    assert answers == [SiteFailure("A", TASK.model.round, "SettingsError")]
    assert "P0042" in caplog.text


def remembers(memory: FolderMemory) -> Node:
    """Train by doubling, like a site that keeps the model it was sent."""

    def answer(message: Message) -> Message:
        try:
            task = unpack_task(message.content, memory.model_of)
        except FedganError as refusal:
            return Message(pack_answer(SiteFailure("", 0, type(refusal).__name__)), reply_to=message)
        memory.keep_model(task.model.weights)
        digest = digest_of(task.model.weights)
        update = SiteUpdate("", task.model.round, digest, task.model.weights, ScanCounts(1), {})
        return Message(pack_answer(update), reply_to=message)

    return answer


def stepped(start: GlobalModel) -> GlobalModel:
    """Return the model after a round, with the step that leads there."""
    moved = encode({"w": torch.tensor([0.5, -1.0])}, {"w": "int8"})
    step = ModelStep(digest_of(start.weights), moved, {})
    return GlobalModel(start.round + 1, take_step(start.weights, moved), {}, step)


def test_a_site_that_has_the_model_before_is_sent_the_step_alone(spool, tmp_path):
    grid = Loopback({1: remembers(FolderMemory(tmp_path / "A"))})
    federation = FlowerFederation(grid, {1: "A"}, timeout_s=5, spool=spool)
    start = GlobalModel(0, {"w": torch.tensor([1.0, 2.0])})

    federation.ask(RoundTask(start, 3))
    (answer,) = federation.ask(RoundTask(stepped(start), 3))

    assert ["weights" in message.content for message in grid.messages] == [True, False]
    assert torch.equal(answer.delta["w"], stepped(start).weights["w"])
    assert answer.digest == digest_of(stepped(start).weights)


def test_a_site_that_lost_its_model_is_sent_all_of_the_next_in_the_same_round(spool, tmp_path):
    memory = FolderMemory(tmp_path / "A")
    grid = Loopback({1: remembers(memory)})
    federation = FlowerFederation(grid, {1: "A"}, timeout_s=5, spool=spool)
    start = GlobalModel(0, {"w": torch.tensor([1.0, 2.0])})
    federation.ask(RoundTask(start, 3))
    (memory.folder / "model.safetensors").unlink()

    (answer,) = federation.ask(RoundTask(stepped(start), 3))

    assert ["weights" in message.content for message in grid.messages] == [True, False, True]
    assert isinstance(answer, SiteUpdate)
    assert answer.metrics["traffic/to_site"] == sum(size_of(message.content) for message in grid.messages[1:])


def test_what_the_link_carried_is_told_of_each_site(spool):
    (answer,) = FlowerFederation(Loopback({1: doubles}), {1: "A"}, timeout_s=5, spool=spool).ask(TASK)

    assert answer.metrics["traffic/to_site"] == size_of(pack_task(TASK))
    assert answer.metrics["traffic/from_site"] > 0
