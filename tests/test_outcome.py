"""What remains of a finished run, whatever its sites lack: validation patients, masks, a class, labels."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from fedgan.assembly import networks_for
from fedgan.checkpoint import load_model
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, pool
from fedgan.federated.site import load_weights, weights_of
from fedgan.gan.build import drawing_of
from fedgan.gan.disease_map import Drawing, draw_maps
from fedgan.outcome import EXAMPLES_PER_CLASS, choose_examples, conclude, write_maps
from fedgan.records import Contribution, GlobalModel
from fedgan.results.reading import read
from fedgan.simulation import arms_of, load_cohorts, open_folder, train_in_process


@pytest.fixture
def finish(tiny, tmp_path):
    """Train the federated arm for one round on what ``change`` makes of each cohort, and conclude."""

    def run(change=lambda cohort: cohort, *overrides, name="run"):
        settings = tiny("rounds=1", "local_steps=1", *overrides)
        cohorts = {name: change(cohort) for name, cohort in load_cohorts(settings).items()}
        (arm,) = arms_of(settings, cohorts)
        folder = open_folder(settings, tmp_path / name)
        train_in_process(settings, arm, folder)
        return conclude(settings, [(arm, folder)])

    return run


def where(cohort, chosen):
    return cohort.take(torch.as_tensor(chosen).nonzero().flatten().tolist())


def without_validation(cohort):
    return where(cohort, [split != "val" for split in cohort.splits])


def without_masks(cohort):
    return replace(
        cohort,
        masks=torch.zeros_like(cohort.masks),
        has_mask=cohort.status == NORMAL,
        boxes=tuple(() for _ in cohort.boxes),
    )


def of_one_class(cohort):
    """Site A has the abnormal scans alone, B the normal ones."""
    return where(cohort, cohort.status == {"A": ABNORMAL, "B": NORMAL}[cohort.sites[0]])


def half_unlabelled(cohort):
    """Nobody has looked at every second scan."""
    unseen = torch.arange(len(cohort)) % 2 == 0
    return replace(cohort, status=cohort.status.masked_fill(unseen, UNLABELLED), has_mask=cohort.has_mask & ~unseen)


def with_other_test_scans(cohort):
    """The test patients' scans are of someone else, and so are their labels and masks."""
    test = torch.tensor([split == "test" for split in cohort.splits])
    return replace(
        cohort,
        images=torch.where(test[:, None, None, None], cohort.images.flip(0), cohort.images),
        masks=torch.where(test[:, None, None], cohort.images[:, 0] > 0, cohort.masks),
        status=torch.where(test, cohort.status.flip(0), cohort.status),
        has_mask=cohort.has_mask | test,
    )


def card(tmp_path, name="run"):
    return load_model(tmp_path / name / "model")[1]


def patient_of(example, cohort):
    """Return whose scan an example shows: phantoms are all different."""
    (row,) = [row for row in range(len(cohort)) if torch.equal(cohort.images[row, 0], example.scan)]
    return cohort.patients[row]


def test_the_best_round_becomes_the_model_with_a_threshold_from_validation_patients(finish, tmp_path):
    metrics, examples = finish()

    (arm,) = metrics.arms
    assert (metrics.chosen_round, arm.steps) == (1, 1)
    assert "validation patients" in metrics.chosen_by
    assert metrics.ended == "after all 1 round(s)"
    assert card(tmp_path)["threshold"] == arm.threshold is not None
    assert card(tmp_path)["threshold_by"] == arm.threshold_by == "the best Dice on the validation patients' masks"
    assert metrics.seconds == sum(entry.seconds for entry in metrics.rounds)
    assert {example.site for example in examples} == {"A", "B"}


def test_a_site_is_counted_by_scans_of_each_split_and_by_patients(finish):
    metrics, _ = finish(lambda cohort: cohort, "data.images_per_patient=2")

    counts = metrics.sites["A"]
    assert counts["patients"] == 16
    assert counts["train"] + counts["val"] + counts["test"] == 32


