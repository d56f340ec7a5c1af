"""A run that is attacked when it ends: what the attacker finds, and what becomes of a promise that is not kept."""

import json
import re
from dataclasses import dataclass, replace

import pytest

from fedgan.assembly import networks_for
from fedgan.attacker import COINS, attack, coins_in, in_words, without_left_out
from fedgan.checkpoint import save_model
from fedgan.cli import main as fed_simulate
from fedgan.cohort.batches import patients_of
from fedgan.config import dump
from fedgan.errors import RunFolderError, SettingsError
from fedgan.federated.coordinator import Federation
from fedgan.federated.site import weights_of
from fedgan.records import Contribution, GlobalModel
from fedgan.results.metrics import Attacks, Inversion, Membership, Metrics
from fedgan.simulation import (
    InProcess,
    arms_of,
    load_cohorts,
    open_folder,
    simulated_site,
    train_in_folder,
    train_in_process,
)

MEMORISING = (
    "attack=membership",
    "select=last",
    "data.sites=[A]",
    "quorum=1",
    "data.patients=60",
    "rounds=1",
    "local_steps=160",
    "model.critic_steps=5",
    "model.critic_width=8",
    "model.batch_size=8",
    "model.augment=false",
    "model.critic_learning_rate=3e-3",
)


def of_run(path) -> Metrics:
    return Metrics.model_validate_json((path / "metrics.json").read_bytes())


@pytest.mark.slow
def test_a_run_tells_in_its_report_its_figures_and_one_line_what_an_attacker_learns(tiny_overrides, tmp_path, capsys):
    code = fed_simulate([*tiny_overrides, "name=run", "rounds=1", "attack=all"])

    found = of_run(tmp_path / "run").attacks
    assert code == 0
    assert list(found.membership) == ["A", "B", "all sites"]
    assert found.membership["all sites"].patients == sum(found.membership[site].patients for site in "AB")
    assert all(told.epsilon_at_least <= told.epsilon_shown_at_most for told in found.membership.values())
    assert all(told.right <= told.guesses <= told.patients for told in found.membership.values())
    assert all(inversion.scan.startswith("A, scan 0") for inversion in found.inversions)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("what was recovered with it") == len(found.inversions) == 2
    assert page.count("too weak to tell") == sum(not inversion.tells for inversion in found.inversions)
    assert "What an attacker learns" in page
    assert f"<td>{found.membership['A'].epsilon_shown_at_most:.2f}</td>" in page
    assert "an attacker: right in" in capsys.readouterr().out


def test_without_an_attack_nobody_is_left_out_and_nothing_is_told(tiny_overrides, tmp_path):
    fed_simulate([*tiny_overrides, "name=run", "rounds=1", "local_steps=1"])

    assert of_run(tmp_path / "run").attacks is None
    assert not (tmp_path / "run" / COINS).exists()
    assert "What an attacker learns" not in (tmp_path / "run" / "report.html").read_text()


@pytest.fixture
def begun(tiny, tmp_path):
    """Settings with coins, all scans, and the folder of a run that has not begun to train."""
    settings = tiny("attack=membership")
    return settings, load_cohorts(settings), open_folder(settings, tmp_path / "run")


def test_training_patients_are_left_out_as_the_coins_say_and_nobody_else(begun):
    _, cohorts, folder = begun

    coins = coins_in(folder, cohorts)
    left = without_left_out(cohorts, coins)

    for site, cohort in cohorts.items():
        patients = patients_of(cohort.split("train"))
        kept = [
            cohort.split("train").patients[rows[0]] for rows, coin in zip(patients, coins[site], strict=True) if coin
        ]
        assert sorted(set(left[site].split("train").patients)) == sorted(kept)
        assert [left[site].split(name).patients for name in ("val", "test")] == [
            cohort.split(name).patients for name in ("val", "test")
        ]


def test_a_resumed_run_keeps_its_coins_which_name_no_patient(begun):
    _, cohorts, folder = begun

    first, again = coins_in(folder, cohorts), coins_in(folder, cohorts)

    assert first == again
    assert set(json.loads((folder.path / COINS).read_text())["A"]) <= {True, False}


def test_coins_of_other_patients_are_refused(begun):
    _, cohorts, folder = begun
    coins_in(folder, cohorts)

    with pytest.raises(RunFolderError, match="is of other patients"):
        coins_in(folder, {"A": cohorts["A"]})


def test_a_run_that_has_trained_without_coins_tosses_none(begun):
    settings, cohorts, folder = begun
    (arm,) = arms_of(settings, cohorts)
    train_in_process(settings.model_copy(update={"rounds": 1}), arm, folder)

    with pytest.raises(RunFolderError, match="start another run to attack"):
        coins_in(folder, cohorts)


