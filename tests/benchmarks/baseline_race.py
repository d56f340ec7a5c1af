"""One method on one data set: trained pooled, chosen on validation patients, scored on test patients."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice, pairwise

import torch
from baseline_methods import Contender
from torch import Tensor

from fedgan.cohort.batches import draw_batches
from fedgan.cohort.cohort import Cohort
from fedgan.errors import SettingsError
from fedgan.federated.site import load_weights, weights_of
from fedgan.gan.augmentation import vary
from fedgan.gan.disease_map import Drawing
from fedgan.gan.training import players_for
from fedgan.gan.training import train as take_steps
from fedgan.records import Weights
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.evaluation import Reading, controls, pixel_ap, score_arm
from fedgan.results.metrics import Arm
from fedgan.results.reading import read
from fedgan.results.thresholds import Choose, by_masks, by_normals
from fedgan.streams import generator_for

CONTROLS = (*(f"brightness {pixels} px" for pixels in (0, 1, 2, 4)), "all ones")
"""What needs no training, by the package's names."""

SMOOTHINGS = (0.0, 1.0, 2.0, 4.0)
"""Pixels of a 64 x 64 scan among which each method's smoothing is chosen."""

CHECKPOINTS = 4
"""Evenly spaced steps among which each method's is chosen."""

LAST_RATE = 0.1
"""Share of the learning rates at the last step; they fall linearly to it, for every method."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all methods."""

    seed: int
    steps: int
    """Of the generators, or of the one network."""
    batch_size: int
    """Scans of each kind (abnormal, normal) in one batch."""
    flip: bool
    tissue: bool
    bfloat16: bool
    resamplings: int
    false_positives: float
    """Where validation scans have no masks, the share of their normal scans' pixels that may be found."""

    @property
    def bootstrap(self) -> Bootstrap:
        """Return how test patients are resampled."""
        return Bootstrap(self.resamplings, self.seed)

    def drawing(self, smoothing: float) -> Drawing:
        """Return how maps are drawn with one smoothing."""
        return Drawing(smoothing, flip=self.flip, tissue=self.tissue)

    def chooser(self, val: Cohort) -> Choose:
        """Return what chooses thresholds: masks where there are some, else normal scans."""
        return by_masks if has_lesions(val) else partial(by_normals, false_positives=self.false_positives)


@dataclass(frozen=True, slots=True)
class Choice:
    """What is chosen of a method without a look at test scans."""

    smoothing: float
    checkpoint: float
    """Share of the steps, in (0, 1]."""
    chosen_by: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a method."""

    arm: Arm
    choice: Choice | None = None
    """None without training."""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Moved by each player."""
    seconds: float = 0.0
    """Of training alone."""


def has_lesions(cohort: Cohort) -> bool:
    """Return whether a labelled scan's mask shows where its lesion is."""
    return pixel_ap(Reading(torch.zeros(cohort.masks.shape), torch.zeros(len(cohort)), cohort)) is not None


def race(
    name: str, contender: Contender, cohort: Cohort, terms: Terms, *, carried: Choice | None
) -> tuple[Outcome, Tensor]:
    """Train on the training scans of all sites, choose on their validation scans, and score on their test scans.

    Args:
        name: the method's.
        contender: its untrained networks.
        cohort: the scans of all sites.
        terms: what is the same for all methods.
        carried: what was chosen for the method on other data; used where no validation scan has a mask.

    Returns:
        what became of it, and the maps of the test scans (N, H, W) in [0, 1].

    Raises:
        SettingsError: nothing can be chosen: no validation scan has a mask, and nothing is carried over.
        Diverged: a loss is not a finite number.
    """
    val, test, networks = cohort.split("val"), cohort.split("test"), contender.networks
    carried = None if has_lesions(val) else carried
    if carried is None and not has_lesions(val):
        raise SettingsError(f"{name}: no validation scan has a mask to choose by; race on data that has them first")
    best: tuple[float, Choice, Weights] | None = None
    seconds = 0.0
    for share, spent in _train(contender, contender.training_scans(cohort.split("train")), terms):
        seconds += spent
        contender.settle(val.images)
        for choice in _candidates(share, terms.steps, carried):
            merit = 1.0 if carried else pixel_ap(read(networks, val, drawing=terms.drawing(choice.smoothing)))
            if merit is not None and (best is None or merit > best[0]):
                best = merit, choice, weights_of(networks)
    assert best is not None
    _, choice, weights = best
    load_weights(networks, weights)
    drawing = terms.drawing(choice.smoothing)
    threshold = terms.chooser(val)(read(networks, val, drawing=drawing).maps, val)
    reading = read(networks, test, drawing=drawing)
    arm = score_arm(name, "pooled", reading, steps=terms.steps, threshold=threshold, bootstrap=terms.bootstrap)
    return Outcome(arm, choice, _num_parameters(contender), seconds), reading.maps