def test_the_last_round_is_the_result_if_the_settings_ask_for_it(finish):
    metrics, _ = finish(lambda cohort: cohort, "select=last")

    assert (metrics.chosen_round, metrics.chosen_by) == (1, "the last round, as the settings ask")


def test_without_validation_patients_the_last_round_is_the_result_and_has_no_threshold(finish, tmp_path):
    metrics, _ = finish(without_validation)

    overall = metrics.arms[0].overall
    assert metrics.chosen_by.startswith("the last round, for want of")
    assert (metrics.arms[0].threshold, card(tmp_path)["threshold"]) == (None, None)
    assert metrics.arms[0].threshold_by == "no validation scan has a mask"
    assert card(tmp_path)["normal_scores"] is None
    assert (overall.dice, overall.iobb) == (None, None)
    assert overall.pixel_ap is not None
    assert overall.image_auroc is not None


def test_without_masks_scans_are_scored_and_pixels_are_not(finish, tmp_path):
    metrics, examples = finish(without_masks)

    scores = metrics.arms[0].overall
    assert metrics.rounds[0].validation["A"].keys() == {"image_auroc", "aucp"}
    assert (scores.num_masked, scores.pixel_ap, scores.best_dice, scores.pointing_game) == (0, None, None, None)
    assert scores.image_auroc is not None
    assert card(tmp_path)["threshold"] is None
    assert all((example.mask is None) == example.abnormal for example in examples)


def test_sites_of_one_class_each_are_scored_together_and_alone_by_what_they_have(finish):
    metrics, examples = finish(of_one_class)

    arm = metrics.arms[0]
    assert arm.overall.image_auroc is not None
    assert (arm.per_site["A"].image_auroc, arm.per_site["B"].image_auroc) == (None, None)
    assert arm.per_site["A"].pixel_ap is not None
    assert arm.per_site["B"].pixel_ap is None
    assert {(example.site, example.abnormal) for example in examples} == {("A", True), ("B", False)}


def test_scans_that_nobody_labelled_are_neither_scored_nor_shown(finish, tiny):
    metrics, examples = finish(half_unlabelled, "data.images_per_patient=2")

    tests = [
        half_unlabelled(cohort).split("test") for cohort in load_cohorts(tiny("data.images_per_patient=2")).values()
    ]
    labelled = [scan for cohort in tests for scan in cohort.images[cohort.status != UNLABELLED, 0]]
    assert 0 < metrics.arms[0].overall.num_images == len(labelled) < sum(len(cohort) for cohort in tests)
    assert all(any(torch.equal(example.scan, scan) for scan in labelled) for example in examples)


def test_with_hidden_labels_round_threshold_and_scores_go_by_the_normals_that_are_known(finish, tiny, tmp_path):
    hidden = ("data.hide_labels=0.4", "data.images_per_patient=6", "data.patients=20")
    label_free = ("select=aucp", "threshold=normals", "false_positives=0.02")

    metrics, _ = finish(lambda cohort: cohort, *hidden, *label_free)

    settings = tiny(*hidden, *label_free)
    cohorts = {name: cohort.split("val") for name, cohort in load_cohorts(settings).items()}
    networks = networks_for(settings)
    load_weights(networks, load_model(tmp_path / "run" / "model")[0])
    readings = {name: read(networks, cohort, drawing=drawing_of(settings.model)) for name, cohort in cohorts.items()}
    for name, reading in readings.items():
        pseudo = roc_auc_score(reading.cohort.status != NORMAL, reading.image_scores)
        assert metrics.rounds[0].validation[name]["aucp"] == pytest.approx(pseudo)
        assert bool((reading.cohort.status == UNLABELLED).any())
    val = pool(list(cohorts.values()))
    normals = torch.cat([reading.maps for reading in readings.values()])[val.status == NORMAL]
    scores = torch.cat([reading.image_scores for reading in readings.values()])[val.status == NORMAL].numpy()
    (arm,) = metrics.arms
    assert "AUCp" in metrics.chosen_by
    assert arm.threshold_by == "at most 2 % of the normal validation scans' pixels are found"
    assert float((normals >= arm.threshold).double().mean()) == pytest.approx(0.02, abs=1e-3)
    assert np.allclose(card(tmp_path)["normal_scores"], np.quantile(scores, np.linspace(0, 1, 11)), rtol=1e-4)
    assert arm.overall.dice is not None


