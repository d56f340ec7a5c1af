"""What stands between settings and rounds: what is refused, which arms there are, where a run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgan.assembly import CPU, bfloat16_in, networks_for
from fedgan.checkpoint import load_model, save_model
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, pool
from fedgan.config import dump, load, read
from fedgan.errors import CohortError, SettingsError
from fedgan.federated.site import weights_of
from fedgan.gan.build import computes_in_bfloat16
from fedgan.records import Contribution, GlobalModel, ScanCounts, SiteUpdate, digest_of
from fedgan.settings import Simulation
from fedgan.simulation import Arm, arms_of, load_cohorts, open_folder, resolve, run_in_folder, train_in_folder

STEPS = ("local_steps=7", "quorum=1")


class Recording:
    """Sites that move by 1 in every round and find ever the same share of the disease."""

    def __init__(self, *sites, figure="pixel_ap"):
        self.sites = sites
        self.figure = figure
        self.tasks = []

    def ask(self, task):
        self.tasks.append(task)
        untrained = ("backward_generator.", "abnormal_discriminator.")  # without a cycle
        delta = {
            name: torch.ones_like(tensor)
            for name, tensor in task.model.weights.items()
            if not name.startswith(untrained)
        }
        metrics = {f"validation/{self.figure}": 0.25}
        digest, counts = digest_of(task.model.weights), ScanCounts(normal=1, abnormal=1, by_disease=(1, 1))
        return [SiteUpdate(site, task.model.round, digest, delta, counts, metrics) for site in self.sites]

    @property
    def asked(self):
        """Each task's round and local steps."""
        return [(task.model.round, task.local_steps) for task in self.tasks]


@pytest.fixture
def cohorts(tiny):
    return load_cohorts(tiny())


def only(cohort, *splits):
    return cohort.take([row for row, split in enumerate(cohort.splits) if split in splits])


def with_validation(cohort, left):
    """Return the cohort with two validation scans of each status in ``left``, and no others."""
    rows = [row for row, split in enumerate(cohort.splits) if split != "val"]
    known = {status: [row for row in rows if cohort.status[row] == status] for status in (NORMAL, ABNORMAL)}
    scans = only(cohort, "train", "test")
    for status in left:
        copies = cohort.take(known[NORMAL if status == UNLABELLED else status][:2])
        copies = replace(copies, splits=("val", "val"), status=torch.full((2,), status))
        scans = pool([scans, replace(copies, has_mask=copies.has_mask & (status != UNLABELLED))])
    return scans


def unlabelled(cohort):
    return replace(cohort, status=torch.full_like(cohort.status, UNLABELLED))


def of_manifest(root):
    return load("simulate", Simulation, ["data=lgg", f"data.root={root}"])


def test_a_quorum_of_more_sites_than_the_manifest_turns_out_to_have_is_refused(tiny, cohorts):
    with pytest.raises(SettingsError, match=r"quorum: 2 are needed and there are 1 site"):
        resolve(tiny(), {"A": cohorts["A"]})


@pytest.mark.parametrize(("left", "missing"), [(("val", "test"), "train"), (("train", "val"), "test")])
def test_a_run_needs_labelled_scans_to_train_on_and_to_test_on(tiny, cohorts, left, missing):
    without = {name: only(cohort, *left) for name, cohort in cohorts.items()}

    with pytest.raises(CohortError, match=f"site A, B: .*\n  no {missing} scan is labelled"):
        resolve(tiny(), without)
    with pytest.raises(CohortError, match="no train scan is labelled"):
        resolve(tiny(), {name: unlabelled(cohort) for name, cohort in cohorts.items()})


def test_a_site_without_labels_is_no_reason_to_refuse_the_others(tiny, cohorts):
    settings = tiny()

    assert resolve(settings, cohorts | {"B": unlabelled(cohorts["B"])}) == settings


@pytest.mark.parametrize("left", [{NORMAL}, {ABNORMAL}, {ABNORMAL, UNLABELLED}, set()])
def test_a_choice_by_aucp_needs_validation_scans_known_to_be_normal_and_others(tiny, cohorts, left):
    scans = {name: with_validation(cohort, left) for name, cohort in cohorts.items()}

    with pytest.raises(SettingsError, match=r"select=aucp: no site has .* give select=last"):
        resolve(tiny("select=aucp"), scans)


