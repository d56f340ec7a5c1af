"""The whole federation, as a newcomer first meets it: real processes, real TLS, and the weights of the simulation."""

import json

import pytest
from PIL import Image

from fedgan.audit import broken_links
from fedgan.checkpoint import load_round
from fedgan.cli import main as fed_simulate
from fedgan.records import digest_of
from server.demo import SETTINGS, SITES, demo

pytestmark = pytest.mark.slow

ROUNDS = 2


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """Return the folder in which a federation was played, what was said, and the picture of a map."""
    folder, said = tmp_path_factory.mktemp("demo") / "played", []
    picture = demo(folder, ROUNDS, said.append)
    return folder, said, picture


def test_sites_are_enrolled_train_and_draw_a_map_with_the_model_released_to_them(played):
    folder, said, picture = played

    cards = [json.loads((folder / f"site-{site}/models/current/card.json").read_text()) for site in SITES]
    with Image.open(picture) as drawn:
        assert drawn.width > 100
    assert [card["chosen"] for card in cards] == [True] * 3
    assert any(line.startswith("$ fed-client --site A map") for line in said)


def test_the_weights_are_those_of_the_simulation_to_the_bit(played, tmp_path):
    folder, _, _ = played

    code = fed_simulate(
        [
            *SETTINGS,
            f"rounds={ROUNDS}",
            f"data.sites=[{','.join(SITES)}]",
            "data.patients=60",
            "data.images_per_patient=2",
            "threads=1",
            "bootstrap=0",
            f"runs={tmp_path}",
        ]
    )

    last = f"rounds/{ROUNDS:04d}.safetensors"
    federated, simulated = (load_round(run / last) for run in (folder / "federation/runs/demo", tmp_path / "demo"))
    assert code == 0
    assert digest_of(federated.weights) == digest_of(simulated.weights)


def test_nothing_of_a_patient_or_a_path_is_in_what_the_coordinator_keeps(played):
    folder, _, _ = played

    kept = [*(folder / "federation/runs").rglob("*"), *(folder / "federation/logs").rglob("*")]
    text = [path for path in kept if path.suffix in (".json", ".jsonl", ".log", ".txt", ".html", ".yaml")]
    words = "".join(path.read_text(encoding="utf-8") for path in text)
    assert "A-00" not in words
    assert "site-A/" not in words


def test_every_audit_is_unbroken(played):
    folder, _, _ = played

    audits = list(folder.rglob("audit.jsonl"))
    assert len(audits) == len(SITES) + 2
    assert [broken_links(path) for path in audits] == [[]] * len(audits)