def test_without_known_normals_there_is_no_threshold_by_them_and_the_reason_is_said(finish, tmp_path):
    def of_unknown_normals(cohort):
        unknown = torch.tensor([split == "val" for split in cohort.splits]) & (cohort.status == NORMAL)
        return replace(cohort, status=cohort.status.masked_fill(unknown, UNLABELLED))

    metrics, _ = finish(of_unknown_normals, "threshold=normals")

    (arm,) = metrics.arms
    assert (arm.threshold, arm.threshold_by) == (None, "no validation scan is known to be normal")
    assert (arm.overall.dice, arm.overall.poi, arm.overall.iobb) == (None, None, None)
    assert arm.overall.pixel_ap is not None
    assert all(control.threshold is None for control in metrics.controls)
    assert card(tmp_path)["no_normal_scores"] == "fewer than 10 validation scans are known to be normal"


@pytest.mark.parametrize("choices", [("select=best", "threshold=masks"), ("select=aucp", "threshold=normals")])
def test_nothing_of_the_test_patients_enters_a_choice(finish, tmp_path, choices):
    overrides = ("rounds=3", "data.images_per_patient=4", "data.patients=24", *choices)

    one, other = (
        finish(change, *overrides, name=name)[0]
        for name, change in (("one", lambda cohort: cohort), ("other", with_other_test_scans))
    )

    assert one.arms[0].overall.image_auroc != other.arms[0].overall.image_auroc
    assert one.chosen_round == other.chosen_round
    assert card(tmp_path, "one") == card(tmp_path, "other")
    assert card(tmp_path, "one")["normal_scores"] is not None


def test_a_run_that_stops_early_counts_the_steps_it_took_and_says_where_it_ended(finish):
    metrics, _ = finish(lambda cohort: cohort, "rounds=30", "patience=1", "model.learning_rate=1e-12")

    last = metrics.rounds[-1].round
    assert last < 30
    assert metrics.arms[0].steps == last
    assert metrics.ended == f"after round {last} of 30: 1 round(s) in a row brought no better validation score"


def test_each_arm_is_scored_with_its_own_model_and_the_federated_one_draws_the_examples(tiny, tmp_path):
    settings = tiny("rounds=1", "compare=true")
    trained, networks = [], {}
    for number, arm in enumerate(arms_of(settings, load_cohorts(settings))):
        networks[arm.name] = networks_for(tiny(f"seed={number}"))
        folder = open_folder(settings, tmp_path / arm.folder_name)
        folder.keep(GlobalModel(1, weights_of(networks[arm.name])), [], Contribution({}, {}))
        trained.append((arm, folder))

    metrics, examples = conclude(settings, trained)

    assert [arm.name for arm in metrics.arms] == [arm.name for arm, _ in trained]
    assert len({arm.overall.pixel_ap.value for arm in metrics.arms}) == len(trained)
    drawing = drawing_of(settings.model)
    drawn = draw_maps(networks["federated"], examples[0].scan[None, None], torch.ones(1, 2), drawing=drawing)
    assert torch.allclose(examples[0].disease_map, drawn.evidence[0], atol=1e-5)
    assert metrics.chosen_by == "the last round, for want of scores on validation patients"


