"""The Flower strategy, in Flower's own loop, with the example that the documentation shows."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import ServerApp
from flwr.supercore.task_identity import TaskIdentity
from torch import nn

from fedgan.errors import ModelError
from server.strategy import GanFedAvg, Networks

EXAMPLE = Path(__file__).parents[2] / "docs" / "flower_gan.py"


@pytest.fixture(autouse=True)
def _flower_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("flower_gan", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Grid:
    """As much of Flower's Grid as its loop uses: every message is answered at once by a function."""

    def __init__(self, answer, nodes=(1, 2, 3)):
        self.answer, self.nodes = answer, nodes

    def get_node_ids(self) -> Iterable[int]:
        return self.nodes

    def send_and_receive(self, messages, *, timeout=None):
        return [self.answer(message) for message in messages]


def context() -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})


def pack(weights) -> ArrayRecord:
    return ArrayRecord({name: Array(tensor.numpy()) for name, tensor in weights.items()})


def unpack(record) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.numpy().copy()) for name, array in record.items()}


def test_the_example_trains_in_flowers_stock_loop_and_keeps_its_lipschitz_bound(example):
    torch.manual_seed(0)
    start = example.networks().state_dict()
    strategy = example.GanFedAvg(example.networks(), fraction_evaluate=0.0)

    result = strategy.start(Grid(lambda message: example.client(message, context())), pack(start), num_rounds=2)

    trained = unpack(result.arrays)
    gan = example.networks()
    gan.load_state_dict(trained)
    assert not torch.equal(trained["generator.0.weight"], start["generator.0.weight"])
    assert trained["generator.1.num_batches_tracked"].item() == 2 * 40
    assert torch.linalg.svdvals(gan.eval().discriminator[0].weight)[0].item() == pytest.approx(1, abs=1e-3)
    assert list(result.train_metrics_clientapp) == [1, 2]


def test_the_example_is_a_whole_app_of_about_forty_lines(example):
    assert isinstance(example.app, ServerApp)
    assert len(EXAMPLE.read_text().splitlines()) <= 48


def one(network: float) -> Networks:
    gan = Networks(generators={"G": nn.Linear(1, 1, bias=False)}, discriminators={"D": nn.Linear(1, 1, bias=False)})
    for parameter in gan.parameters():
        nn.init.constant_(parameter, network)
    return gan


def answering(steps, **counts):
    """Return clients that move every tensor by a step of their own and say by how many examples."""

    def answer(message):
        node = message.metadata.dst_node_id
        if steps[node] is None:
            return Message(Error(code=1), reply_to=message)
        weights = unpack(message.content.array_records["arrays"])
        metrics = {"num-examples": 10} | {f"num-examples/{name}": of_node[node] for name, of_node in counts.items()}
        moved = pack({name: tensor + steps[node] for name, tensor in weights.items()})
        return Message(RecordDict({"arrays": moved, "metrics": MetricRecord(metrics)}), reply_to=message)

    return answer


def run(strategy, answer, nodes=(1, 2, 3), rounds=1):
    return unpack(strategy.start(Grid(answer, nodes), pack(one(0.0).state_dict()), num_rounds=rounds).arrays)


def test_each_network_is_averaged_by_the_examples_that_trained_it():
    strategy = GanFedAvg(one(0.0), fraction_evaluate=0.0, norm_ratio=100)

    weights = run(strategy, answering({1: 3.0, 2: 1.0, 3: 8.0}, D={1: 10, 2: 30, 3: 0}))

    assert weights["G.weight"].item() == pytest.approx(4.0)
    assert weights["D.weight"].item() == pytest.approx(1.5)


def test_a_client_that_sends_no_numbers_is_left_out_and_the_round_goes_on():
    strategy = GanFedAvg(one(0.0), fraction_evaluate=0.0)

    weights = run(strategy, answering({1: 1.0, 2: float("nan"), 3: 1.0}))

    assert weights["G.weight"].item() == 1.0


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((), torch.float32),
        ((3,), torch.float32),
        ((1, 3), torch.float32),
        ((2, 3), torch.float32),
        ((3, 3), torch.float16),
        ((3, 3), torch.int64),
    ],
    ids=str,
)
def test_a_client_that_sends_a_tensor_of_another_shape_or_type_is_left_out_by_name(shape, dtype, caplog):
    gan = Networks(generators={"G": nn.Linear(3, 3)}, discriminators={"D": nn.Linear(3, 1)})
    start = {name: torch.zeros_like(tensor) for name, tensor in gan.state_dict().items()}
    usual = answering({1: 1.0, 2: 1.0, 3: 9.0})

    def answer(message):
        reply = usual(message)
        if message.metadata.dst_node_id == 3:
            reply.content["arrays"] = pack(
                {**unpack(reply.content["arrays"]), "G.weight": torch.ones(shape, dtype=dtype)}
            )
        return reply

    result = GanFedAvg(gan, fraction_evaluate=0.0).start(Grid(answer), pack(start), num_rounds=1)

    assert torch.equal(unpack(result.arrays)["G.weight"], torch.ones(3, 3))
    assert f"site {3:020d} sent tensors that differ from the model's in name, shape or type" in caplog.text


def test_a_client_that_fails_is_left_out():
    strategy = GanFedAvg(one(0.0), fraction_evaluate=0.0)

    assert run(strategy, answering({1: 1.0, 2: None, 3: 3.0}))["G.weight"].item() == 2.0


def test_a_round_in_which_nothing_can_be_combined_changes_nothing():
    strategy = GanFedAvg(one(0.0), fraction_evaluate=0.0)
    nan = float("nan")
    strategy.configure_train(1, pack(one(0.0).state_dict()), ConfigRecord(), Grid(None))

    replies = Grid(answering({1: nan, 2: nan, 3: nan})).send_and_receive(
        strategy.configure_train(1, pack(one(0.0).state_dict()), ConfigRecord(), Grid(None))
    )

    assert strategy.aggregate_train(1, replies) == (None, None)


def test_a_tensor_of_no_known_kind_is_refused_before_the_first_round():
    generator = nn.Linear(1, 1)
    generator.register_buffer("temperature", torch.ones(()))

    with pytest.raises(ModelError, match=r"G\.temperature"):
        GanFedAvg(Networks(generators={"G": generator}, discriminators={"D": nn.Linear(1, 1)}))