@pytest.mark.parametrize("left", [{NORMAL}, {UNLABELLED, NORMAL}, set()])
def test_patience_needs_validation_scans_that_score_a_round(tiny, cohorts, left):
    scans = {name: with_validation(cohort, left) for name, cohort in cohorts.items()}

    with pytest.raises(SettingsError, match=r"patience: no site has .* give patience=null"):
        resolve(tiny("patience=3"), scans)
    assert resolve(tiny(), scans) == tiny()


@pytest.mark.parametrize(("select", "left"), [("best", {ABNORMAL}), ("aucp", {NORMAL, UNLABELLED})])
def test_one_site_whose_validation_scans_score_a_round_is_enough(tiny, cohorts, select, left):
    settings = tiny(f"select={select}", "patience=3")

    assert resolve(settings, cohorts | {"A": with_validation(cohorts["A"], set())}) == settings
    assert resolve(settings, {name: with_validation(cohort, left) for name, cohort in cohorts.items()}) == settings


def test_resolved_settings_name_the_sites_and_hold_from_any_folder(tmp_path, monkeypatch, cohorts):
    monkeypatch.chdir(tmp_path)

    resolved = resolve(of_manifest("scans"), cohorts)

    assert resolved.data.sites == ("A", "B")
    assert (resolved.data.root, resolved.data.cache) == (tmp_path / "scans", tmp_path / ".fedgan-cache")
    assert resolve(resolved, cohorts) == resolved == read(dump(resolved), Simulation)


def test_a_run_that_starts_from_a_model_trains_its_weights_first(tiny, tmp_path):
    settings = tiny("start=before/model", "rounds=1", *STEPS)
    before = GlobalModel(7, {name: tensor + 1 for name, tensor in weights_of(networks_for(settings)).items()})
    save_model(tmp_path / "before" / "model", before, {})
    settings = settings.model_copy(update={"start": tmp_path / "before" / "model"})
    sites = Recording("A")

    train_in_folder(settings, open_folder(settings, tmp_path / "run"), sites)

    assert digest_of(sites.tasks[0].model.weights) == digest_of(before.weights)
    assert sites.asked[0] == (0, 7)


def test_a_model_of_other_networks_or_none_is_nothing_to_start_from(tiny, cohorts, tmp_path):
    wider = GlobalModel(3, weights_of(networks_for(tiny("model.width=6"))))
    save_model(tmp_path / "wider", wider, {})

    with pytest.raises(SettingsError, match="start: the weights do not fit the settings' networks"):
        resolve(tiny(f"start={tmp_path}/wider"), cohorts)
    with pytest.raises(SettingsError, match=r"start: .* holds no model"):
        resolve(tiny(f"start={tmp_path}/nowhere"), cohorts)


def test_without_a_comparison_there_is_only_the_federated_arm(tiny, cohorts):
    assert arms_of(tiny(), cohorts) == [Arm("federated", "federated", cohorts, local_steps=2, quorum=2)]


def test_a_comparison_adds_each_site_alone_and_all_pooled_for_as_many_steps_as_one_or_as_all(tiny, cohorts):
    federated, *others = arms_of(tiny("compare=true"), cohorts)

    assert (federated.kind, federated.quorum) == ("federated", 2)
    assert [(arm.name, arm.kind, list(arm.cohorts), arm.local_steps, arm.quorum) for arm in others] == [
        ("local A", "local", ["A"], 2, 1),
        ("local B", "local", ["B"], 2, 1),
        ("pooled, steps of one site", "pooled", ["pooled"], 2, 1),
        ("pooled, steps of all sites", "pooled", ["pooled"], 4, 1),
    ]
    assert others[0].cohorts["A"] is cohorts["A"]
    assert others[2].cohorts["pooled"].patients == cohorts["A"].patients + cohorts["B"].patients


def test_each_arm_has_a_folder_of_its_own_below_the_runs(tiny, cohorts):
    names = [arm.folder_name for arm in arms_of(tiny("compare=true"), cohorts)]

    assert names[:2] == ["federated", "local-A"]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and " " not in name and "," not in name for name in names)


def test_a_models_card_says_how_its_scans_are_prepared(tiny, tmp_path):
    chosen = {"phantoms": tiny(), "lgg": of_manifest(tmp_path)}

    for name, settings in chosen.items():
        open_folder(settings, tmp_path / name).release(GlobalModel(1, {"w": torch.zeros(1)}))

    phantoms, lgg = (load_model(tmp_path / name / "model")[1] for name in chosen)
    assert (phantoms["size"], phantoms["intensity"], phantoms["diseases"]) == (32, "range", ["diffuse", "nodular"])
    assert (lgg["size"], lgg["intensity"], lgg["diseases"]) == (64, "tissue_median", ["glioma"])
    assert phantoms["model"] == chosen["phantoms"].model.model_dump(mode="json")


