"""Records to Flower messages and back: the one place where fedgan meets Flower's types.

Who speaks is not written in a message: the transport knows the node, and the coordinator knows whose node it is.
A model's tensors travel as one array, which is a safetensors file: Flower hands objects on one by one, so that many
small ones take longer than their bytes. Neither that nor NumPy's format, in which Flower has arrays, is ever unpickled.
"""

import re
from collections.abc import Callable, Mapping
from io import BytesIO
from tokenize import TokenError
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load, save

from fedgan.errors import BaseMissing, UpdateRejected
from fedgan.federated.compression import take_step
from fedgan.records import (
    Answer,
    GlobalModel,
    ModelStep,
    RoundTask,
    ScanCounts,
    SiteFailure,
    SiteUpdate,
    Weights,
    digest_of,
)

Record = TypeVar("Record", ArrayRecord, MetricRecord, ConfigRecord)

CLASS_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
"""All that may be said of a failure: long enough for a class, too short and plain for a path or a patient."""


DIGEST = re.compile(r"[0-9a-f]{64}")

TENSORS = "safetensors"
"""The name of the one array of a record of tensors."""

PLAIN = np.dtype(np.uint8)

UNREADABLE = (SafetensorError, TypeError, ValueError, KeyError, OverflowError, MemoryError, SyntaxError, TokenError)
"""As NumPy and safetensors fail on what is not of their formats."""

MOST_DISEASES = 1000

MOST_TERMS_BYTES = 16 * 1024
"""Many times what the terms of a run take."""


Known = Callable[[str], Weights | None]
"""From a digest to the weights that have it, where they are known."""

Keep = Callable[[memoryview], Weights]
"""From the content of a safetensors file to the tensors in it, wherever they are kept."""


def in_memory(packed: memoryview) -> Weights:
    """Return the tensors of a safetensors file's content."""
    return load(bytes(packed))


def pack_task(task: RoundTask) -> RecordDict:
    """Return the message content of ``task``, for a site of which nothing is known."""
    return RecordDict({"task": _pack_head(task), "weights": _pack_weights(task.model.weights)})


def pack_step(task: RoundTask, step: ModelStep) -> RecordDict:
    """Return the message content of ``task`` for a site that has the weights from which ``step`` leads to its model."""
    head = _pack_head(task)
    head["base"], head["digest"] = step.base, task.model.digest
    moved, replaced = _pack_weights(step.moved), _pack_weights(step.replaced)
    return RecordDict({"task": head, "moved": moved, "replaced": replaced})


def unpack_task(records: RecordDict, known: Known = lambda digest: None) -> RoundTask:
    """Return the task that ``pack_task`` or ``pack_step`` packed.

    Raises:
        UpdateRejected: ``records`` are not a task, or the step in them does not lead where it says.
        BaseMissing: they are a step from weights that are not ``known``.
    """
    head = _record(records, "task", ConfigRecord)
    number, local_steps, terms = _count(head, "round"), _count(head, "local-steps"), _terms(head)
    if "weights" in records:
        weights = _unpack_weights(_record(records, "weights", ArrayRecord))
        return RoundTask(GlobalModel(number, weights), local_steps, terms)
    base = known(_digest(head, "base"))
    if base is None:
        raise BaseMissing("the model before this step is not here; the coordinator must send all of it")
    moved = _unpack_weights(_record(records, "moved", ArrayRecord))
    weights = _walk(base, moved, _unpack_weights(_record(records, "replaced", ArrayRecord)))
    if digest_of(weights) != _digest(head, "digest"):
        raise _rejected("the step does not lead to the model that it names")
    return RoundTask(GlobalModel(number, weights), local_steps, terms)


def terms_in(records: RecordDict) -> str:
    """Return the terms that come with a task, before the rest of it is unpacked; a site judges them first.

    Raises:
        UpdateRejected: ``records`` are not a task.
    """
    return _terms(_record(records, "task", ConfigRecord))


def _walk(base: Weights, moved: Weights, replaced: Weights) -> Weights:
    try:
        return {**base, **take_step(base, moved), **replaced}
    except (KeyError, RuntimeError, IndexError, TypeError) as error:
        raise _rejected("the step does not fit the model that it starts from") from error


def size_of(records: RecordDict) -> int:
    """Return how many bytes of arrays a message's content has; what else it has is short."""
    arrays = (array for record in records.values() if isinstance(record, ArrayRecord) for array in record.values())
    return sum(len(array.data) for array in arrays)


def pack_answer(answer: Answer) -> RecordDict:
    """Return the message content of ``answer``, without the site's name and, for a failure, without the round.

    Raises:
        UpdateRejected: a failure's reason says more than the name of a class.
    """
    if isinstance(answer, SiteFailure):
        return RecordDict({"failure": ConfigRecord({"reason": _class_name(answer.reason)})})
    terms = ConfigRecord(
        {
            "round": answer.round,
            "digest": answer.digest,
            "normal": answer.counts.normal,
            "abnormal": answer.counts.abnormal,
            "unlabelled": answer.counts.unlabelled,
            "by-disease": list(answer.counts.by_disease),
        }
    )
    metrics = MetricRecord({name: float(value) for name, value in answer.metrics.items()})
    return RecordDict({"update": terms, "delta": _pack_weights(answer.delta), "metrics": metrics})


