"""A federation on one machine: the same rounds and the same sites as in deployment, in one process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch

from fedgan.assembly import aggregation_in, build_site, first_model, networks_for, promise_in
from fedgan.cohort.cohort import UNLABELLED, Cohort, Split, hide_labels, pool
from fedgan.cohort.manifest import load_cohorts as read_cohorts
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import read
from fedgan.errors import CohortError, SettingsError
from fedgan.federated.central import NoisyFedAvg
from fedgan.federated.coordinator import Federation, Plan, run_rounds, score_last
from fedgan.federated.site import Site
from fedgan.federated.spool import Spool
from fedgan.gan.build import choose_device
from fedgan.gan.method import Method
from fedgan.privacy.build import simulated_ledger
from fedgan.records import Answer, Contribution, GlobalModel, RoundTask, SiteUpdate
from fedgan.results.reading import figures_of
from fedgan.run_folder import BEST, RunFolder
from fedgan.settings import (
    AgreedScans,
    GanFedAvg,
    ManifestData,
    NoPrivacy,
    PatientPrivacy,
    PhantomData,
    Run,
    Simulation,
    SitePrivacy,
)
from fedgan.streams import generator_for

FIGURES = {"best": BEST, "aucp": ("aucp",), "last": BEST}
"""By what rounds are scored, for each choice of the setting select; with last the scores are only shown."""

SHAPES = torch.device("meta")
"""Where networks have names, shapes and kinds of tensors, all that aggregation asks of them, and no numbers."""


class Watcher(Protocol):
    """Who wants to see a run as it goes: the command line's progress, or nobody."""

    def arm(self, name: str, *, rounds: int, done: int, steps: int) -> None:
        """Be told that an arm begins after ``done`` of its rounds, each of ``steps`` local steps over all sites."""
        ...

    def step(self, site: str, losses: Mapping[str, float]) -> None:
        """Be told of one local step's losses at a site."""
        ...

    def round(self, number: int, score: float | None) -> None:
        """Be told of a kept round, and the validation score of the round before it."""
        ...


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to train: who trains, and how long along one model's path."""

    name: str
    kind: Literal["federated", "local", "pooled"]
    cohorts: Mapping[str, Cohort]
    local_steps: int
    quorum: int

    @property
    def folder_name(self) -> str:
        """Return the name as a folder's: ``local A`` is ``local-A``."""
        return "".join(letter if letter.isalnum() else "-" for letter in self.name).strip("-")


@dataclass(frozen=True, slots=True)
class InProcess:
    """Sites that take turns in this process; a ``Federation``."""

    sites: Sequence[Site]
    spool: Spool

    def ask(self, task: RoundTask) -> Sequence[Answer]:
        """Ask one site after the other; what each answers waits on disk."""
        self.spool.clear()
        return [self._spooled(site.answer(task)) for site in self.sites]

    def _spooled(self, answer: Answer) -> Answer:
        return self.spool.put(answer) if isinstance(answer, SiteUpdate) else answer


def load_cohorts(settings: Simulation) -> dict[str, Cohort]:
    """Return each site's scans: rendered, or read from the manifest; some with their labels hidden, if asked.

    Raises:
        CohortError: the manifest or its scans cannot be used.
    """
    data, cohorts = settings.data, _cohorts(settings)
    if not data.hide_labels:
        return cohorts
    return {
        site: hide_labels(
            cohort,
            share=data.hide_labels,
            abnormal=data.hidden_abnormal,
            rng=generator_for(settings.seed, "hidden labels", site),
        )
        for site, cohort in cohorts.items()
    }


def _cohorts(settings: Simulation) -> dict[str, Cohort]:
    match settings.data:
        case PhantomData() as data:
            return {
                site: phantom_cohort(
                    site,
                    patients=data.patients,
                    images_per_patient=data.images_per_patient,
                    size=data.size,
                    diseases=data.diseases,
                    seed=settings.seed,
                )
                for site in data.sites
            }
        case ManifestData() as data:
            return read_cohorts(data)