def test_the_same_seed_begins_with_the_same_networks(tiny):
    one, same, other = (networks_for(tiny(f"seed={seed}")).state_dict() for seed in (1, 1, 2))

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_arithmetic_is_what_the_settings_ask_for(tiny):
    assert bfloat16_in(tiny("precision=bfloat16"), CPU)
    assert not bfloat16_in(tiny("precision=float32"), CPU)
    assert bfloat16_in(tiny("precision=auto"), CPU) is computes_in_bfloat16(CPU)
    assert not bfloat16_in(tiny("precision=auto", "privacy=patient"), CPU)


def test_every_round_is_kept_and_the_last_is_scored_without_training(tiny, tmp_path):
    settings, sites = tiny("rounds=2", *STEPS), Recording("A", "B")
    folder = open_folder(settings, tmp_path / "run")

    train_in_folder(settings, folder, sites, terms="seed: 0")

    assert sites.asked == [(0, 7), (1, 7), (2, 0)]
    assert [task.terms for task in sites.tasks] == ["seed: 0"] * 3
    assert [folder.score_of(number) for number in (1, 2)] == [0.25, 0.25]


def test_training_goes_on_after_the_last_kept_round(tiny, tmp_path):
    settings, sites = tiny("rounds=5", *STEPS), Recording("A")
    folder = open_folder(settings, tmp_path / "run")
    before = weights_of(networks_for(settings))
    folder.keep(GlobalModel(3, before), [], Contribution({}, {}))

    train_in_folder(settings, folder, sites)

    assert sites.asked == [(3, 7), (4, 7), (5, 0)]
    name = "forward_generator.out.bias"
    assert torch.allclose(folder.latest().weights[name], before[name] + 2)


def test_a_run_that_is_over_asks_its_sites_nothing_more(tiny, tmp_path):
    settings, sites = tiny("rounds=1", *STEPS), Recording("A")
    for federation in (Recording("A"), sites):
        train_in_folder(settings, open_folder(settings, tmp_path), federation)

    assert sites.asked == []


@pytest.mark.parametrize(("select", "figure"), [("best", "pixel_ap"), ("aucp", "aucp")])
def test_a_run_that_gets_no_better_stops_and_says_so_once_however_often_it_is_resumed(tiny, tmp_path, select, figure):
    settings, sites = tiny("rounds=9", "patience=2", f"select={select}", *STEPS), Recording("A", figure=figure)

    for _ in range(2):
        train_in_folder(settings, open_folder(settings, tmp_path), sites)

    # Round 2 is scored when round 3 is trained, round 3 when round 4 is: then two have been no better than the first.
    assert sites.asked == [(0, 7), (1, 7), (2, 7), (3, 7), (4, 0)]
    events = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    (stop,) = (event for event in events if event["event"] == "stopped early")
    assert (stop["round"], stop["rounds"], stop["patience"]) == (4, 9, 2)


def test_patience_goes_by_the_figure_of_the_choice_alone(tiny, tmp_path):
    settings, sites = tiny("rounds=5", "patience=1", "select=aucp", *STEPS), Recording("A", figure="pixel_ap")

    train_in_folder(settings, open_folder(settings, tmp_path), sites)

    assert sites.asked[-2:] == [(4, 7), (5, 0)]


def test_another_process_stops_early_too(tiny, tmp_path):
    settings, sites = tiny("rounds=9", "patience=1"), Recording("A", "B")
    open_folder(settings, tmp_path).write("config.yaml", dump(settings))

    run_in_folder(tmp_path, lambda names, spool: sites)

    assert sites.asked == [(0, 2), (1, 2), (2, 2), (3, 0)]


def test_another_process_trains_the_federated_arm_from_the_runs_folder_alone(tiny, tmp_path):
    settings, sites = tiny("rounds=1", "quorum=2"), Recording("A", "B")
    open_folder(settings, tmp_path).write("config.yaml", dump(settings))
    named = []

    run_in_folder(tmp_path, lambda names, spool: named.extend(names) or sites)

    assert named == ["A", "B"]
    assert sites.asked == [(0, 2), (1, 0)]


def test_a_folder_without_settings_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"config\.yaml"):
        run_in_folder(tmp_path, Recording)
