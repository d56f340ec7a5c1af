"""What a coordinator that sees no scan makes of a run: driven by real sites in this process."""

import json
from pathlib import Path

import pytest

from fedgan.assembly import build_site, networks_for
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import dump, load
from fedgan.privacy.build import coordinators_ledger
from fedgan.results.metrics import Metrics
from fedgan.results.releasing import lineage_of
from fedgan.run_folder import RunFolder
from fedgan.settings import Deployment, terms_of
from fedgan.simulation import InProcess, open_folder, train_in_folder
from server.outcome import PHANTOM, conclude
from server.planning import plan

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
def trained(request, tmp_path) -> tuple[Deployment, RunFolder]:
    """Return a run of two sites that has been trained and not yet concluded, with other settings if a test gives any.

    The coordinator's own account is in the folder above the run's.
    """
    settings = load("server", Deployment, [*SETTINGS, *getattr(request, "param", ())])
    return settings, train(settings, tmp_path)


def train(settings: Deployment, home: Path) -> RunFolder:
    terms = terms_of(settings)
    folder = open_folder(settings, home / "glioma")
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
    folder.write("config.yaml", dump(settings))
    train_in_folder(settings, folder, InProcess(sites, folder.spool), accounts=home)
    return folder


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


SITE = ("privacy=site", "privacy.sites=2", "privacy.epsilon=20")
hides_sites = pytest.mark.parametrize("trained", [SITE], indirect=True)


@hides_sites
def test_a_run_that_hides_its_sites_says_what_that_took_and_what_it_is_worth(trained, tmp_path):
    settings, folder = trained

    metrics = conclude(settings, folder)

    told, report = metrics.site_privacy, (folder.path / "report.html").read_text()
    assert 19 < told.epsilon <= 20
    assert told.epsilon == coordinators_ledger(settings.privacy, tmp_path).spent()
    assert (told.delta, told.sites) == (1e-3, 2)
    assert told.noise_to_signal > 1
    assert "Site-level epsilon 2" in report
    assert "hides only where nothing is learned" in report


@hides_sites
def test_what_is_released_then_tells_of_no_site(trained):
    settings, folder = trained

    metrics = conclude(settings, folder)
    lineage = lineage_of(folder, 2, rounds=2, chosen=True)

    card = json.loads((folder.path / "model" / "model.json").read_text())
    assert "contributions" not in card
    assert (lineage.sites, lineage.epsilon, lineage.metrics) == ({}, {}, {})
    assert lineage.site_level.epsilon == metrics.site_privacy.epsilon


@hides_sites
def test_rounds_that_are_trained_again_are_charged_again(trained, tmp_path):
    settings, folder = trained
    for kept in (folder.path / "rounds").iterdir():
        kept.unlink()

    again = train(settings, tmp_path)

    assert again.history[-1].site_level.epsilon > settings.privacy.epsilon
    assert len(coordinators_ledger(settings.privacy, tmp_path).lines()) == 4


@pytest.mark.parametrize("trained", [(*SITE, "privacy.ceiling=15")], indirect=True)
def test_a_run_ends_with_the_last_round_that_the_coordinators_ceiling_allows(trained):
    settings, folder = trained

    metrics = conclude(settings, folder)

    assert metrics.chosen_round == 1
    assert metrics.ended == "after round 1 of 2: the coordinator's ceiling at site level allowed no more"


def test_a_plan_says_how_badly_few_sites_are_hidden():
    _, noise, ratio, sites = plan(["privacy=site", "privacy.sites=2", *SETTINGS])

    assert "one of 2 sites" in noise
    assert float(ratio.split()[-2]) > 10
    assert sites.endswith("one site hides only where nothing is learned")
