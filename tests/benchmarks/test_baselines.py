"""That the benchmark of baselines runs, resumes and counts: no figure of two steps means anything."""

from dataclasses import replace

import baselines
import pytest
import torch
from baseline_alone import Alone, PooledClassifier, grad_cam, with_masks
from baseline_lines import read_lines, tables
from baseline_methods import LARGE, METHODS, build
from baseline_race import CONTROLS, Choice, race
from torch import nn

from fedgan.cohort.batches import draw_batches
from fedgan.cohort.cohort import pool
from fedgan.errors import CohortError, SettingsError
from fedgan.gan.disease_map import NOTABLE
from fedgan.streams import generator_for

TINY = (
    "data.size=32",
    "data.sites=[A,B]",
    "data.patients=14",
    "data.images_per_patient=1",
    "model.width=4",
    "model.critic_width=4",
    "bootstrap=3",
    "threads=1",
    "precision=float32",
    "device=cpu",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    return [*TINY, "--seeds", "0", "--steps", "2", "--batch", "2", "--lines", f"{folder}/lines", "--maps", f"{folder}"]


@pytest.fixture(scope="module")
def lines(command):
    """Every method after two steps."""
    assert baselines.main(command) == 0
    return read_lines(baselines.parse(command).lines)


@pytest.fixture
def cohort(command):
    told = baselines.parse(command)
    return pool(list(baselines.load_cohorts(baselines.settings_of(told, 0)).values()))


def test_every_method_trains_and_leaves_one_line(lines):
    trained = {name for name in METHODS if name not in LARGE}

    assert sorted(line.entry.method for line in lines) == sorted([*CONTROLS, *trained])
    for line in lines:
        assert 0 < line.overall["pixel_ap"][0] < 1
        assert set(line.per_site) == {"A", "B"}
        assert (line.entry.method in trained) == (sum(line.parameters.values()) > 0)


def test_what_has_a_line_is_not_run_again_and_the_tables_show_it(command, lines, capsys):
    before = baselines.parse(command).lines.read_bytes()

    assert baselines.main(command) == 0

    assert baselines.parse(command).lines.read_bytes() == before
    shown = capsys.readouterr().out
    assert all(shown.count(f"| {line.entry.method} |") == 2 for line in lines)


def test_a_line_of_another_commit_counts_only_if_asked(command, lines, tmp_path):
    old = tmp_path / "lines"
    for line in lines:
        baselines.append(old, replace(line, commit="another"))
    again = [*command, "--lines", str(old), "--methods", "DAE"]

    baselines.main([*again, "--any-commit"])
    assert len(read_lines(old)) == len(lines)

    baselines.main(again)
    assert len(read_lines(old)) == len(lines) + len(CONTROLS) + 1


def test_no_race_begins_when_the_time_is_over(command, tmp_path):
    assert baselines.main([*command, "--lines", f"{tmp_path}/lines", "--minutes", "0"]) == 0

    assert read_lines(tmp_path / "lines") == []


def test_tables_give_mean_and_deviation_over_seeds_of_the_last_line_of_each(lines):
    (line,) = (line for line in lines if line.entry.method == "DAE")
    found = [
        replace(line, entry=replace(line.entry, seed=seed), overall={"pixel_ap": [value, None, None]})
        for seed, value in ((0, 0.9), (0, 0.2), (1, 0.4))
    ]

    (row,) = (row for row in tables(found) if row.startswith("| DAE | normal scans |"))

    assert row.startswith("| DAE | normal scans | 2 | 0.300 ± 0.141 | - |")


def test_the_grid_shows_scans_and_maps(command, lines, tmp_path):
    assert baselines.main([*command, "--table", "--grid", f"{tmp_path}/grid.png"]) == 0

    assert (tmp_path / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_without_validation_masks_the_choice_is_carried_over_or_the_race_refused(command, cohort):
    told = baselines.parse(command)
    settings = baselines.settings_of(told, 0)
    hidden = replace(cohort, has_mask=cohort.has_mask & (torch.tensor([split == "test" for split in cohort.splits])))
    terms, carried = baselines.terms_of(told, settings), Choice(2.0, 0.5, "carried over from lgg")

    outcome, _ = race("DAE", build(METHODS["DAE"], settings), hidden, terms, carried=carried)

    assert outcome.choice == carried
    assert "normal" in outcome.arm.threshold_by
    with pytest.raises(SettingsError, match="no validation scan has a mask"):
        race("DAE", build(METHODS["DAE"], settings), hidden, terms, carried=None)
    with pytest.raises(CohortError, match="no training scan shows a lesion"):
        race("U-Net", build(METHODS["supervised U-Net"], settings), hidden, terms, carried=carried)


def test_masks_are_mirrored_with_their_scans(cohort):
    marked = with_masks(replace(cohort, images=cohort.masks[:, None].float()))

    batch = next(draw_batches(marked, batch_size=64, rng=generator_for(0, "test"), flip=True))

    assert torch.equal(batch.abnormal[:, 0], batch.abnormal[:, 1])
    assert batch.abnormal[:, 1].any() and not batch.normal[:, 1].any()


class Sum(nn.Module):
    """A classifier whose features are the pixels and whose evidence is their sum."""

    def features(self, images):
        return images

    def judge(self, features):
        return features.sum((2, 3))


def test_class_activation_maps_show_what_raises_the_evidence(cohort):
    assert torch.allclose(grad_cam(Sum(), cohort.images), cohort.images.relu())


def test_class_activation_maps_of_the_classifier_ignore_what_speaks_against_disease():
    classifier = PooledClassifier(num_diseases=1, width=16)
    nn.init.constant_(classifier.out.weight, -1.0)

    assert not grad_cam(classifier, torch.randn(2, 1, 32, 32)).any()


def test_class_activations_have_one_scale_for_all_scans(cohort):
    networks = Alone(Sum(), loss=None, draw=lambda network, images: images + 1, ema_decay=0.9)

    networks.measure_by(cohort.images, quantile=0.9)

    drawn = networks.difference(cohort.images, cohort.diseases)
    assert drawn.quantile(0.9).item() == pytest.approx(NOTABLE, rel=0.01)
    assert torch.allclose(drawn * networks.unit, cohort.images + 1)