def without_training(cohort: Cohort, terms: Terms) -> dict[str, Outcome]:
    """Return what needs no training, by name: smoothed brightness, and a map that is 1 everywhere."""
    val = cohort.split("val")
    arms = controls(cohort.split("test"), val, choose=terms.chooser(val), bootstrap=terms.bootstrap)
    return {arm.name: Outcome(arm) for arm in arms}


def _stops(steps: int) -> list[int]:
    """Return after how many steps maps are drawn on validation scans: of fewer steps than stops, each."""
    return sorted({max(1, round(steps * part / CHECKPOINTS)) for part in range(1, CHECKPOINTS + 1)})


def _candidates(share: float, steps: int, carried: Choice | None) -> list[Choice]:
    """Return what may be chosen after a ``share`` of the steps: at most what is carried over, or any smoothing."""
    if carried is None:
        return [Choice(smoothing, share, "pixel AP of validation patients") for smoothing in SMOOTHINGS]
    nearest = min((stop / steps for stop in _stops(steps)), key=lambda stop: abs(stop - carried.checkpoint))
    return [replace(carried, checkpoint=share)] if share == nearest else []


def _train(contender: Contender, cohort: Cohort, terms: Terms) -> Iterator[tuple[float, float]]:
    """Train by the package's own steps, and yield at each stop the share of steps taken and the seconds since the last.

    One pair of Adams goes all the way, and the learning rates fall at each step. All methods see the same batches, but
    for those that take several steps of their critic, and so several batches, in one step.
    """
    players = players_for(
        contender.networks,
        learning_rate=contender.learning_rate,
        critic_learning_rate=contender.critic_learning_rate,
        bfloat16=terms.bfloat16,
        betas=contender.betas,
    )
    groups = [group for player in (players.critics, players.generators) for group in player.param_groups]
    first_rates = [group["lr"] for group in groups]
    device = next(iter(contender.networks.generators())).device
    batches = draw_batches(cohort, batch_size=terms.batch_size, rng=generator_for(terms.seed, "batches"), flip=True)
    rng = generator_for(terms.seed, "steps")
    for before, after in pairwise([0, *_stops(terms.steps)]):

        def decay(step: int, losses: Mapping[str, float], before: int = before) -> None:
            for group, rate in zip(groups, first_rates, strict=True):
                group["lr"] = rate * (1 - (1 - LAST_RATE) * (before + step) / terms.steps)

        began = time.perf_counter()
        drawn = islice(batches, (after - before) * contender.critic_steps)
        some = ((vary(batch, rng) if contender.augment else batch).to(device) for batch in drawn)
        take_steps(contender.networks, players, some, rng=rng, critic_steps=contender.critic_steps, on_step=decay)
        yield after / terms.steps, time.perf_counter() - began


def _num_parameters(contender: Contender) -> dict[str, int]:
    """Return how many parameters of each player the last step moved: networks that the settings leave out do not."""
    generators = {id(part): part.numel() for part in contender.networks.generators() if part.grad is not None}
    critics = {id(part): part.numel() for part in contender.networks.critics() if part.grad is not None}
    return {
        "generators": sum(generators.values()),
        "critics": sum(count for name, count in critics.items() if name not in generators),
    }
