"""The coordinator's side of Flower: one answer per site, whatever the sites and the network do."""

from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as site_app
from fedgan.errors import QuorumNotMet
from fedgan.records import GlobalModel, RoundTask, ScanCounts, SiteFailure, SiteUpdate
from fedgan.wire import pack_answer, pack_partition, unpack_task
from server.federation import FlowerFederation, bind_simulated_nodes

TASK = RoundTask(GlobalModel(4, {"w": torch.tensor([1.0, 2.0])}), local_steps=3)

Node = Callable[[Message], Message | None]


class Loopback:
    """As much of Flower's Grid as a federation uses: the nodes are functions, called at once."""

    def __init__(self, nodes: Mapping[int, Node]) -> None:
        self.nodes = nodes
        self.messages: list[Message] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.messages += messages
        replies = [self.nodes[message.metadata.dst_node_id](message) for message in self.messages]
        return [reply for reply in reversed(replies) if reply is not None]


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


def says_nothing(message: Message) -> None:
    return None


def test_each_site_answers_under_the_name_the_coordinator_knows_its_node_by():
    federation = FlowerFederation(Loopback({7: doubles, 9: doubles}), {9: "A", 7: "B"}, timeout_s=5)

    answers = federation.ask(TASK)

    assert [answer.site for answer in answers] == ["A", "B"]
    assert all(isinstance(answer, SiteUpdate) for answer in answers)
    assert torch.equal(answers[0].delta["w"], TASK.model.weights["w"])
    assert (answers[0].round, answers[0].counts.abnormal, answers[0].metrics) == (4, 3, {"loss/cycle": 0.5})


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        (fails, "Diverged"),
        (breaks_down, "FlowerError"),
        (babbles, "UpdateRejected"),
        (says_nothing, "NoAnswer"),
    ],
)
def test_a_site_that_does_not_train_fails_alone_and_without_details(node, reason):
    federation = FlowerFederation(Loopback({1: doubles, 2: node}), {1: "A", 2: "B"}, timeout_s=5)

    trained, failed = federation.ask(TASK)

    assert isinstance(trained, SiteUpdate)
    assert failed == SiteFailure("B", TASK.model.round, reason)


def test_a_task_expires_with_its_round():
    grid = Loopback({1: says_nothing})

    FlowerFederation(grid, {1: "A"}, timeout_s=5).ask(TASK)

    assert [message.metadata.ttl for message in grid.messages] == [5]


def plays(number: int) -> Node:
    return lambda message: Message(pack_partition(number), reply_to=message)


def test_simulated_nodes_play_the_sites_of_their_numbers():
    grid = Loopback({11: plays(1), 12: plays(0)})

    assert bind_simulated_nodes(grid, ["A", "B"], timeout_s=5) == {12: "A", 11: "B"}


@pytest.mark.parametrize("nodes", [{}, {11: plays(0)}, {11: plays(0), 12: plays(0)}, {11: plays(0), 12: plays(2)}])
def test_a_simulation_without_all_its_sites_does_not_begin(nodes):
    with pytest.raises(QuorumNotMet, match="simulated sites"):
        bind_simulated_nodes(Loopback(nodes), ["A", "B"], timeout_s=0.2)


def test_what_breaks_inside_a_site_leaves_it_as_the_name_of_a_class(tmp_path, caplog):
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0},
        state=RecordDict(),
        run_config={"run-folder": str(tmp_path / "P0042")},
    )
    federation = FlowerFederation(Loopback({1: lambda message: site_app(message, context)}), {1: "A"}, timeout_s=5)

    answers = federation.ask(TASK)

    assert answers == [SiteFailure("A", TASK.model.round, "SettingsError")]
    assert "P0042" in caplog.text