def resolve(settings: Simulation, cohorts: Mapping[str, Cohort]) -> Simulation:
    """Return settings that another process, or a resume from another folder, reads as this one does.

    Raises:
        SettingsError: the quorum is larger than the number of sites that there turn out to be, or no site has the
            validation scans by which the settings choose a round or end the training; or the model that the settings
            start from cannot be used.
        CohortError: no site has a labelled scan to train on, or to test on.
    """
    if settings.quorum > len(cohorts):
        raise SettingsError(f"quorum: {settings.quorum} are needed and there are {len(cohorts)} site(s); give quorum=1")
    needed: tuple[Split, ...] = ("train", "test")
    for split in needed:
        if not any(bool((cohort.split(split).status != UNLABELLED).any()) for cohort in cohorts.values()):
            raise CohortError(", ".join(cohorts), [f"no {split} scan is labelled normal or abnormal"])
    _check_choices(settings, cohorts)
    if settings.start:
        settings = settings.model_copy(update={"start": settings.start.resolve()})
        first_model(settings)
    found: dict[str, object] = {"sites": tuple(cohorts)}
    if isinstance(settings.data, ManifestData):
        found["root"] = settings.data.root.resolve()
        found["cache"] = (settings.data.cache or Path(".fedgan-cache")).resolve()
    return settings.model_copy(update={"data": settings.data.model_copy(update=found)})


def _check_choices(settings: Simulation, cohorts: Mapping[str, Cohort]) -> None:
    if settings.select != "aucp" and settings.patience is None:
        return
    figures = {name for cohort in cohorts.values() for name in figures_of(cohort.split("val"))}
    if figures.isdisjoint(FIGURES[settings.select]):
        raise SettingsError(
            "select=aucp: no site has validation scans known to be normal, and others beside them; give select=last"
            if settings.select == "aucp"
            else "patience: no site has validation scans with masks, or of both classes; give patience=null"
        )


def arms_of(settings: Simulation, cohorts: Mapping[str, Cohort]) -> list[Arm]:
    """Return the federated arm and, for a comparison, what each site reaches alone and all could reach by pooling."""
    steps = settings.local_steps
    federated = Arm("federated", "federated", cohorts, steps, settings.quorum)
    if not settings.compare:
        return [federated]
    pooled = {"pooled": pool(list(cohorts.values()))}
    return [
        federated,
        *(Arm(f"local {site}", "local", {site: cohort}, steps, 1) for site, cohort in cohorts.items()),
        Arm("pooled, steps of one site", "pooled", pooled, steps, 1),
        Arm("pooled, steps of all sites", "pooled", pooled, steps * len(cohorts), 1),
    ]


def open_folder(settings: Run, path: Path) -> RunFolder:
    """Return the run's folder at ``path``, whose models say how to draw maps with them.

    Raises:
        RunFolderError: the folder cannot be made or read.
    """
    card = {
        "model": settings.model.model_dump(mode="json"),
        "diseases": list(settings.data.diseases),
        "size": settings.data.size,
        "intensity": settings.data.intensity if isinstance(settings.data, AgreedScans) else "range",
    }
    return RunFolder(path, card, FIGURES[settings.select])


def simulated_site(
    settings: Simulation, name: str, cohort: Cohort, networks: Method, *, memory: Path, watcher: Watcher | None = None
) -> Site:
    """Return the site ``name``, which remembers and keeps its accounts in ``memory``.

    Raises:
        SettingsError: a network to be shared is not one of the method's, or no noise keeps what is promised.
    """
    promise = None
    if isinstance(settings.privacy, PatientPrivacy):
        ledger = simulated_ledger(settings.privacy, site=name, folder=memory)
        promise = promise_in(settings, ledger, federation=settings.name or "simulation")
    on_step = partial(_tell, watcher, name)
    return build_site(settings, name, cohort, networks, memory=memory, promise=promise, on_step=on_step)


