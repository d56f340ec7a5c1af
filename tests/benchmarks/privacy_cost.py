"""What privacy costs: one local step of both networks with ``privacy=patient`` against one without, on the same scans.

Half of the patients are abnormal, half normal, one scan each. Both ways take turns in one process; processor seconds
are of all threads, the median of the repeats. Peak memory above the loaded networks is from a process of each.

    python tests/benchmarks/privacy_cost.py --size 64 --batch 32 --repeats 9 --threads 1
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch

from fedgan.config import load
from fedgan.gan.build import build_networks, choose_device, num_parameters
from fedgan.gan.training import gan_step, players_for
from fedgan.privacy.dp_sgd import Mechanism, train_privately
from fedgan.records import Batch
from fedgan.settings import Simulation

WAYS = ("ordinary", "private")


def scans_of(arguments: argparse.Namespace) -> Batch:
    """Return the scans of all patients, the abnormal ones of the first disease."""
    device, half = choose_device(arguments.device), arguments.batch // 2
    rng = torch.Generator().manual_seed(1)
    scans = torch.rand(2, half, 1, arguments.size, arguments.size, generator=rng).to(device) * 2 - 1
    diseases = torch.eye(2, device=device)[:1].expand(half, -1)
    return Batch(scans[0], scans[1], diseases, scans[0, :0])


def alone(batch: Batch) -> list[Callable[[torch.Generator], Batch]]:
    """Return each scan as that of a patient."""
    none, unnamed = batch.normal[:0], batch.diseases[:0]
    ill = [Batch(scan[None], none, of[None], none) for scan, of in zip(batch.abnormal, batch.diseases, strict=True)]
    well = [Batch(none, scan[None], unnamed, none) for scan in batch.normal]
    return [partial(lambda patient, rng: patient, patient) for patient in (*ill, *well)]


def prepare(arguments: argparse.Namespace, way: str) -> Callable[[], object]:
    """Return one way to take a step, with networks and optimisers of its own."""
    model = load("simulate", Simulation, [f"model={arguments.model}"]).model
    device = choose_device(arguments.device)
    networks = build_networks(model, num_diseases=2, seed=0, device=device, one_patient=way == "private")
    players = players_for(networks, learning_rate=1e-4, critic_learning_rate=1e-4, bfloat16=False)
    batch = scans_of(arguments)
    if way == "ordinary":
        return partial(gan_step, networks, players, [batch], torch.Generator().manual_seed(2))
    everyone = Mechanism(noise=1.0, clip=1.0, rate=1.0, patients=arguments.batch)
    return partial(train_privately, networks, players, alone(batch), everyone, steps=1)


def took(step: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of one step: of the processor, and by the clock."""
    processor, wall = time.process_time(), time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() - processor, time.perf_counter() - wall


def peak_mib(arguments: argparse.Namespace, way: str) -> float:
    """Return by how much the peak memory of a process grows in three steps, in MiB."""
    told = [f"--{name}={value}" for name, value in vars(arguments).items() if name != "only"]
    done = subprocess.run(
        [sys.executable, __file__, *told, f"--only={way}"], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def grow(arguments: argparse.Namespace, way: str) -> float:
    """Return by how much three steps raise this process's memory at most, in MiB, as Linux counts it."""
    step = prepare(arguments, way)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _kib("VmRSS")
    for _ in range(3):
        step()
    return (_kib("VmHWM") - before) / 1024


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure, and print one line for each way and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tagsagan_private")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=WAYS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        print(grow(arguments, arguments.only))
        return
    ways = {way: prepare(arguments, way) for way in WAYS}
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeats + 1):
        for way, step in ways.items():
            seconds[way].append(took(step))
    medians = {way: [median(each) for each in zip(*taken[1:], strict=True)] for way, taken in seconds.items()}
    memory = {way: peak_mib(arguments, way) for way in WAYS}
    parameters = num_parameters(
        build_networks(
            load("simulate", Simulation, [f"model={arguments.model}"]).model,
            num_diseases=2,
            seed=0,
            device=torch.device("cpu"),
        )
    )
    scans = f"{arguments.batch} scans of {arguments.size} x {arguments.size}"
    print(f"{arguments.model}, {scans}, {sum(parameters.values())} parameters")
    for way in WAYS:
        processor, wall = medians[way]
        print(f"{way:<9} {processor:8.3f} processor s {wall:8.3f} s {memory[way]:8.1f} MiB")
    ratios = [medians["private"][index] / medians["ordinary"][index] for index in (0, 1)]
    print(f"ratio     {ratios[0]:8.2f}             {ratios[1]:8.2f}   {memory['private'] / memory['ordinary']:8.2f}")


if __name__ == "__main__":
    main()
