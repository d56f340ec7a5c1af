"""A resident site answers as a site of the simulation does, forgets nothing that matters, and obeys its policy."""

import csv
import json
import logging
import shutil

import pytest
import torch
from PIL import Image

from client.cli import main as fed_client
from client.resident import Resident
from fedgan.assembly import build_site, networks_for
from fedgan.audit import broken_links
from fedgan.cohort.phantoms import phantom_cohort
from fedgan.config import dump
from fedgan.federated.site import weights_of
from fedgan.records import GlobalModel, RoundTask, SiteFailure, SiteUpdate
from fedgan.settings import Terms
from fedgan.wire import pack_task, unpack_answer

NUMBER = "0f3a"
KEEPING = ("aggregation.moments=both", "compress.generator=int8")


def task_of(terms: Terms, number: int = 0, local_steps: int = 2) -> RoundTask:
    return RoundTask(GlobalModel(number, weights_of(networks_for(terms))), local_steps, dump(terms))


def answer_of(resident: Resident, task: RoundTask, **options: object) -> SiteUpdate | SiteFailure:
    return unpack_answer(resident.answer(pack_task(task), NUMBER, **options), site="A", round=task.model.round)


def events(home) -> list[dict[str, object]]:
    assert broken_links(home / "audit.jsonl") == []
    return [json.loads(line) for line in (home / "audit.jsonl").read_text().splitlines()]


def assert_same(one: SiteUpdate, other: SiteUpdate) -> None:
    assert one.metrics == other.metrics
    assert all(torch.equal(one.delta[name], other.delta[name]) for name in one.delta)


def test_a_resident_site_answers_as_a_simulated_one(site_home, terms):
    asked = terms()
    cohort = phantom_cohort("A", patients=16, images_per_patient=1, size=32, diseases=asked.data.diseases, seed=0)
    simulated = build_site(asked, "A", cohort, networks_for(asked))

    answer = answer_of(Resident("A", site_home()), task_of(asked))

    expected = simulated.answer(task_of(asked))
    assert isinstance(answer, SiteUpdate)
    assert isinstance(expected, SiteUpdate)
    assert answer.counts == expected.counts
    assert_same(answer, expected)


def test_a_site_that_starts_anew_between_rounds_goes_on_as_if_it_had_not(site_home, terms):
    asked = terms(*KEEPING)
    staying = Resident("A", site_home("A"))
    before = Resident("A", site_home("elsewhere"))
    for resident in (staying, before):
        answer_of(resident, task_of(asked, 0))

    anew = Resident("A", site_home("elsewhere"))

    assert_same(answer_of(anew, task_of(asked, 1)), answer_of(staying, task_of(asked, 1)))


def test_what_a_site_keeps_of_one_run_is_not_used_in_another(site_home, terms):
    asked = terms(*KEEPING)
    other = asked.model_copy(update={"name": "other"})
    resident, fresh = Resident("A", site_home("A")), Resident("A", site_home("fresh"))
    answer_of(resident, task_of(asked, 0))

    in_other = answer_of(resident, task_of(other, 1))

    assert_same(in_other, answer_of(fresh, task_of(asked, 1)))


def test_only_the_last_runs_are_remembered(site_home, terms):
    home, asked = site_home(), terms(*KEEPING)
    resident = Resident("A", home)

    for name in ("one", "two", "three", "one", "four"):
        answer_of(resident, task_of(asked.model_copy(update={"name": name}), local_steps=1))

    assert {folder.name for folder in (home / "memory/none").iterdir()} == {"three", "one", "four"}


def test_an_answer_is_audited_with_its_round(site_home, terms):
    home = site_home()

    answer_of(Resident("A", home), task_of(terms(), 4))

    told = events(home)
    assert [event["event"] for event in told] == ["task", "answered"]
    assert (told[0]["run"], told[0]["round"], told[0]["task"]) == ("tiny", 5, NUMBER)


