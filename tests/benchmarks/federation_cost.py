"""What the federation costs beyond training: ``fed-simulate`` against a bare loop that takes the same steps.

Both run as whole processes in turn, so that start-up, reading scans, rounds kept on disk, validation, maps and the
report are all in the first, and only start-up, reading scans and training in the second.

    python tests/benchmarks/federation_cost.py --data ../shared/data/lgg-flair-128 --rounds 4 --local-steps 40
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedgan.assembly import bfloat16_in, networks_for
from fedgan.cohort.batches import draw_batches
from fedgan.config import load
from fedgan.gan.augmentation import vary
from fedgan.gan.build import choose_device
from fedgan.gan.training import players_for, train
from fedgan.settings import Simulation
from fedgan.simulation import load_cohorts
from fedgan.streams import generator_for


def bare_loop(overrides: list[str]) -> None:
    """Take every site's steps of every round with one pair of optimisers a site, and nothing else."""
    settings = load("simulate", Simulation, overrides)
    networks = networks_for(settings, choose_device(settings.device))
    for site, cohort in load_cohorts(settings).items():
        rng = generator_for(settings.seed, site)
        players = players_for(
            networks,
            learning_rate=settings.model.learning_rate,
            critic_learning_rate=settings.model.critic_learning_rate,
            bfloat16=bfloat16_in(settings, choose_device(settings.device)),
            betas=settings.model.betas,
        )
        batches = draw_batches(cohort.split("train"), batch_size=settings.model.batch_size, rng=rng, flip=True)
        seen = (vary(batch, rng) for batch in batches) if settings.model.augment else batches
        train(networks, players, islice(seen, settings.rounds * settings.local_steps), rng=rng)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took."""

    wall_s: float
    processor_s: float
    """Of all threads; what other programs on the machine take does not count."""
    peak_mib: float

    def __str__(self) -> str:
        """Say all three."""
        return f"{self.wall_s:.1f} s, {self.processor_s:.1f} s of processor time, {self.peak_mib:.0f} MiB"


def cost_of(command: list[str]) -> Cost:
    """Run one process to its end.

    Raises:
        SystemExit: the process failed, so that its time means nothing.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed")
    return Cost(time.monotonic() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Print what both take and their ratio in each pair, and the median ratio of wall times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of lgg-flair-128; four phantom sites otherwise")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-steps", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--bare", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare is not None:
        return bare_loop(arguments.bare)
    data = ["data=lgg", f"data.root={arguments.data}"] if arguments.data else ["data.sites=[A,B,C,D]"]
    with tempfile.TemporaryDirectory() as runs:
        overrides = [*data, f"rounds={arguments.rounds}", f"local_steps={arguments.local_steps}", f"runs={runs}"]
        ratios = []
        for pair in range(arguments.pairs):
            whole = cost_of([sys.executable, "-m", "fedgan.cli", *overrides, f"name=pair-{pair}"])
            bare = cost_of([sys.executable, __file__, "--bare", *overrides])
            ratios.append(whole.wall_s / bare.wall_s)
            in_processor = whole.processor_s / bare.processor_s
            print(f"pair {pair + 1}: fed-simulate {whole}; bare loop {bare}", flush=True)
            print(f"  ratio {ratios[-1]:.3f} of wall time, {in_processor:.3f} of processor time", flush=True)
    print(f"median ratio {sorted(ratios)[len(ratios) // 2]:.3f}")
    return None


if __name__ == "__main__":
    main()