def test_examples_of_a_site_and_class_are_of_different_patients(tiny):
    settings = tiny("data.patients=6", "data.images_per_patient=4")
    cohort = load_cohorts(settings)["A"]

    examples = choose_examples(networks_for(settings), cohort, drawing=Drawing(smoothing=0), seed=0)

    for abnormal in (True, False):
        patients = [patient_of(example, cohort) for example in examples if example.abnormal is abnormal]
        assert len(set(patients)) == len(patients) == EXAMPLES_PER_CLASS


def test_examples_show_each_scan_as_its_label_says(tiny):
    settings = tiny()
    cohort = load_cohorts(settings)["B"]

    examples = choose_examples(networks_for(settings), cohort, drawing=Drawing(smoothing=0), seed=0)

    status = dict(zip(cohort.patients, cohort.status.tolist(), strict=True))
    assert all(example.site == "B" for example in examples)
    assert all(example.abnormal == (status[patient_of(example, cohort)] == ABNORMAL) for example in examples)
    assert all(bool(example.mask.any()) == example.abnormal for example in examples)


def test_the_seed_chooses_the_examples(tiny):
    settings = tiny("data.patients=40")
    cohort, networks = load_cohorts(settings)["A"], networks_for(settings)

    one, same, other = (
        [
            patient_of(example, cohort)
            for example in choose_examples(networks, cohort, drawing=Drawing(smoothing=0), seed=seed)
        ]
        for seed in (0, 0, 1)
    )

    assert one == same
    assert one != other


def test_map_files_carry_no_patients_name_and_replace_those_of_a_run_before(tiny, tmp_path):
    settings = tiny()
    cohort = load_cohorts(settings)["A"]
    cohort = replace(cohort, patients=tuple(f"Jane-Doe-{row}" for row in range(len(cohort))))
    examples = choose_examples(networks_for(settings), cohort, drawing=Drawing(smoothing=0), seed=0)
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "A-99-normal.png").touch()

    write_maps(examples, tmp_path / "maps")

    files = sorted((tmp_path / "maps").iterdir())
    assert len(files) == len(examples) == 2 * EXAMPLES_PER_CLASS
    assert all(re.fullmatch(r"A-0[1-6]-(abnormal|normal)\.png", file.name) for file in files)
    assert not any(b"Doe" in file.read_bytes() for file in files)
    for file in files:
        with Image.open(file) as picture:
            assert picture.info == {}


@pytest.mark.parametrize("share", ["discriminator", "none"])
def test_sites_that_keep_their_generators_draw_maps_of_their_own(tiny, tmp_path, share):
    settings = tiny(f"aggregation.share={share}", "select=last")
    cohorts = load_cohorts(settings)
    (arm,) = arms_of(settings, cohorts)
    folder = open_folder(settings, tmp_path / "run")
    train_in_process(settings, arm, folder)

    metrics, examples = conclude(settings, [(arm, folder)])

    of_sites = {site: load_model(tmp_path / "run" / "sites" / site / "model")[0] for site in "AB"}
    name = "forward_average.out.weight"
    assert not torch.equal(of_sites["A"][name], of_sites["B"][name])
    networks = networks_for(settings)
    load_weights(networks, of_sites["B"])
    test = cohorts["B"].split("test")
    shown = choose_examples(networks, test, drawing=drawing_of(settings.model), seed=settings.seed)
    drawn = [example.disease_map for example in examples if example.site == "B"]
    assert all(torch.equal(one, other.disease_map) for one, other in zip(drawn, shown, strict=True))
    assert metrics.arms[0].overall.num_images == sum(len(cohort.split("test")) for cohort in cohorts.values())


def test_an_arm_alone_has_one_model_whatever_a_federation_would_share(tiny, tmp_path):
    settings = tiny("aggregation.share=none", "select=last", "compare=true")
    alone = arms_of(settings, load_cohorts(settings))[1]
    folder = open_folder(settings, tmp_path / "run")

    train_in_process(settings, alone, folder)

    start = weights_of(networks_for(settings))["forward_average.out.weight"]
    assert not torch.equal(folder.latest().weights["forward_average.out.weight"], start)