def unpack_answer(records: RecordDict, *, site: str, round: int, keep: Keep = in_memory) -> Answer:
    """Return what ``site`` answered when asked in ``round``; ``keep`` makes the delta of what arrived.

    Whether an update's own round, names and shapes fit the model is for aggregation to judge.

    Raises:
        UpdateRejected: ``records`` are not an answer.
    """
    if "failure" in records:
        failure = _record(records, "failure", ConfigRecord)
        return SiteFailure(site, round, _class_name(failure.get("reason")))
    terms = _record(records, "update", ConfigRecord)
    return SiteUpdate(
        site=site,
        round=_count(terms, "round"),
        digest=_digest(terms, "digest"),
        delta=_unpack_weights(_record(records, "delta", ArrayRecord), keep),
        counts=_scan_counts(terms),
        metrics={name: _figure(name, value) for name, value in _record(records, "metrics", MetricRecord).items()},
    )


def pack_partition(number: int) -> RecordDict:
    """Return the message content with which a simulated node says which site, counted from 0, it plays."""
    return RecordDict({"node": ConfigRecord({"partition": number})})


def unpack_partition(records: RecordDict) -> int:
    """Return which site a simulated node plays.

    Raises:
        UpdateRejected: ``records`` do not say so.
    """
    return _count(_record(records, "node", ConfigRecord), "partition")


def _pack_head(task: RoundTask) -> ConfigRecord:
    return ConfigRecord({"round": task.model.round, "local-steps": task.local_steps, "terms": task.terms})


def _pack_weights(weights: Weights) -> ArrayRecord:
    packed = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    head, shape = BytesIO(), (len(packed),)
    npy.write_array_header_1_0(head, {"descr": PLAIN.str, "fortran_order": False, "shape": shape})
    # As Flower makes an array of NumPy's, but for the copies on the way.
    data = b"".join((head.getbuffer(), packed))
    return ArrayRecord({TENSORS: Array(dtype=PLAIN.name, shape=shape, stype="numpy.ndarray", data=data)})


def _unpack_weights(record: ArrayRecord, keep: Keep = in_memory) -> Weights:
    if list(record) != [TENSORS]:
        raise _rejected(f"there is another array than {TENSORS}")
    try:
        return keep(_body(record[TENSORS].data))
    except UNREADABLE as error:
        raise _rejected("the tensors cannot be read") from error


def _body(data: bytes) -> memoryview:
    """Return what follows NumPy's header, uncopied; not ``array.numpy()``, which also opens what else NumPy loads.

    Raises:
        ValueError, SyntaxError, TokenError: it is no plain array of bytes.
    """
    stream = BytesIO(data)
    npy.read_magic(stream)
    shape, _, dtype = npy.read_array_header_1_0(stream)
    body = memoryview(data)[stream.tell() :]
    if dtype != PLAIN or shape != (len(body),):
        raise ValueError("this is no plain array of bytes")
    return body


def _record(records: RecordDict, name: str, kind: type[Record]) -> Record:
    record = records.get(name)
    if not isinstance(record, kind):
        raise _rejected(f"there is no {kind.__name__} named {name}")
    return record


def _count(terms: Mapping[str, object], name: str) -> int:
    value = terms.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _rejected(f"{name} is not a whole number from 0")
    return value


def _terms(head: Mapping[str, object]) -> str:
    value = head.get("terms")
    if not isinstance(value, str) or len(value.encode(errors="surrogatepass")) > MOST_TERMS_BYTES:
        raise _rejected("the terms are not a short text")
    return value


def _scan_counts(terms: Mapping[str, object]) -> ScanCounts:
    by_disease = terms.get("by-disease")
    if not isinstance(by_disease, list) or len(by_disease) > MOST_DISEASES:
        raise _rejected("by-disease is not a short list")
    return ScanCounts(
        normal=_count(terms, "normal"),
        abnormal=_count(terms, "abnormal"),
        unlabelled=_count(terms, "unlabelled"),
        by_disease=tuple(_count({"by-disease": count}, "by-disease") for count in by_disease),
    )


def _digest(terms: Mapping[str, object], name: str) -> str:
    value = terms.get(name)
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise _rejected(f"{name} is no SHA-256 in hex")
    return value


def _figure(name: str, value: object) -> float:
    if not isinstance(value, float):
        raise _rejected(f"metric {name} is not one number")
    return value


def _class_name(reason: object) -> str:
    if not isinstance(reason, str) or not CLASS_NAME.fullmatch(reason):
        raise _rejected("a failure's reason is not the name of a class")
    return reason


def _rejected(fault: str) -> UpdateRejected:
    return UpdateRejected(f"a message cannot be understood: {fault}; do coordinator and site run the same fedgan?")
