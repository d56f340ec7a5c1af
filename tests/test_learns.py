"""That what is trained finds disease: the whole loop on phantoms."""

import pytest

from fedgan.assembly import networks_for
from fedgan.cohort.cohort import pool
from fedgan.config import load
from fedgan.federated.site import load_weights
from fedgan.gan.disease_map import Drawing
from fedgan.results.evaluation import pixel_ap
from fedgan.results.reading import read
from fedgan.settings import Simulation
from fedgan.simulation import arms_of, load_cohorts, open_folder, resolve, train_in_process

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The default model after 160 local steps at each of two sites, with its test patients."""
    settings = load("simulate", Simulation, ["data.sites=[A,B]", "rounds=4", "local_steps=40", "quorum=2"])
    cohorts = load_cohorts(settings)
    settings = resolve(settings, cohorts)
    folder = open_folder(settings, tmp_path_factory.mktemp("run"))
    (arm,) = arms_of(settings, cohorts)
    train_in_process(settings, arm, folder)
    networks = networks_for(settings)
    load_weights(networks, folder.kept(folder.best_round()).weights)
    return networks, pool([cohort.split("test") for cohort in cohorts.values()])


def test_disease_maps_find_the_lesions_of_patients_never_seen(trained):
    networks, test = trained

    assert pixel_ap(read(networks, test, drawing=Drawing(smoothing=1.0))) > 0.55


def test_each_disease_is_found_when_it_alone_is_asked_for(trained):
    networks, test = trained

    for disease in range(2):
        ill = test.take([row for row in range(len(test)) if test.diseases[row, disease]])
        found = networks.difference(ill.images, ill.diseases)[:, 0].abs()

        assert found[ill.masks].mean() > 10 * found[~ill.masks].mean()