@pytest.mark.parametrize(
    ("changes", "overrides", "local_steps", "reason"),
    [
        ({"diseases": ["pneumonia"]}, [], 2, "DiseaseRefused"),
        ({"privacy": {"epsilon": 1.0, "delta": 1e-5}}, [], 2, "PrivacyRefused"),
        ({}, ["model.width=65"], 2, "ModelRefused"),
        ({}, [], 2001, "TaskTooLong"),
        ({"device": "tpu"}, [], 2, "SettingsError"),
    ],
)
def test_a_refusal_leaves_as_its_class_and_is_audited(site_home, terms, changes, overrides, local_steps, reason):
    home, asked = site_home(**changes), terms(*overrides)
    small = GlobalModel(0, {"w": torch.zeros(1)})  # judged before anything of its size is made

    answer = answer_of(Resident("A", home), RoundTask(small, local_steps, dump(asked)))

    assert answer == SiteFailure("A", 0, reason)
    assert events(home)[-1]["reason"] == reason


PRIVATE = ("privacy=patient", "privacy.cohort=12", "privacy.patients=4", "privacy.delta=0.005")


def test_private_runs_of_any_name_are_charged_to_one_ledger_until_the_policys_ceiling(site_home, terms):
    home, first = site_home(privacy={"epsilon": 12.0, "delta": 0.005}), terms(*PRIVATE)
    second = first.model_copy(update={"name": "second"})

    one = answer_of(Resident("A", home), task_of(first))
    two = answer_of(Resident("A", home), task_of(second))
    answers = [answer_of(Resident("A", home), task_of(second, number)) for number in range(1, 5)]

    assert isinstance(one, SiteUpdate)
    assert isinstance(two, SiteUpdate)
    assert one.metrics["privacy/epsilon"] < two.metrics["privacy/epsilon"] <= 12
    assert answers[-1] == SiteFailure("A", 4, "BudgetExhausted")


SCANS = {"kind": "manifest", "root": "", "manifest": "manifest.csv", "where": None, "site": None, "cache": "cache"}


@pytest.fixture
def listed_home(site_home):
    """Return a function that makes a site's folder with twelve scans of a disease and of none, and further lines."""

    def made(*more: tuple[str, ...], **changes: object):
        home = site_home(scans=SCANS, **changes)
        with (home / "manifest.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file", "patient", "label", "disease", "split"])
            for number in range(12):
                Image.effect_noise((32, 32), 20 + number).save(home / f"{number}.png")
                ill = ("abnormal", "diffuse") if number % 2 else ("normal", "")
                rows.writerow([f"{number}.png", f"P{number}", *ill, "val" if number > 9 else "train"])
            rows.writerows(more)
        return home

    return made


@pytest.mark.parametrize("split", ["train", "test"])
def test_whether_anybody_has_another_disease_or_a_blank_scan_does_not_decide_whether_a_site_answers(
    listed_home, terms, caplog, split
):
    home = listed_home(("x.png", "X", "abnormal", "rare", split), ("y.png", "Y", "normal", "", split))
    Image.effect_noise((32, 32), 50).save(home / "x.png")
    Image.new("L", (32, 32)).save(home / "y.png")
    asked = terms(*PRIVATE, "data.diseases=[diffuse]")

    with caplog.at_level(logging.WARNING):
        answer = answer_of(Resident("A", home), task_of(asked))

    assert isinstance(answer, SiteUpdate)
    assert "1 scan(s) of diseases that are not asked about" in caplog.text
    assert "y.png" in caplog.text


def test_two_homes_spend_one_budget_where_their_policies_name_one_ledger(site_home, terms, tmp_path):
    told = {"epsilon": 12.0, "delta": 0.005, "ledger": "../patients", "anchor": "../elsewhere/anchor"}
    homes = [site_home(name, privacy=told) for name in ("A", "B")]

    one, two = (answer_of(Resident("A", home), task_of(terms(*PRIVATE))) for home in homes)

    assert one.metrics["privacy/epsilon"] < two.metrics["privacy/epsilon"]
    assert (tmp_path / "patients" / "privacy" / "ledger.sqlite").is_file()
    assert (tmp_path / "elsewhere" / "anchor").is_file()
    assert not (tmp_path / "patients" / "ledger.anchor").exists()


