"""Records survive the wire bit for bit, and nothing else gets through it."""

import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedgan.errors import UpdateRejected
from fedgan.records import (
    GlobalModel,
    ModelStep,
    RoundTask,
    ScanCounts,
    SiteFailure,
    SiteUpdate,
    Weights,
    digest_of,
)
from fedgan.wire import (
    TENSORS,
    pack_answer,
    pack_partition,
    pack_step,
    pack_task,
    unpack_answer,
    unpack_partition,
    unpack_task,
)

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DRAWN = st.sampled_from([np.float32, np.float16, np.int64]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
)
WEIGHTS = st.dictionaries(NAMES, DRAWN.map(lambda values: torch.from_numpy(np.asarray(values))), max_size=4)
COUNTS = st.integers(0, 2**31)
COUNTED = st.builds(ScanCounts, COUNTS, COUNTS, COUNTS, st.lists(COUNTS, max_size=3).map(tuple))
UPDATE = SiteUpdate(
    "A", 3, "0" * 64, {"w": torch.arange(6.0).reshape(2, 3)}, ScanCounts(3, 2, 0, (2,)), {"loss/cycle": 0.25}
)


def sent(records: RecordDict) -> RecordDict:
    """Return ``records`` as the other end gets them: through bytes."""
    return recorddict_from_proto(ProtoRecordDict.FromString(recorddict_to_proto(records).SerializeToString()))


def assert_identical(got: Weights, expected: Weights) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].shape == tensor.shape
        assert got[name].numpy().tobytes() == tensor.numpy().tobytes()


@given(weights=WEIGHTS, number=COUNTS, local_steps=COUNTS, terms=NAMES)
def test_a_task_arrives_bit_for_bit(weights, number, local_steps, terms):
    task = RoundTask(GlobalModel(number, weights), local_steps, terms)

    arrived = unpack_task(sent(pack_task(task)))

    assert (arrived.model.round, arrived.local_steps, arrived.terms) == (number, local_steps, terms)
    assert_identical(arrived.model.weights, weights)


@given(delta=WEIGHTS, metrics=st.dictionaries(NAMES, st.floats(allow_nan=False)), number=COUNTS, counts=COUNTED)
@example(delta={}, metrics={}, number=0, counts=ScanCounts())
def test_an_update_arrives_bit_for_bit_under_the_name_the_transport_gives(delta, metrics, number, counts):
    update = SiteUpdate("what the site says", number, "1f" * 32, delta, counts, metrics)

    arrived = unpack_answer(sent(pack_answer(update)), site="A", round=number)

    assert isinstance(arrived, SiteUpdate)
    assert (arrived.site, arrived.round, arrived.digest) == ("A", number, update.digest)
    assert (arrived.counts, arrived.metrics) == (counts, metrics)
    assert_identical(arrived.delta, delta)


def test_an_update_keeps_the_round_it_was_made_in():
    arrived = unpack_answer(sent(pack_answer(UPDATE)), site="A", round=UPDATE.round + 1)

    assert arrived.round == UPDATE.round


def test_a_transposed_tensor_arrives_as_what_it_shows():
    tensor = torch.arange(6.0).reshape(2, 3).T

    arrived = unpack_task(sent(pack_task(RoundTask(GlobalModel(0, {"w": tensor}), 1))))

    assert torch.equal(arrived.model.weights["w"], tensor)


def test_what_arrives_can_be_trained_in_place():
    arrived = unpack_task(sent(pack_task(RoundTask(GlobalModel(0, {"w": torch.zeros(2)}), 1))))

    arrived.model.weights["w"].add_(1)

    assert arrived.model.weights["w"].tolist() == [1.0, 1.0]


def test_a_failure_arrives_as_the_name_of_its_class_in_the_round_that_was_asked():
    failure = SiteFailure("A", 7, "CohortError")

    arrived = unpack_answer(sent(pack_answer(failure)), site="A", round=7)

    assert arrived == failure