@pytest.mark.parametrize(
    ("setting", "words"),
    [("engine=flower", "needs engine=process"), ("aggregation.share=generator", "needs aggregation.share=both")],
)
def test_what_cannot_be_attacked_is_refused_before_it_trains(tiny, setting, words):
    with pytest.raises(SettingsError, match=re.escape(words)):
        tiny("attack=all", setting)


def known_coins(folder, cohorts):
    """Put coins into the folder that fell as two and two, so that what training makes of them is always the same."""
    count = len(patients_of(cohorts["A"].split("train")))
    folder.write(COINS, json.dumps({"A": [number % 4 < 2 for number in range(count)]}))
    return coins_in(folder, cohorts)


def site_told(**kinds):
    figures = {"patients": 70, "kept": 35, "guesses": 70, "right": 40, "auroc": None, "epsilon_at_least": 0.1}
    return Membership(**figures | {"epsilon_shown_at_most": 2.03, "epsilon_promised": 8.0} | kinds)


def attacks(membership=(), inversions=()):
    return Attacks(epsilon=8, delta=1e-3, noise=1, membership=dict(membership), inversions=tuple(inversions))


def test_it_is_said_how_much_could_have_been_shown_of_so_few_patients():
    assert in_words(attacks({"A": site_told()})).endswith("at least 0.1, of 2.03 that could be shown, 8 promised")


@pytest.mark.parametrize(
    ("mean_scan", "said"),
    [
        (16.0, "recovers a scan to 21.0 dB, from a private gradient to 9.0 dB"),
        (21.5, "recovers a scan to 21.0 dB, too weak to tell of privacy"),
    ],
)
def test_a_search_that_no_gradient_helps_is_no_evidence_for_privacy(mean_scan, said):
    scans = [Inversion(scan="A", plain=plain, private=9.0, mean_scan=mean_scan) for plain in (13.0, 21.0)]

    assert in_words(attacks(inversions=scans)) == said


@pytest.mark.slow
def test_a_model_that_knows_its_patients_by_heart_is_convicted(tiny, tmp_path):
    settings = tiny(*MEMORISING)
    cohorts, folder = load_cohorts(settings), open_folder(settings, tmp_path / "run")
    coins = known_coins(folder, cohorts)
    (arm,) = arms_of(settings, without_left_out(cohorts, coins))
    train_in_process(settings, arm, folder)

    told = attack(settings, folder, cohorts, coins, number=1)[0].membership["A"]

    assert told.auroc.value > 0.7
    assert told.epsilon_at_least > 0


@pytest.mark.slow
def test_a_run_that_starts_from_a_model_is_attacked_for_what_it_added_to_it(tiny, tmp_path):
    public = GlobalModel(1, weights_of(networks_for(tiny("seed=7"))))
    save_model(tmp_path / "public", public, {})
    settings = tiny("attack=membership", "select=last", f"start={tmp_path}/public", "rounds=1")
    cohorts, folder = load_cohorts(settings), open_folder(settings, tmp_path / "run")
    coins = coins_in(folder, cohorts)
    folder.keep(public, [], Contribution({}, {}))  # nothing was added

    found, _ = attack(settings, folder, cohorts, coins, number=1)

    assert {told.auroc.value for told in found.membership.values()} == {0.5}


@dataclass(frozen=True)
class Liars:
    """Sites that add no noise and say to have spent hardly anything; a ``Federation``."""

    honest: Federation

    def ask(self, task):
        return [
            replace(answer, metrics={"privacy/epsilon": 0.01}) if task.local_steps else answer
            for answer in self.honest.ask(task)
        ]


@pytest.mark.slow
def test_a_run_that_tells_more_than_it_promised_fails_once_its_report_is_written(tiny, tmp_path, capsys):
    plain = tiny(*MEMORISING)
    settings = tiny(*MEMORISING, "privacy=patient", "privacy.cohort=60", "privacy.patients=10")
    cohorts, folder = load_cohorts(settings), open_folder(settings, tmp_path / "run")
    folder.write("config.yaml", dump(settings))
    left = without_left_out(cohorts, known_coins(folder, cohorts))["A"]
    site = simulated_site(plain, "A", left, networks_for(plain), memory=folder.memory_of("A"))
    train_in_folder(settings, folder, Liars(InProcess([site], folder.spool)))

    code = fed_simulate(["--resume", str(tmp_path / "run")])

    (told,) = of_run(tmp_path / "run").attacks.membership.values()
    (message,) = capsys.readouterr().err.splitlines()
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "audit.jsonl").read_text().splitlines()]
    assert code == 1
    assert told.epsilon_promised == 0.01 < told.epsilon_at_least
    assert message.startswith("fed-simulate: A: epsilon 0.01 was promised, and it is at least")
    assert events[-2:] == ["run concluded", "promise broken"]
    assert "What an attacker learns" in (tmp_path / "run" / "report.html").read_text()
