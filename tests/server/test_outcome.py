"""What a coordinator that sees no scan makes of a run: driven by real sites in this process."""

import json

import pytest

from fedgan.assembly import build_site, networks_for
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import load
from fedgan.results.metrics import Metrics
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment, terms_of
from fedgan.simulation import InProcess, open_folder, train_in_folder
from server.outcome import PHANTOM, conclude

SETTINGS = (
    "name=glioma",
    "rounds=2",
    "local_steps=2",
    "data.size=32",
    "model.width=4",
    "model.critic_width=4",
    "model.batch_size=2",
    "precision=float32",
)


@pytest.fixture
def trained(tmp_path) -> tuple[Deployment, RunFolder]:
    """Return a run of two sites that has been trained and not yet concluded."""
    settings = load("server", Deployment, SETTINGS)
    terms = terms_of(settings)
    folder = open_folder(settings, tmp_path / "glioma")
    networks = networks_for(terms)
    sites = [
        build_site(
            terms,
            name,
            phantom_cohort(
                name, patients=16, images_per_patient=1, size=terms.data.size, diseases=terms.data.diseases, seed=1
            ),
            networks,
        )
        for name in "AB"
    ]
    train_in_folder(settings, folder, InProcess(sites, folder.spool))
    return settings, folder


def test_the_run_leaves_what_a_simulation_leaves_without_figures_of_test_patients(trained):
    settings, folder = trained

    conclude(settings, folder)

    left = {path.name for path in folder.path.iterdir()}
    metrics = Metrics.model_validate_json((folder.path / "metrics.json").read_bytes())
    assert {"report.html", "metrics.json", "maps", "model", "audit.jsonl", "history.json", "rounds"} <= left
    assert (metrics.arms, metrics.controls, metrics.sites) == ((), (), {"A": {}, "B": {}})
    assert metrics.contributions["A"].trained == metrics.chosen_round


def test_the_chosen_round_is_the_one_that_sites_scored_best(trained):
    settings, folder = trained

    metrics = conclude(settings, folder)

    card = json.loads((folder.path / "model" / "model.json").read_text())
    assert metrics.chosen_round == folder.best_round() == card["round"]


def test_pictures_are_of_phantoms_alone(trained):
    settings, folder = trained

    conclude(settings, folder)

    assert {path.name.split("-")[0] for path in (folder.path / "maps").glob("*.png")} == {PHANTOM}
