"""One site of five sends what it should not: what is left of the maps, with no defence and with each rule.

    python tests/benchmarks/attacks.py --minutes 60

Phantoms of 32 x 32 pixels, about 2 minutes a run on one processor core. One line per (rule, attack, seed, commit) is
kept in ``attacks.jsonl`` beside this file, and what it holds is not run again. *no defence* averages whatever comes, as
a framework does that checks nothing.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from resumed import Line, parser_of, resume, spread
from torch import Tensor

from fedgan.assembly import aggregation_in, build_site, networks_for
from fedgan.cohort.cohort import pool
from fedgan.config import load
from fedgan.errors import FedganError
from fedgan.federated.coordinator import Aggregation, Plan, run_rounds
from fedgan.federated.site import Site, load_weights, weights_of
from fedgan.federated.tensors import Entry, entries
from fedgan.gan.build import choose_device, drawing_of
from fedgan.outcome import describe_machine
from fedgan.records import Answer, Contribution, GlobalModel, RoundTask, SiteUpdate
from fedgan.results.evaluation import pixel_ap
from fedgan.results.reading import read
from fedgan.settings import Simulation
from fedgan.simulation import load_cohorts
from fedgan.streams import generator_for

LINES = Path(__file__).with_suffix(".jsonl")

ALONE = ("aggregation.norm_ratio=1e9", "aggregation.refuse_apart=false")
"""Switches off what refuses updates before a rule sees them, but for the check that all numbers are finite."""

RULES = {
    "no defence": (),
    "default": (),
    "median": ("aggregation=median",),
    "trimmed": ("aggregation=trimmed",),
    "krum": ("aggregation=krum",),
    "median alone": ("aggregation=median", *ALONE),
    "trimmed alone": ("aggregation=trimmed", *ALONE),
    "krum alone": ("aggregation=krum", *ALONE),
}

SETTINGS = (
    "data.sites=[A,B,C,D,E]",
    "data.size=32",
    "rounds=12",
    "local_steps=20",
    "threads=1",
)

ATTACKER = "C"


def _scaled(delta: Tensor, rng: torch.Generator) -> Tensor:
    return 100 * delta


def _flipped(delta: Tensor, rng: torch.Generator) -> Tensor:
    return -delta


def _nan(delta: Tensor, rng: torch.Generator) -> Tensor:
    return torch.full_like(delta, float("nan"))


def _random(delta: Tensor, rng: torch.Generator) -> Tensor:
    """Return noise as long as the honest step: what no check of lengths can see."""
    noise = torch.randn(delta.shape, generator=rng)
    return noise * (delta.norm() / noise.norm().clamp_min(1e-12))


@dataclass(frozen=True, slots=True)
class Attack:
    """What becomes of the tensors of which ``Entry.moves_with`` begins so."""

    change: Callable[[Tensor, torch.Generator], Tensor]
    begins: str = ""


ATTACKS = {
    "none": None,
    "scaled x100": Attack(_scaled),
    "sign flipped": Attack(_flipped),
    "NaN": Attack(_nan),
    "random": Attack(_random),
    "moving average x100": Attack(_scaled, "generator's moving average"),
    "generator flipped": Attack(_flipped, "generator"),
}


@dataclass(frozen=True, slots=True)
class Attacked:
    """Sites that take turns, one of which lies; a ``Federation``."""

    sites: Sequence[Site]
    attack: Attack | None
    entries: Mapping[str, Entry]
    seed: int

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Ask one site after the other."""
        return [self._told(site.answer(task)) for site in self.sites]

    def _told(self, answer: Answer) -> Answer:
        if self.attack is None or answer.site != ATTACKER or not isinstance(answer, SiteUpdate):
            return answer
        rng = generator_for(self.seed, "attack", answer.round)
        lies = {name: self.attack.change(tensor, rng) for name, tensor in answer.delta.items() if self._lies_in(name)}
        return replace(answer, delta={**answer.delta, **lies})

    def _lies_in(self, name: str) -> bool:
        return self.attack is not None and (self.entries[name].moves_with or "").startswith(self.attack.begins)


@dataclass(frozen=True, slots=True)
class Trusting:
    """Combines as the default does, but checks nothing; an ``Aggregation``."""

    inner: Aggregation

    def judge(self, model: GlobalModel, answers: Sequence[Answer]) -> tuple[GlobalModel, Sequence[Answer]]:
        """Return the answers."""
        return model, answers

    def aggregate(self, model: GlobalModel, updates: Sequence[SiteUpdate]) -> tuple[GlobalModel, Contribution]:
        """Return the next model."""
        return self.inner.aggregate(model, updates)


def run(settings: Simulation, rule: str, attack: str) -> dict[str, object]:
    """Train under attack, and return the last model's pixel AP on the test patients of all sites."""
    networks, cohorts = networks_for(settings, choose_device(settings.device)), load_cohorts(settings)
    aggregation = aggregation_in(settings, networks)
    plan = Plan(
        settings.rounds, settings.local_steps, 1, Trusting(aggregation) if rule == "no defence" else aggregation
    )
    sites = [build_site(settings, name, cohort, networks) for name, cohort in cohorts.items()]
    refused: list[str] = []

    def keep(model: GlobalModel, answers: Sequence[Answer], contribution: Contribution) -> None:
        refused.extend({answer.site for answer in answers} - set(contribution.shares))

    began = time.perf_counter()
    try:
        model = run_rounds(
            GlobalModel(0, weights_of(networks)),
            Attacked(sites, ATTACKS[attack], entries(networks), settings.seed),
            plan,
            keep=keep,
        )
    except FedganError as refusal:
        return {"pixel_ap": 0.0, "ended": type(refusal).__name__, "seconds": round(time.perf_counter() - began, 1)}
    load_weights(networks, model.weights)
    test = pool([cohort.split("test") for cohort in cohorts.values()])
    return {
        "pixel_ap": round(pixel_ap(read(networks, test, drawing=drawing_of(settings.model))) or 0.0, 4),
        "left_out": {site: refused.count(site) for site in sorted(set(refused))},
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(lines: list[Line]) -> None:
    """Print the pixel AP of each rule under each attack, as Markdown: mean and standard deviation over seeds."""
    print("| rule | " + " | ".join(ATTACKS) + " |\n|---" + "|---" * len(ATTACKS) + "|")
    for rule in RULES:
        cells = [
            spread(line["pixel_ap"] for line in lines if (line["rule"], line["attack"]) == (rule, attack))
            for attack in ATTACKS
        ]
        print(f"| {rule} | {' | '.join(cells)} |")


def asked(told: argparse.Namespace) -> Iterator[Line]:
    """Yield what is to be run, seed by seed."""
    for seed in told.seeds:
        for rule in told.rules:
            yield from ({"rule": rule, "attack": attack, "seed": seed} for attack in told.attacks)


def main() -> None:
    """Run what has no line yet, as long as there is time, and print the table of all lines."""
    parser = parser_of(__doc__, LINES)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    told = parser.parse_args()

    def run_of(entry: Line) -> Mapping[str, object]:
        rule = str(entry["rule"])
        chosen = [*SETTINGS, f"seed={entry['seed']}", *RULES[rule], *told.overrides]
        settings = load("simulate", Simulation, chosen)
        torch.set_num_threads(settings.threads or 1)
        return {"machine": describe_machine(settings), **run(settings, rule, str(entry["attack"]))}

    table(resume(told, asked(told), run_of))


if __name__ == "__main__":
    main()
