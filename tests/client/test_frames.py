"""What goes through the seam between relay and worker arrives bit for bit, and nothing else gets through it."""

import json
import resource
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from client.frames import FRAME_BYTES, FramesRefused, read_frames, write_frames

MOST = 64 * 1024 * 1024

NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
WHOLE = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(
    st.booleans(),
    WHOLE,
    FLOATS,
    NAMES,
    st.lists(WHOLE, max_size=3),
    st.lists(NAMES, max_size=3),
    st.lists(st.booleans()),
)
TENSORS = st.sampled_from([np.float32, np.float16, np.int64, np.int8, np.bool_]).flatmap(
    lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, min_side=0, max_side=4))
)
RECORDS = st.one_of(
    st.dictionaries(NAMES, VALUES, max_size=4).map(ConfigRecord),
    st.dictionaries(NAMES, FLOATS, max_size=4).map(MetricRecord),
    st.dictionaries(NAMES, TENSORS.map(lambda values: Array(np.asarray(values))), max_size=4).map(ArrayRecord),
)


def header(**array: object) -> bytes:
    """Return the header of a message of one array, which is sound but for what is given."""
    sound = {"name": "w", "dtype": "float32", "shape": [2], "nbytes": 8}
    return json.dumps(
        {"version": 1, "records": {"weights": {"kind": "arrays", "arrays": [{**sound, **array}]}}}
    ).encode()


@given(st.dictionaries(NAMES, RECORDS, max_size=4).map(RecordDict))
def test_content_arrives_as_it_was_sent(content):
    arrived = read_frames(write_frames(content), max_bytes=MOST)

    assert list(arrived) == list(content)
    for name, record in content.items():
        assert type(arrived[name]) is type(record)
        if isinstance(record, ArrayRecord):
            assert [arrived[name][key].data for key in arrived[name]] == [array.data for array in record.values()]
        else:
            assert dict(arrived[name]) == dict(record)
            assert [type(value) for value in arrived[name].values()] == [type(value) for value in record.values()]


def test_a_transposed_array_arrives_as_what_it_shows():
    shown = np.arange(6, dtype=np.float32).reshape(2, 3).T

    arrived = read_frames(write_frames(RecordDict({"w": ArrayRecord({"w": Array(shown)})})), max_bytes=MOST)

    assert np.array_equal(arrived["w"]["w"].numpy(), shown)


def test_a_large_array_goes_in_frames_of_bounded_length():
    drawn = np.random.default_rng(0).random((700, 1000), dtype=np.float32)
    content = RecordDict({"w": ArrayRecord({"w": Array(drawn)})})

    frames = list(write_frames(content))

    assert len(frames) == 3  # the header, and 2.8 MB
    assert max(map(len, frames)) <= FRAME_BYTES
    assert read_frames(frames, max_bytes=MOST)["w"]["w"].data == content["w"]["w"].data


@pytest.mark.parametrize(
    "first",
    [
        header(dtype="object"),
        header(dtype="float64"),
        header(dtype="O"),
        header(dtype="<f4,<f4"),
        header(shape=[-2]),
        header(shape=[2.0]),
        header(shape=[True, 2]),
        header(shape=[3]),
        header(shape="2"),
        header(nbytes=9),
        header(nbytes="8"),
        header(nbytes=float("nan")),
        header(shape=[float("nan")]),
        header(shape=[float("inf")]),
        header(shape=[1e9]),
        header(shape=[1] * 9 + [2]),
        header(more=1),
        header(name="w" * 257),
        header()[:-1],
        b"",
        b"\x80\x04\x95",
        b"[]",
        b"null",
        header().replace(b'"version": 1', b'"version": 2'),
        header().replace(b"arrays", b"pickles"),
        json.dumps({"version": 1, "records": {"task": {"kind": "config", "entries": {"a": float("nan")}}}}).encode(),
        json.dumps({"version": 1, "records": {"task": {"kind": "config", "entries": {"a": {"b": 1}}}}}).encode(),
        json.dumps({"version": 1, "records": {"task": {"kind": "config", "entries": {"a": 2**64}}}}).encode(),
        json.dumps({"version": 1, "records": {"m": {"kind": "metrics", "entries": {"a": float("inf")}}}}).encode(),
        b" " * FRAME_BYTES + header(),
    ],
)
def test_a_header_that_is_not_of_the_schema_is_refused(first):
    with pytest.raises(FramesRefused):
        read_frames([first, bytes(8)], max_bytes=MOST)


@pytest.mark.parametrize(
    "bodies", [[], [bytes(7)], [bytes(9)], [bytes(8), b""], [bytes(8), bytes(1)], [b"", bytes(8)], [bytes(4)] * 3]
)
def test_bytes_that_are_not_as_many_as_announced_are_refused(bodies):
    with pytest.raises(FramesRefused):
        read_frames([header(), *bodies], max_bytes=MOST)


def test_two_arrays_of_one_name_are_refused():
    twice = json.loads(header())
    twice["records"]["weights"]["arrays"] *= 2

    with pytest.raises(FramesRefused, match="one name"):
        read_frames([json.dumps(twice).encode(), bytes(8), bytes(8)], max_bytes=MOST)


@pytest.mark.parametrize("claim", [{"shape": [10**9], "nbytes": 4 * 10**9}, {"shape": [2**39, 2**39], "nbytes": 2**80}])
def test_a_billion_claimed_elements_are_refused_before_anything_is_allocated(claim):
    tracemalloc.start()

    with pytest.raises(FramesRefused, match="allowed"):
        read_frames([header(**claim)], max_bytes=MOST)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_claims_within_bounds_cost_no_memory_before_bytes_arrive():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claim = header(shape=[2**30], nbytes=2**32)

    with pytest.raises(FramesRefused, match="fewer frames"):
        read_frames([claim, bytes(100)], max_bytes=2**33)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


@pytest.mark.parametrize(
    "array",
    [
        Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=b"nothing"),
        Array(dtype="float32", shape=(2,), stype="numpy.ndarray", data=Array(np.zeros(2, np.float32)).data[:-1]),
        Array(np.zeros(2, np.complex64)),
        Array(np.zeros(2)),
    ],
)
def test_an_array_that_is_not_plain_numbers_is_not_sent_on(array):
    with pytest.raises(FramesRefused):
        write_frames(RecordDict({"w": ArrayRecord({"w": array})}))
