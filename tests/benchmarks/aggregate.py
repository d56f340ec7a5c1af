"""Time and memory of combining a round's updates of sagan_released (90 million parameters), against a bare loop.

    python tests/benchmarks/aggregate.py --updates 50
    python tests/benchmarks/aggregate.py --ways ours aggregation=median

Three ways, in turn, each in a process of its own with equal threads: a bare loop of ``torch.add_`` over the same bytes;
ours, every check of an update included; and Flower's own FedAvg, which wants all updates in memory as messages, and so
gets only ``--in-memory`` of them (its time is without the making of these). Updates are made on the fly: parts of one
buffer of random numbers, from another place for each site, so that neither a disk nor a generator is measured. Memory
is the peak of the process beyond what it held with the global model and the buffer. The digest of the model that was
sent is known by then: it went out with the task.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from torch import Tensor

from fedgan.assembly import aggregation_in, networks_for
from fedgan.config import load
from fedgan.federated.coordinator import Aggregation
from fedgan.federated.site import weights_of
from fedgan.records import GlobalModel, ScanCounts, SiteUpdate
from fedgan.settings import Simulation

PLACES = 4096
"""Numbers of the buffer beyond the largest tensor, from which updates begin."""


class OnTheFly(Mapping[str, Tensor]):
    """One site's delta: views of a buffer, so that a tensor costs nothing until it is read."""

    def __init__(self, shapes: Mapping[str, torch.Size], buffer: Tensor, site: int) -> None:
        """Begin at a place of the site's own."""
        self.shapes, self.buffer, self.site = shapes, buffer, site

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor of that name."""
        shape = self.shapes[name]
        start = 61 * self.site % PLACES
        return self.buffer[start : start + shape.numel()].view(shape)

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.shapes)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.shapes)


Combine = Callable[[GlobalModel, list[OnTheFly]], Callable[[], object]]
"""Prepares, and returns what is timed."""


def bare(model: GlobalModel, deltas: list[OnTheFly]) -> Callable[[], object]:
    """Add every update to a copy of the model, in as few lines as can be."""

    def run() -> None:
        weights = {name: tensor.clone() for name, tensor in model.weights.items()}
        for delta in deltas:
            for name, tensor in weights.items():
                tensor.add_(delta[name], alpha=1 / len(deltas))

    return run


def ours(aggregation: Aggregation, model: GlobalModel, deltas: list[OnTheFly]) -> Callable[[], object]:
    """Check and combine as a coordinator does."""
    updates = [
        SiteUpdate(f"S{number:02d}", 0, model.digest, delta, ScanCounts(10 + number, 10, 0, (10,)), {})
        for number, delta in enumerate(deltas)
    ]

    def run() -> None:
        told, answers = aggregation.judge(model, updates)
        aggregation.aggregate(told, [answer for answer in answers if isinstance(answer, SiteUpdate)])

    return run


def flower(model: GlobalModel, deltas: list[OnTheFly]) -> Callable[[], object]:
    """Let Flower's FedAvg average the same updates, which it wants as one list of messages' contents."""
    contents = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(delta[name].numpy()) for name in delta}),
                "metrics": MetricRecord({"num-examples": 10 + delta.site}),
            }
        )
        for delta in deltas
    ]
    return partial(aggregate_arrayrecords, contents, "num-examples")


WAYS = ("bare", "ours", "flower")


def measure(way: str, updates: int, threads: int = 1, overrides: Sequence[str] = ()) -> dict[str, float]:
    """Run one way in this process and return its seconds and how much its memory grew."""
    torch.set_num_threads(threads)
    settings = load("simulate", Simulation, ["model=sagan_released", "data.size=64", *overrides])
    networks = networks_for(settings)
    model = GlobalModel(0, weights_of(networks))
    aggregation = aggregation_in(settings, networks)
    ways: dict[str, Combine] = {"bare": bare, "ours": partial(ours, aggregation), "flower": flower}
    shapes = {name: tensor.shape for name, tensor in model.weights.items()}
    size = sum(shape.numel() for shape in shapes.values())
    buffer = torch.randn(max(shape.numel() for shape in shapes.values()) + PLACES).mul_(1e-3)
    deltas = [OnTheFly(shapes, buffer, site) for site in range(updates)]
    before = _held_mib()
    combine = ways[way](model, deltas)
    began, busy = time.perf_counter(), time.process_time()
    combine()
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - busy,
        "models": (_peak_mib() - before) / (4 * size / 2**20),
        "mib": _peak_mib() - before,
    }


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _held_mib() -> float:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak so far
    return _peak_mib()


def main() -> None:
    """Measure each way in turn, and print time and memory with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of ours, as aggregation=median")
    parser.add_argument("--updates", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--in-memory", type=int, default=8, help="updates for Flower's FedAvg")
    parser.add_argument("--way", choices=WAYS, help="only this one, as JSON")
    told = parser.parse_args()
    if told.way:
        print(json.dumps(measure(told.way, told.updates, told.threads, told.overrides)))
        return
    found = {}
    for way in told.ways:
        count = told.in_memory if way == "flower" else told.updates
        command = [sys.executable, __file__, *told.overrides, "--way", way, "--updates", str(count)]
        command += ["--threads", str(told.threads)]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        per_update = found[way]["seconds"] / count
        print(
            f"{way}: {count} updates, {found[way]['seconds']:.1f} s ({1000 * per_update:.0f} ms each), "
            f"{found[way]['mib']:.0f} MiB or {found[way]['models']:.2f} models beyond the global one",
            flush=True,
        )
    if {"ours", "bare"} <= found.keys():
        print(f"ours / bare: {found['ours']['seconds'] / found['bare']['seconds']:.2f} of its time")


if __name__ == "__main__":
    main()
