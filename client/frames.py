"""A message's content as frames between relay and worker: one header in JSON, then the arrays' bytes.

Known kinds of records and numbers only: no pickle, no bytes of a format that NumPy would interpret. What the header
claims is judged before anything is allocated for it, and what arrives must be exactly as long as it claims. Neither
torch nor fedgan is imported, since the relay, which has a process of its own for each message, has no use for them.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import chain
from typing import Annotated, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from pydantic import BaseModel, ConfigDict, Field, ValidationError

SERVICE, CALL = "fedgan.Site", "Answer"
"""The worker's one call in gRPC's terms: frames in, frames out."""

NUMBER = "task"
"""Under which metadata key a task's number comes with it, by which the site's own log tells tasks apart."""

FRAME_BYTES = 2 * 1024 * 1024
"""Longest frame; what comes before it must fit in one."""

Part = bytes | memoryview


class FramesRefused(Exception):
    """Frames are not a message's content as it must be; not in fedgan's tree of errors, for the relay lacks it."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Name = Annotated[str, Field(max_length=256)]
Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Text = Annotated[str, Field(max_length=65536)]
Value = bool | Whole | float | Text | list[bool] | list[Whole] | list[float] | list[Text]
Dtype = Literal["float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]


class _ArrayHeader(_Strict):
    name: Name
    dtype: Dtype
    shape: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**40)], ...], Field(max_length=8)]
    nbytes: Annotated[int, Field(ge=0)]

    @property
    def measured(self) -> int:
        """Return how many bytes the shape and the type make."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class _Arrays(_Strict):
    kind: Literal["arrays"]
    arrays: Annotated[tuple[_ArrayHeader, ...], Field(max_length=20000)]


class _Config(_Strict):
    kind: Literal["config"]
    entries: dict[Name, Value]


class _Metrics(_Strict):
    kind: Literal["metrics"]
    entries: dict[Name, float]


class _Header(_Strict):
    version: Literal[1]
    records: Annotated[
        dict[Name, Annotated[_Arrays | _Config | _Metrics, Field(discriminator="kind")]], Field(max_length=16)
    ]

    def arrays(self) -> Sequence[_ArrayHeader]:
        """Return the headers of all arrays, in the order in which their bytes follow."""
        return [array for record in self.records.values() if isinstance(record, _Arrays) for array in record.arrays]


def write_frames(content: RecordDict) -> Iterator[bytes]:
    """Return ``content`` as frames, of which each can be given away before the next is made.

    Raises:
        FramesRefused: a record is of no known kind, or an array is not as NumPy writes plain numbers.
    """
    bodies: list[Part] = []
    header = _checked({"version": 1, "records": {name: _described(content[name], bodies) for name in content}})
    first = header.model_dump_json().encode()
    if len(first) > FRAME_BYTES:
        raise FramesRefused("the header is longer than a frame")
    return chain([first], _cut(bodies))


def _cut(bodies: Iterable[Part]) -> Iterator[bytes]:
    for body in bodies:
        for start in range(0, len(body), FRAME_BYTES):
            yield bytes(body[start : start + FRAME_BYTES])


def read_frames(frames: Iterable[bytes], *, max_bytes: int) -> RecordDict:
    """Return the content that ``frames`` carry, of at most ``max_bytes`` in arrays.

    Raises:
        FramesRefused: the frames are too few, too many or too long, or not what their header says.
    """
    arriving = iter(frames)
    header = _read_header(_next(arriving))
    total = sum(array.nbytes for array in header.arrays())
    if total > max_bytes:
        raise FramesRefused(f"{total} bytes of arrays are announced, and {max_bytes} are allowed")
    content = RecordDict()
    for name, record in header.records.items():
        match record:
            case _Arrays():
                content[name] = ArrayRecord({array.name: _read_array(array, arriving) for array in record.arrays})
            case _Config():
                content[name] = ConfigRecord({**record.entries})
            case _Metrics():
                content[name] = MetricRecord({**record.entries})
    if next(arriving, None) is not None:
        raise FramesRefused("there are more frames than announced")
    return content


def _read_header(frame: bytes) -> _Header:
    if len(frame) > FRAME_BYTES:
        raise FramesRefused("the header is longer than a frame")
    try:
        header = _Header.model_validate_json(frame)
    except ValidationError as error:
        raise FramesRefused(f"the header has {error.error_count()} fault(s)") from error
    if any(array.nbytes != array.measured for array in header.arrays()):
        raise FramesRefused("an array's shape and type do not make its length")
    for record in header.records.values():
        if isinstance(record, _Arrays) and len({array.name for array in record.arrays}) < len(record.arrays):
            raise FramesRefused("two arrays of a record have one name")
    return header


def _read_array(array: _ArrayHeader, frames: Iterator[bytes]) -> Array:
    """Return an array as Flower carries it: NumPy's own format, with the header that the frames' own stands for."""
    parts, missing = [_npy_header(array)], array.nbytes
    while missing:
        part = _next(frames)
        if not 0 < len(part) <= min(missing, FRAME_BYTES):
            raise FramesRefused("a frame is empty or longer than what is left of its array")
        parts.append(part)
        missing -= len(part)
    return Array(dtype=array.dtype, shape=array.shape, stype="numpy.ndarray", data=b"".join(parts))


def _npy_header(array: _ArrayHeader) -> bytes:
    stream = BytesIO()
    described = {"descr": npy.dtype_to_descr(np.dtype(array.dtype)), "fortran_order": False, "shape": array.shape}
    npy.write_array_header_1_0(stream, described)
    return stream.getvalue()


def _described(record: object, bodies: list[Part]) -> dict[str, object]:
    """Return a record's part of the header, and add to ``bodies`` the bytes that will follow."""
    match record:
        case ArrayRecord():
            return {
                "kind": "arrays",
                "arrays": tuple(_array_header(name, array, bodies) for name, array in record.items()),
            }
        case ConfigRecord():
            return {"kind": "config", "entries": dict(record)}
        case MetricRecord():
            return {"kind": "metrics", "entries": dict(record)}
    raise FramesRefused("a record is of no known kind")


def _array_header(name: str, array: Array, bodies: list[Part]) -> dict[str, object]:
    """Return an array's header, made of what its bytes say and not of what is said beside them."""
    stream = BytesIO(array.data)
    try:
        if npy.read_magic(stream) != (1, 0):
            raise FramesRefused("an array is not in NumPy's first format")
        shape, transposed, dtype = npy.read_array_header_1_0(stream)
    except (ValueError, SyntaxError, TypeError) as error:  # as NumPy fails on what is no header
        raise FramesRefused("an array is not in NumPy's format") from error
    body: Part = memoryview(array.data)[stream.tell() :]
    if dtype.hasobject or len(body) != math.prod(shape) * dtype.itemsize:
        raise FramesRefused("an array's shape and type do not make its length")
    if transposed:
        body = np.frombuffer(body, dtype).reshape(shape, order="F").tobytes()
    bodies.append(body)
    return {"name": name, "dtype": dtype.name, "shape": tuple(map(int, shape)), "nbytes": len(body)}


def _checked(values: dict[str, object]) -> _Header:
    try:
        return _Header.model_validate(values)
    except ValidationError as error:
        raise FramesRefused(f"the content has {error.error_count()} part(s) that frames do not carry") from error


def _next(frames: Iterator[bytes]) -> bytes:
    try:
        return next(frames)
    except StopIteration:
        raise FramesRefused("there are fewer frames than announced") from None