def test_a_home_that_was_put_back_is_refused_where_the_anchor_is_elsewhere(site_home, terms, tmp_path):
    told = {"epsilon": 50.0, "delta": 0.005, "anchor": "../elsewhere/anchor"}
    home, asked = site_home(privacy=told), terms(*PRIVATE)
    answer_of(Resident("A", home), task_of(asked))
    shutil.copytree(home, tmp_path / "backup")
    answer_of(Resident("A", home), task_of(asked, 1))

    shutil.rmtree(home)
    shutil.copytree(tmp_path / "backup", home)

    assert answer_of(Resident("A", home), task_of(asked, 2)) == SiteFailure("A", 2, "LedgerError")


def test_training_without_a_promise_is_in_the_account_and_leaves_no_epsilon_to_report(listed_home, terms, capsys):
    home, private = listed_home(), terms(*PRIVATE, "data.diseases=[diffuse]")
    before = answer_of(Resident("A", home), task_of(private))

    answer_of(Resident("A", home), task_of(terms("data.diseases=[diffuse]")))
    after = answer_of(Resident("A", home), task_of(private, 1))

    assert before.metrics["privacy/epsilon"] > 0
    assert after.metrics == {}
    assert fed_client(["--site", "A", "--home", str(home), "privacy"]) == 0
    assert capsys.readouterr().out.startswith("site A: NO PROMISE HOLDS, 1 task(s) were trained without one")


def test_who_trained_without_a_promise_can_keep_no_ceiling_later(listed_home, terms):
    answer_of(Resident("A", listed_home()), task_of(terms("data.diseases=[diffuse]")))
    home = listed_home(privacy={"epsilon": 50.0, "delta": 0.005})

    answer = answer_of(Resident("A", home), task_of(terms(*PRIVATE, "data.diseases=[diffuse]")))

    assert answer == SiteFailure("A", 0, "BudgetExhausted")


def test_scores_and_phantoms_cost_no_patient_anything(listed_home, site_home, terms):
    of_phantoms, listed = site_home("elsewhere"), listed_home()

    answer_of(Resident("A", of_phantoms), task_of(terms()))
    answer_of(Resident("A", listed), task_of(terms("data.diseases=[diffuse]"), local_steps=0))

    assert not (of_phantoms / "privacy").exists()
    assert not (listed / "privacy").exists()


def test_what_a_site_keeps_of_a_run_without_privacy_is_not_used_in_a_private_one_of_that_name(site_home, terms):
    home, kept = site_home(), "aggregation.moments=both"

    answer_of(Resident("A", home), task_of(terms(kept)))
    answer_of(Resident("A", home), task_of(terms(kept, *PRIVATE)))

    assert sorted(file.parent.relative_to(home).as_posix() for file in home.rglob("0001.safetensors")) == [
        "memory/none/tiny",
        "memory/patient/tiny",
    ]


@pytest.mark.parametrize("text", ["", "{}", "seed: 0", "!!python/object/apply:os.system [ls]", "[1"])
def test_terms_that_are_none_are_refused(site_home, text):
    home = site_home()

    answer = answer_of(Resident("A", home), RoundTask(GlobalModel(0, {}), 2, text))

    assert answer == SiteFailure("A", 0, "SettingsError")


def test_a_fault_leaves_as_its_class_alone(site_home, terms):
    home = site_home()
    (home / "memory").write_text("in the way")

    answer = answer_of(Resident("A", home), task_of(terms(*KEEPING)))

    assert answer == SiteFailure("A", 0, "NotADirectoryError")


def test_a_change_of_the_policy_holds_from_the_next_task_on(site_home, terms):
    asked = terms()
    resident = Resident("A", site_home())
    first = answer_of(resident, task_of(asked))
    home = site_home(opt_out="opt-out.txt")
    (home / "opt-out.txt").write_text("\n".join(f"A-{number:04d}" for number in range(6)))

    second = answer_of(resident, task_of(asked))

    assert second.counts.labelled < first.counts.labelled


def test_training_ends_when_nobody_waits_for_it(site_home, terms):
    answer = answer_of(Resident("A", site_home()), task_of(terms()), wanted=lambda: False)

    assert answer == SiteFailure("A", 0, "TaskAbandoned")


def test_training_ends_when_it_has_taken_longer_than_the_policy_allows(site_home, terms):
    longest = {"local_steps": 2000, "seconds": 1, "megabytes": 100}

    answer = answer_of(Resident("A", site_home(longest_task=longest)), task_of(terms(), local_steps=2000))

    assert answer == SiteFailure("A", 0, "TaskTooLong")
