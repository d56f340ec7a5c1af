"""What a finished run amounts to: the chosen model, its figures and its pictures."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from fedgan.assembly import most_released, networks_for, site_noise_in
from fedgan.cohort.cohort import ABNORMAL, NORMAL, Cohort, Split, pool
from fedgan.federated.site import load_weights
from fedgan.gan.build import choose_device, drawing_of, num_parameters
from fedgan.gan.disease_map import Drawing
from fedgan.gan.method import Method
from fedgan.records import GlobalModel
from fedgan.results import metrics
from fedgan.results.bootstrap import Bootstrap
from fedgan.results.calibration import TOO_FEW, table_of_normals
from fedgan.results.contribution import contributions
from fedgan.results.evaluation import Reading, compare, controls, score_arm
from fedgan.results.pictures import Example, save_map
from fedgan.results.reading import draw, read
from fedgan.results.thresholds import Choose, Threshold, by_masks, by_normals
from fedgan.run_folder import RunFolder
from fedgan.settings import Run, Simulation, SitePrivacy
from fedgan.simulation import Arm
from fedgan.streams import generator_for

EXAMPLES_PER_CLASS = 3
"""Pictures of each site and class in the report."""


def conclude(settings: Simulation, trained: Sequence[tuple[Arm, RunFolder]]) -> tuple[metrics.Metrics, list[Example]]:
    """Choose each arm's round on its validation scans, score it on all test scans, and put its model into ``model/``.

    Returns:
        The run's metrics and the examples of the federated arm, which comes first in ``trained``.
    """
    networks = networks_for(settings, choose_device(settings.device))
    federated, folder = trained[0]
    test = pool([cohort.split("test") for cohort in federated.cohorts.values()])
    bootstrap = Bootstrap(settings.bootstrap, settings.seed)
    scored, readings, drawers = [], {}, {}
    for arm, arm_folder in reversed(trained):  # the federated arm last: its weights then draw the examples
        threshold, drawers[arm.name] = _release(settings, networks, arm, arm_folder)
        readings[arm.name] = drawers[arm.name].read(federated.cohorts, "test")
        steps = arm_folder.history[-1].round * arm.local_steps
        scored.append(
            score_arm(arm.name, arm.kind, readings[arm.name], steps=steps, threshold=threshold, bootstrap=bootstrap)
        )
    examples = drawers[federated.name].examples(federated.cohorts, seed=settings.seed)
    val = pool([cohort.split("val") for cohort in federated.cohorts.values()])
    chosen, chosen_by = choose_round(settings, folder)
    result = metrics.Metrics(
        name=folder.path.name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=describe_machine(settings),
        versions={name: version(name) for name in ("fedgan", "torch", "flwr")},
        seed=settings.seed,
        seconds=sum(entry.seconds for _, arm_folder in trained for entry in arm_folder.history),
        sites={site: _counts(cohort) for site, cohort in federated.cohorts.items()},
        num_parameters=num_parameters(networks),
        ended=how_it_ended(settings, folder),
        site_privacy=site_privacy_of(settings, folder),
        chosen_round=chosen,
        chosen_by=chosen_by,
        rounds=folder.history,
        contributions=contributions(up_to(chosen, folder)),
        arms=tuple(reversed(scored)),
        controls=controls(test, val, choose=_chooser(settings), bootstrap=Bootstrap(0, settings.seed)),
        comparisons=tuple(_comparisons([arm for arm, _ in trained], readings, bootstrap)),
    )
    return result, examples


def how_it_ended(settings: Run, folder: RunFolder) -> str:
    """Return after which round the training in ``folder`` ended, and why there if it ended early, in words."""
    last = folder.history[-1].round
    if last == settings.rounds:
        return f"after all {last} round(s)"
    if isinstance(settings.privacy, SitePrivacy):
        return f"after round {last} of {settings.rounds}: the coordinator's ceiling at site level allowed no more"
    waited = f"{settings.patience} round(s) in a row"
    return f"after round {last} of {settings.rounds}: {waited} brought no better validation score"


@dataclass(frozen=True, slots=True)
class _Maps:
    """Who draws maps with a model: one set of networks for all sites, or each site with generators of its own."""

    networks: Method
    drawing: Drawing
    model: GlobalModel
    own: RunFolder | None
    """Where sites keep what is theirs, if generators are."""

    def read(self, cohorts: Mapping[str, Cohort], split: Split) -> Reading:
        """Return the reading of one split of all ``cohorts``, by site."""
        if self.own is None:
            load_weights(self.networks, self.model.weights)
            return read(self.networks, pool([each.split(split) for each in cohorts.values()]), drawing=self.drawing)
        return Reading.joined([self._at(site, cohort.split(split)) for site, cohort in cohorts.items()])

    def _at(self, site: str, cohort: Cohort) -> Reading:
        self._be(site)
        return read(self.networks, cohort, drawing=self.drawing)

    def _be(self, site: str) -> None:
        own = self.own.own_of(site, self.model.round) if self.own else {}
        load_weights(self.networks, {**self.model.weights, **own})

    def examples(self, cohorts: Mapping[str, Cohort], *, seed: int) -> list[Example]:
        """Return scans of the test split to show; see ``choose_examples``."""
        if self.own is None:
            test = pool([cohort.split("test") for cohort in cohorts.values()])
            return choose_examples(self.networks, test, drawing=self.drawing, seed=seed)
        found = []
        for site, cohort in cohorts.items():
            self._be(site)
            found += choose_examples(self.networks, cohort.split("test"), drawing=self.drawing, seed=seed)
        return found


def _release(settings: Simulation, networks: Method, arm: Arm, folder: RunFolder) -> tuple[Threshold, _Maps]:
    """Put the chosen round into ``model/``; return the threshold from the arm's validation scans, and who draws."""
    number, _ = choose_round(settings, folder)
    val = pool([cohort.split("val") for cohort in arm.cohorts.values()])
    model = folder.kept(number)
    personal = arm.kind == "federated" and settings.own_generators
    maps = _Maps(networks, drawing_of(settings.model), model, folder if personal else None)
    reading = maps.read(arm.cohorts, "val")
    threshold = _chooser(settings)(reading.maps, val)
    normal_scores = table_of_normals(reading.image_scores, val)
    card = {
        "threshold": threshold.value,
        "threshold_by": threshold.chosen_by,
        "normal_scores": normal_scores,
        "no_normal_scores": None if normal_scores else TOO_FEW,
        **told_of_sites(settings, folder, number),
    }
    folder.release(model, **card)
    for site in arm.cohorts if personal else ():
        folder.release_to(site, model, **card)
    return threshold, maps


