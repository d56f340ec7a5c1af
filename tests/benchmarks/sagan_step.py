"""One local step of ``model=sagan_released`` against the same step taken as the authors' code takes it.

Two steps of the critic and one of the generator, on the same networks and scans, in turn in one process; peak memory
from a process of each. The authors' way: instance norms that keep running statistics, the generator run on doubtful,
normal and pasted scans one by one and once more for its own step, every gradient of both networks at every turn, all
in float32. Ours is measured in float32 and, where the hardware has it built in, in bfloat16, as ``precision=auto``.

    python tests/benchmarks/sagan_step.py --batch 8 --repeats 3 --threads 1
"""

import argparse
import copy
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor, nn
from torch.optim import Adam

from fedgan.config import load
from fedgan.gan.build import build_networks, choose_device, computes_in_bfloat16
from fedgan.gan.foreign_squares import paste_squares
from fedgan.gan.sagan import SAGAN
from fedgan.gan.training import Players, gan_step, players_for
from fedgan.records import Batch
from fedgan.settings import Simulation

WAYS = ("released", "ours", "ours in bfloat16")


def as_released(networks: SAGAN) -> SAGAN:
    """Return a copy whose norms are instance norms with running statistics, of the same weights."""
    networks = copy.deepcopy(networks)
    for parent in list(networks.generator.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.GroupNorm):
                instance = nn.InstanceNorm2d(norm.num_channels, affine=norm.affine, track_running_stats=norm.affine)
                instance.load_state_dict(norm.state_dict(), strict=False)
                setattr(parent, name, instance)
    return networks


def released_step(
    networks: SAGAN, players: Players, batches: Sequence[Batch], rng: torch.Generator
) -> Mapping[str, float]:
    """Take the critic's step on each of ``batches`` and the generator's on the last, each term on its own."""
    losses: dict[str, Tensor] = {}
    for batch in batches:
        with players.arithmetic():
            fake = networks.heal(batch.abnormal, rng)
            real_score, fake_score = networks.critic(batch.normal), networks.critic(fake.detach())
            share = torch.rand(len(fake), 1, 1, 1, generator=rng).to(fake.device)
            between = (share * batch.normal + (1 - share) * fake.detach()).requires_grad_()
            (slope,) = torch.autograd.grad(networks.critic(between).sum(), between, create_graph=True)
            penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
            losses["critic_discriminator"] = fake_score.mean() - real_score.mean() + 10 * penalty
        _descend_everything(players, losses["critic_discriminator"], players.critics)

    with players.arithmetic():
        pasted = paste_squares(batches[-1].normal, rng=rng)
        kept = networks.heal(batches[-1].normal, rng)
        fake = networks.heal(batches[-1].abnormal, rng)
        restored = networks.heal(pasted, rng)
        losses["adversarial"] = -networks.critic(fake).mean()
        losses["identity"] = (batches[-1].normal - kept).abs().mean()
        losses["restoration"] = (batches[-1].normal - restored).square().mean()
        total = losses["adversarial"] + losses["identity"] + losses["restoration"]
    _descend_everything(players, total, players.generators)
    return {name: loss.item() for name, loss in losses.items()}


def _descend_everything(players: Players, loss: Tensor, moves: torch.optim.Optimizer) -> None:
    players.critics.zero_grad()
    players.generators.zero_grad()
    loss.backward()
    moves.step()


def prepare(arguments: argparse.Namespace, ways: Sequence[str]) -> dict[str, Callable[[], Mapping[str, float]]]:
    """Return the ways to take a step that are asked for, each with networks and optimisers of its own."""
    device = choose_device(arguments.device)
    widths = [f"model.width={arguments.width}", f"model.critic_width={arguments.width}"]
    model = load("simulate", Simulation, ["model=sagan_released", *widths]).model
    scans = torch.rand(4, arguments.batch, 1, 64, 64, generator=torch.Generator().manual_seed(1)).to(device) * 2 - 1
    labels, none = scans.new_ones(arguments.batch, 1), scans[0, :0]
    batches = [Batch(scans[0], scans[1], labels, none), Batch(scans[2], scans[3], labels, none)]

    def way(name: str) -> Callable[[], Mapping[str, float]]:
        networks = build_networks(model, num_diseases=1, seed=0, device=device)
        players = players_for(
            networks,
            learning_rate=model.learning_rate,
            critic_learning_rate=model.critic_learning_rate,
            bfloat16=name == "ours in bfloat16",
            betas=model.betas,
        )
        if name == "released":
            networks = as_released(networks).to(memory_format=torch.contiguous_format)
            players = replace(
                players,
                critics=Adam(networks.critics(), model.critic_learning_rate, model.betas),
                generators=Adam(networks.generators(), model.learning_rate, model.betas),
            )
        if arguments.compile and name != "released":
            networks.generator.compile()  # the critic's gradient penalty needs a second derivative: not compiled
        rng = torch.Generator().manual_seed(2)
        step = released_step if name == "released" else gan_step
        return lambda: step(networks, players, batches, rng)

    return {name: way(name) for name in ways}


def _took(step: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of one step by the clock and of the processor, all threads together."""
    wall, processor = time.perf_counter(), time.process_time()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def _peak_mib() -> float:
    """Return this process's peak memory: on the GPU if there is one, else of all."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print seconds of each pair of steps, the median ratios, and both peaks of memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8, help="scans of each kind; the released recipe has 32")
    parser.add_argument("--width", type=int, default=64, help="channels of both networks' first level")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--compile", action="store_true", help="compile our generator")
    parser.add_argument("--peak", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        (step,) = prepare(arguments, [arguments.peak]).values()
        step()
        print(_peak_mib())
        return
    ways = [name for name in WAYS if "bfloat16" not in name or computes_in_bfloat16(choose_device(arguments.device))]
    for name in ways:
        child = subprocess.run([sys.executable, *sys.argv, "--peak", name], check=True, capture_output=True, text=True)
        print(f"{name}: peak memory {float(child.stdout.split()[-1]):.0f} MiB", flush=True)
    steps = prepare(arguments, ways)
    for name, step in steps.items():
        print(f"{name}, first step:", {term: round(loss, 5) for term, loss in step().items()}, flush=True)
    turns: list[dict[str, tuple[float, float]]] = []
    for turn in range(arguments.repeats):
        turns.append({name: _took(step) for name, step in steps.items()})
        told = (f"{name} {wall:.2f} s ({processor:.2f} s)" for name, (wall, processor) in turns[-1].items())
        print(f"turn {turn + 1}, wall (processor) time: {', '.join(told)}", flush=True)
    for name in ways[1:]:
        ratios = [[took["released"][clock] / took[name][clock] for took in turns] for clock in (0, 1)]
        by_wall, by_processor = (median(ratio) for ratio in ratios)
        print(f"released / {name}, median: {by_wall:.2f} of wall time, {by_processor:.2f} of processor time")


if __name__ == "__main__":
    main()
