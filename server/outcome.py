"""What a run between hospitals amounts to, for a coordinator that has no scan: the sites' own figures, and phantoms."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from fedgan.assembly import networks_for
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import dump
from fedgan.federated.site import load_weights
from fedgan.gan.build import drawing_of, num_parameters
from fedgan.outcome import (
    choose_examples,
    choose_round,
    how_it_ended,
    site_privacy_of,
    told_of_sites,
    up_to,
    write_maps,
)
from fedgan.records import GlobalModel
from fedgan.results.contribution import contributions
from fedgan.results.metrics import Metrics
from fedgan.results.pictures import Example
from fedgan.results.report import write_report
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment

PHANTOM = "phantom"
"""Stands for a site's name on the only pictures that a coordinator can show."""


def conclude(settings: Deployment, folder: RunFolder) -> Metrics:
    """Choose the round by what the sites said of each, put its model into ``model/``, and write what the run leaves.

    That is what ``fed-simulate`` leaves, but for all that only a site can know of its own test patients.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    chosen, chosen_by = choose_round(settings, folder)
    model = folder.kept(chosen)
    made_by = contributions(up_to(chosen, folder))
    folder.release(model, **told_of_sites(settings, folder, chosen))
    metrics = Metrics(
        name=folder.path.name,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        machine="each site's own",
        versions={name: version(name) for name in ("fedgan", "torch", "flwr")},
        seed=settings.seed,
        seconds=sum(entry.seconds for entry in folder.history),
        sites={site: {} for site in made_by},
        num_parameters=num_parameters(networks_for(settings)),
        ended=how_it_ended(settings, folder),
        site_privacy=site_privacy_of(settings, folder),
        chosen_round=chosen,
        chosen_by=chosen_by,
        rounds=folder.history,
        contributions=made_by,
        arms=(),
        controls=(),
        comparisons=(),
    )
    examples = phantoms_by(settings, model)
    folder.write("metrics.json", metrics.model_dump_json(indent=1) + "\n")
    write_maps(examples, folder.path / "maps")
    write_report(metrics, examples, dump(_without_paths(settings)), folder.path)
    folder.audit.record("run concluded", chosen_round=chosen)
    return metrics


def phantoms_by(settings: Deployment, model: GlobalModel) -> list[Example]:
    """Return phantoms of the run's size and diseases, with what ``model`` makes of them."""
    data = settings.data
    shown = phantom_cohort(
        PHANTOM, patients=20, images_per_patient=1, size=data.size, diseases=data.diseases, seed=settings.seed
    )
    networks = networks_for(settings)
    load_weights(networks, model.weights)
    return choose_examples(networks, shown.split("test"), drawing=drawing_of(settings.model), seed=settings.seed)


def _without_paths(settings: Deployment) -> Deployment:
    return settings.model_copy(update={"runs": None, "start": Path("...") if settings.start else None})