def up_to(number: int, folder: RunFolder) -> list[metrics.Round]:
    """Return the rounds that made the model of round ``number``."""
    return [kept for kept in folder.history if kept.round <= number]


def told_of_sites(settings: Run, folder: RunFolder, number: int) -> dict[str, object]:
    """Return what the card of the model of round ``number`` tells of the sites: nothing where their part is hidden."""
    if isinstance(settings.privacy, SitePrivacy):
        return {}
    return {"contributions": {site: part.model_dump() for site, part in contributions(up_to(number, folder)).items()}}


def site_privacy_of(settings: Run, folder: RunFolder) -> metrics.SitePrivacy | None:
    """Return what the run in ``folder`` promises to each site and what that took; None if nothing.

    Raises:
        SettingsError: no noise keeps the promise.
    """
    told = folder.history[-1].site_level
    if told is None:
        return None
    networks = networks_for(settings)
    noise = site_noise_in(settings, networks)
    if noise is None:
        return None
    ratio = noise.noise_to_signal(rounds=settings.rounds, num_parameters=most_released(settings, networks))
    return metrics.SitePrivacy(**dict(told), noise=noise.noise, noise_to_signal=ratio, sites=noise.sites)


def _chooser(settings: Simulation) -> Choose:
    """Return how thresholds are chosen on validation scans."""
    return by_masks if settings.threshold == "masks" else partial(by_normals, false_positives=settings.false_positives)


def choose_round(settings: Run, folder: RunFolder) -> tuple[int, str]:
    """Return the round that is the result, and how it was chosen, in words."""
    best, last = folder.best_round(), folder.history[-1].round
    if settings.select == "last":
        return last, "the last round, as the settings ask"
    if best is None:
        return last, "the last round, for want of scores on validation patients"
    if settings.select == "aucp":
        return best, "the best mean over sites of AUCp on validation patients: known normals against all others"
    return best, "the best mean over sites of pixel AP on validation patients (image AUROC where none has masks)"


def _comparisons(
    arms: Sequence[Arm], readings: Mapping[str, Reading], bootstrap: Bootstrap
) -> list[metrics.Comparison]:
    """Return the federated arm against the mean of the local arms and against every other arm, where it can be had."""
    federated, *others = [arm.name for arm in arms]
    local = [readings[arm.name] for arm in arms if arm.kind == "local"]
    found = [compare(readings[federated], readings[name], against=name, bootstrap=bootstrap) for name in others]
    if local:
        found.insert(0, compare(readings[federated], local, against="mean of the local arms", bootstrap=bootstrap))
    return [comparison for comparison in found if comparison is not None]


def choose_examples(networks: Method, cohort: Cohort, *, drawing: Drawing, seed: int) -> list[Example]:
    """Draw scans at random, of each site and class from different patients where there are enough, with their maps."""
    rng = generator_for(seed, "examples")
    rows: list[int] = []
    for site in sorted(set(cohort.sites)):
        for status in (ABNORMAL, NORMAL):
            by_patient: dict[str, int] = {}
            for row in torch.randperm(len(cohort), generator=rng).tolist():
                if cohort.sites[row] == site and cohort.status[row] == status:
                    by_patient.setdefault(cohort.patients[row], row)
            rows += list(by_patient.values())[:EXAMPLES_PER_CLASS]
    shown = cohort.take(rows)
    maps = draw(networks, shown, drawing=drawing)
    return [
        Example(
            site=shown.sites[row],
            title=f"scan {row + 1:02d}",
            scan=shown.images[row, 0],
            counterpart=maps.normal[row],
            disease_map=maps.evidence[row],
            mask=shown.masks[row] if shown.has_mask[row] else None,
            abnormal=bool(shown.status[row] == ABNORMAL),
            score=float(maps.scores[row]),
        )
        for row in range(len(shown))
    ]


def write_maps(examples: Sequence[Example], folder: Path) -> None:
    """Write each example's overlay as ``<site>-<number>-<class>.png``; no name or file of a patient is in it."""
    folder.mkdir(exist_ok=True)
    for left in folder.glob("*.png"):
        left.unlink()
    for number, example in enumerate(examples, start=1):
        name = f"{example.site}-{number:02d}-{'abnormal' if example.abnormal else 'normal'}.png"
        save_map(folder / name, example.scan, example.disease_map)


def describe_machine(settings: Simulation) -> str:
    """Return the processor or GPU, and the processor's threads."""
    if choose_device(settings.device).type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def _counts(cohort: Cohort) -> dict[str, int]:
    splits: dict[str, int] = {name: cohort.splits.count(name) for name in ("train", "val", "test")}
    return splits | {"patients": len(set(cohort.patients))}