def _tell(watcher: Watcher | None, site: str, _step: int, losses: Mapping[str, float]) -> None:
    if watcher:
        watcher.step(site, losses)


def train_in_folder(
    settings: Run,
    folder: RunFolder,
    federation: Federation,
    *,
    terms: str = "",
    watcher: Watcher | None = None,
    accounts: Path | None = None,
) -> None:
    """Train from the folder's last kept round (or untrained networks) until the settings' end, and score the last.

    Sites that promise privacy to patients send no scores. Each task carries the ``terms``. In ``accounts``, or else in
    the run's folder, the coordinator keeps its ledger.

    Raises:
        QuorumNotMet: fewer sites than the quorum trained in a round.
        RunFolderError: a round cannot be kept.
        SettingsError: the model to start from is no longer there.
        BudgetExhausted, LedgerError: not even one round can be charged to the coordinator's ledger.
    """

    def keep(model: GlobalModel, answers: Sequence[Answer], contribution: Contribution) -> None:
        folder.keep(model, answers, contribution)
        if watcher:
            watcher.round(model.round, folder.score_of(model.round - 1))

    def enough() -> bool:
        if isinstance(aggregation, NoisyFedAvg) and folder.history:
            return not aggregation.affords(folder.history[-1].round)
        return settings.patience is not None and folder.stalled(settings.patience)

    model = folder.latest() or first_model(settings)
    aggregation = aggregation_in(settings, networks_for(settings, SHAPES), accounts=accounts or folder.path)
    plan = Plan(settings.rounds, settings.local_steps, settings.quorum, aggregation, terms)
    model = run_rounds(model, federation, plan, keep=keep, enough=enough)
    if not isinstance(settings.privacy, PatientPrivacy) and folder.score_of(model.round) is None:
        if model.round < settings.rounds:
            folder.audit.record("stopped early", round=model.round, rounds=settings.rounds, patience=settings.patience)
        folder.note_validation(model.round, score_last(model, federation, terms))


def train_in_process(settings: Simulation, arm: Arm, folder: RunFolder, watcher: Watcher | None = None) -> None:
    """Train ``arm`` with sites that take turns with one set of networks.

    Raises:
        As ``train_in_folder``.
    """
    if arm.kind != "federated" and isinstance(settings.aggregation, GanFedAvg):  # one model, whoever shares it
        whole = {"share": "both", "generator_every": None, "discriminator_every": None}
        settings = settings.model_copy(update={"aggregation": settings.aggregation.model_copy(update=whole)})
    if arm.kind != "federated" and isinstance(settings.privacy, SitePrivacy):  # nothing leaves the one site
        settings = settings.model_copy(update={"privacy": NoPrivacy(kind="none")})
    settings = settings.model_copy(update={"local_steps": arm.local_steps, "quorum": arm.quorum})
    networks = networks_for(settings, choose_device(settings.device))
    sites = [
        simulated_site(settings, name, cohort, networks, memory=folder.memory_of(name), watcher=watcher)
        for name, cohort in arm.cohorts.items()
    ]
    if watcher:
        done = model.round if (model := folder.latest()) else 0
        watcher.arm(arm.name, rounds=settings.rounds, done=done, steps=arm.local_steps * len(sites))
    federation = InProcess(sites, folder.spool)
    train_in_folder(settings, folder, federation, watcher=watcher)
    folder.spool.clear()


def run_in_folder(path: Path, federation_of: Callable[[Sequence[str], Spool], Federation]) -> None:
    """Train the federated arm of the run in ``path`` with the federation made of its sites' names and its spool.

    Raises:
        SettingsError: the folder's ``config.yaml`` cannot be read.
        As ``train_in_folder``.
    """
    settings = read(path / "config.yaml", Simulation)
    folder = open_folder(settings, path)
    federation = federation_of(settings.data.sites or (), folder.spool)
    train_in_folder(settings, folder, federation)
    folder.spool.clear()