@pytest.mark.parametrize("reason", ["", "no such file: scans/P0042.png", "P0042.png", "x" * 65, "CohortError\n"])
def test_a_failure_that_says_more_than_a_class_is_neither_sent_nor_believed(reason):
    with pytest.raises(UpdateRejected):
        pack_answer(SiteFailure("A", 0, reason))
    with pytest.raises(UpdateRejected):
        unpack_answer(RecordDict({"failure": ConfigRecord({"reason": reason})}), site="A", round=0)


def test_no_tensor_is_unpickled():
    pickled = Array(dtype="float32", shape=(1,), stype="numpy.ndarray", data=pickle.dumps(np.ones(1)))
    records = pack_answer(UPDATE)
    records["delta"] = ArrayRecord({TENSORS: pickled})

    with pytest.raises(UpdateRejected, match="the tensors cannot be read"):
        unpack_answer(records, site="A", round=3)


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")  # damage can look like the NumPy of Python 2
@given(st.data())
def test_damaged_tensors_are_read_or_refused(data):
    records = pack_answer(UPDATE)
    whole = bytearray(records["delta"][TENSORS].data)
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    described = {"dtype": "uint8", "shape": (len(damaged),), "stype": "numpy.ndarray"}
    records["delta"] = ArrayRecord({TENSORS: Array(**described, data=damaged)})

    try:
        answer = unpack_answer(records, site="A", round=3)
    except UpdateRejected:
        return

    assert all(isinstance(tensor, torch.Tensor) for tensor in answer.delta.values())


def test_tensors_are_in_one_array_and_in_nothing_else():
    records = pack_answer(UPDATE)
    records["delta"]["w"] = Array(np.ones(2))

    with pytest.raises(UpdateRejected, match="another array"):
        unpack_answer(records, site="A", round=3)


def test_many_small_tensors_are_few_objects_for_flower():
    weights = {f"layer {number}": torch.rand(10) for number in range(100)}

    objects = get_all_nested_objects(pack_task(RoundTask(GlobalModel(0, weights), 1)))

    assert len(objects) < 10


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("update", None),
        ("update", MetricRecord({"round": 3, "num-images": 5})),
        ("update", ConfigRecord({"round": 3})),
        ("update", ConfigRecord({"round": 3.0, "num-images": 5})),
        ("update", ConfigRecord({"round": 3, "num-images": True})),
        ("update", ConfigRecord({"round": 3, "num-images": -5})),
        ("delta", None),
        ("delta", ConfigRecord({})),
        ("metrics", MetricRecord({"loss/cycle": [0.5, 0.25]})),
        ("metrics", MetricRecord({"loss/cycle": 1})),
        ("failure", ConfigRecord({})),
        ("failure", MetricRecord({"reason": 1})),
    ],
)
def test_what_is_not_an_answer_is_refused(name, record):
    records = pack_answer(UPDATE)
    records.pop(name, None)
    if record is not None:
        records[name] = record

    with pytest.raises(UpdateRejected, match="cannot be understood"):
        unpack_answer(records, site="A", round=3)


def test_an_answer_is_not_a_task():
    with pytest.raises(UpdateRejected, match="there is no ConfigRecord named task"):
        unpack_task(pack_answer(UPDATE))


@pytest.mark.parametrize("terms", [None, b"seed: 0", 3, "x" * (16 * 1024 + 1), "\N{SNOWMAN}" * 6000])
def test_terms_that_are_not_a_short_text_are_refused(terms):
    records = pack_task(RoundTask(GlobalModel(0, {}), 1))
    if terms is None:
        del records["task"]["terms"]
    else:
        records["task"]["terms"] = terms

    with pytest.raises(UpdateRejected, match="the terms are not a short text"):
        unpack_task(records)


def test_a_step_carries_the_terms_of_its_task():
    before = {"w": torch.zeros(2)}
    task = RoundTask(GlobalModel(1, {"w": torch.ones(2)}), 1, "seed: 0")

    step = ModelStep(digest_of(before), {}, {"w": torch.ones(2)})
    arrived = unpack_task(sent(pack_step(task, step)), {digest_of(before): before}.get)

    assert arrived.terms == "seed: 0"


def test_a_node_says_which_site_it_plays():
    assert unpack_partition(sent(pack_partition(2))) == 2
