"""A run's folder after whatever happened to the run: what is kept, what counts, and which round is the best."""

import json
from itertools import count, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan.audit import broken_links
from fedgan.checkpoint import load_model
from fedgan.errors import ModelError, RunFolderError
from fedgan.records import Contribution, GlobalModel, ScanCounts, SiteFailure, SiteUpdate
from fedgan.run_folder import RunFolder, validation_score

SCORED = st.lists(st.tuples(st.sampled_from(["", "AB", "AC"]), st.sampled_from([0.25, 0.75])), min_size=3, max_size=4)
"""Which sites score each round, and with what."""


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run", {"size": 32})


def answers(number, scores):
    """Return updates to the model of round ``number``, which has these scores at these sites."""
    return [
        SiteUpdate(site, number, "", {}, ScanCounts(), {f"validation/{name}": value for name, value in found.items()})
        for site, found in scores.items()
    ]


def keep(folder, number, scores_before=None):
    """Keep round ``number``; with it come the scores of the round before."""
    weights = {"w": torch.tensor([float(number)])}
    folder.keep(GlobalModel(number, weights), answers(number - 1, scores_before or {}), Contribution({}, {}))


def keep_all(folder, *scores):
    """Keep a round for each of ``scores``, which are the round's own, and one more."""
    for number, before in enumerate(({}, *scores), start=1):
        keep(folder, number, before)


def numbers(folder):
    return [entry.round for entry in folder.history]


def crash_at(monkeypatch, number):
    """Stop the process before its file ``number`` (from 1) takes the place of the one before."""
    replace, files = Path.replace, count(1)

    def replace_until(path, target):
        if next(files) == number:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_until)


def test_a_new_folder_holds_no_round(folder):
    assert folder.latest() is None
    assert folder.history == ()


def test_a_kept_round_is_the_latest_for_whoever_opens_the_folder_again(folder):
    keep(folder, 1)

    latest = RunFolder(folder.path, {}).latest()

    assert latest.round == 1
    assert latest.weights["w"].tolist() == [1.0]


def test_the_history_says_who_trained_who_did_not_and_with_what_losses(folder):
    update = SiteUpdate("B", 0, "", {}, ScanCounts(), {"loss/identity": 0.5, "validation/pixel_ap": 0.1})

    folder.keep(
        GlobalModel(1, {"w": torch.zeros(1)}),
        [update, SiteFailure("A", 0, "Diverged")],
        Contribution({"B": {"w": 1.0}}, {"A": {"w": 0.5}, "B": {"w": 0.5}}),
    )

    (entry,) = RunFolder(folder.path, {}).history
    assert (entry.trained, entry.failed, entry.losses) == (("B",), {"A": "Diverged"}, {"B": {"identity": 0.5}})
    assert (entry.shares, entry.planned_shares) == ({"B": {"w": 1.0}}, {"A": {"w": 0.5}, "B": {"w": 0.5}})
    assert entry.seconds >= 0


def test_scores_that_come_with_a_round_are_those_of_the_round_before(folder):
    keep_all(folder, {"A": {"pixel_ap": 0.25}, "B": {"pixel_ap": 0.75}})

    assert [entry.validation for entry in folder.history] == [{"A": {"pixel_ap": 0.25}, "B": {"pixel_ap": 0.75}}, {}]
    assert (folder.score_of(1), folder.score_of(2), folder.score_of(3)) == (0.5, None, None)


def test_a_federations_score_is_the_image_auroc_only_where_no_site_has_masks():
    assert validation_score({"A": {"image_auroc": 0.5}, "B": {"image_auroc": 1.0}, "C": {}}) == 0.75
    assert validation_score({"A": {"image_auroc": 0.9}, "B": {"pixel_ap": 0.1}}) == 0.1
    assert validation_score({"A": {}}) is None


@pytest.mark.parametrize(
    ("crashes_before", "latest"), [("scores", 1), ("history", 1), ("weights", 1), ("model", 2), ("card", 2)]
)
def test_a_crash_leaves_whole_rounds_from_which_the_run_goes_on(folder, monkeypatch, crashes_before, latest):
    keep(folder, 1)
    with monkeypatch.context() as patched:
        crash_at(patched, ["scores", "history", "weights", "model", "card"].index(crashes_before) + 1)
        with pytest.raises(KeyboardInterrupt):
            keep(folder, 2)

    resumed = RunFolder(folder.path, {})

    assert resumed.latest().round == latest
    assert numbers(resumed) == list(range(1, latest + 1))
    assert load_model(folder.path / "model")[0].keys() == {"w"}
    for number in range(latest + 1, 4):
        keep(resumed, number)
    assert numbers(RunFolder(folder.path, {})) == [1, 2, 3]
    assert load_model(folder.path / "model")[1]["round"] == 3
    assert broken_links(folder.path / "audit.jsonl") == []


def test_a_history_ahead_of_its_weights_is_cut_to_them(folder, monkeypatch):
    keep(folder, 1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        crash_at(patched, 3)
        keep(folder, 2)
    assert len(json.loads((folder.path / "history.json").read_text())) == 2

    folder.reload()

    assert numbers(folder) == [1]


def test_another_process_in_the_folder_is_seen_after_a_reload(folder):
    keep(RunFolder(folder.path, {}), 1)

    folder.reload()

    assert numbers(folder) == [1]


def test_the_best_round_stays_while_later_ones_are_forgotten(folder):
    keep_all(folder, *({"A": {"pixel_ap": value}} for value in (0.2, 0.9, 0.3, 0.4)))

    assert folder.best_round() == 2
    assert sorted(file.name for file in (folder.path / "rounds").iterdir()) == ["0002.safetensors", "0005.safetensors"]
    assert folder.kept(2).weights["w"].tolist() == [2.0]
    with pytest.raises(ModelError, match="is no kept round"):
        folder.kept(3)


def test_of_equally_good_rounds_the_later_is_the_best(folder):
    keep_all(folder, {"A": {"pixel_ap": 0.5}}, {"A": {"pixel_ap": 0.5}})

    assert folder.best_round() == 2


def test_without_scores_no_round_is_the_best(folder):
    keep_all(folder, {"A": {}, "B": {}})

    assert folder.best_round() is None


def test_a_round_is_not_better_for_want_of_the_site_that_finds_least(folder):
    hard = {"A": {"pixel_ap": 0.6}, "B": {"pixel_ap": 0.2}}

    keep_all(folder, hard, {"A": {"pixel_ap": 0.5}}, hard)

    assert folder.best_round() == 3


def test_a_site_that_left_early_does_not_hold_the_choice_to_the_rounds_it_saw(folder):
    keep_all(folder, {"A": {"pixel_ap": 0.1}, "B": {"pixel_ap": 0.1}}, *[{"A": {"pixel_ap": 0.8}}] * 2)

    assert folder.best_round() == 3


def test_rounds_are_compared_by_maps_where_any_site_has_masks_and_by_scans_elsewhere(folder, tmp_path):
    keep_all(
        folder,
        {"A": {"pixel_ap": 0.2, "image_auroc": 0.6}, "B": {"image_auroc": 0.6}},
        {"A": {"pixel_ap": 0.1, "image_auroc": 0.9}, "B": {"image_auroc": 0.9}},
    )
    without_masks = RunFolder(tmp_path / "without masks", {})
    keep_all(without_masks, {"B": {"image_auroc": 0.6}}, {"B": {"image_auroc": 0.9}})

    assert folder.best_round() == 1
    assert without_masks.best_round() == 2


def test_the_best_round_is_one_that_is_still_kept_when_the_sites_that_score_change(folder):
    with_b, with_c = (
        {"A": {"pixel_ap": value}, other: {"pixel_ap": value}} for other, value in (("B", 0.5), ("C", 0.9))
    )

    keep_all(folder, with_b, with_c, {"A": {"pixel_ap": 0.1}, "C": {"pixel_ap": 0.1}})

    assert folder.kept(folder.best_round()).round == folder.best_round()


def test_rounds_are_compared_by_the_figures_that_the_folder_may_use(tmp_path):
    folder = RunFolder(tmp_path, {}, figures=("aucp",))

    keep_all(
        folder, {"A": {"aucp": 0.9, "pixel_ap": 0.1}}, {"A": {"aucp": 0.2, "pixel_ap": 0.8}}, {"A": {"pixel_ap": 1.0}}
    )

    assert folder.best_round() == 1
    assert [folder.score_of(number) for number in (1, 2, 3)] == [0.9, 0.2, None]


def test_rounds_that_no_site_scored_do_not_stall_a_run(folder):
    keep_all(folder, {"A": {"pixel_ap": 0.5}}, {}, {}, {"B": {"image_auroc": 0.1}})

    assert not folder.stalled(1)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 3))
def test_a_run_has_stalled_once_two_gains_lie_too_far_apart_and_stays_so(values, patience):
    stalled = []
    with TemporaryDirectory() as path:
        folder = RunFolder(Path(path), {})
        for number, scores in enumerate(({}, *({"A": {"pixel_ap": value / 5}} for value in values)), start=1):
            keep(folder, number, scores)
            stalled.append(folder.stalled(patience))

    gains = [index for index, value in enumerate(values) if value > max(values[:index], default=-1)]
    assert stalled[-1] == any(end - gain > patience for gain, end in pairwise([*gains, len(values)]))
    assert stalled == sorted(stalled)


@settings(max_examples=25, deadline=None)
@given(SCORED)
def test_whoever_scores_what_the_latest_and_the_best_round_can_be_loaded(scored):
    with TemporaryDirectory() as path:
        folder = RunFolder(Path(path), {})

        keep_all(folder, *({site: {"pixel_ap": value} for site in judges} for judges, value in scored))

        best = folder.best_round()
        assert folder.latest().round == len(scored) + 1
        assert (best is None) == (not any(judges for judges, _ in scored))
        assert best is None or folder.kept(best).round == best


def test_a_run_may_have_more_rounds_than_four_digits_count(folder):
    keep(folder, 9999)
    keep(folder, 10000)

    assert RunFolder(folder.path, {}).latest().round == 10000


def test_a_chosen_round_becomes_the_model_with_its_card_completed(folder):
    keep_all(folder, {"A": {"pixel_ap": 0.9}})

    folder.release(folder.kept(1), threshold=0.25)

    weights, card = load_model(folder.path / "model")
    assert weights["w"].tolist() == [1.0]
    assert card == {"size": 32, "threshold": 0.25, "round": 1}
    last = json.loads((folder.path / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["round"]) == ("model chosen", 1)


def test_strangers_among_the_rounds_neither_count_nor_go(folder):
    strangers = {"0009.safetensors.partial", "0008 (copy).safetensors", "7.safetensors", "notes.txt"}
    for name in strangers:
        (folder.path / "rounds" / name).write_text("mine")

    keep(folder, 1)
    keep(folder, 2)

    assert RunFolder(folder.path, {}).latest().round == 2
    assert {file.name for file in (folder.path / "rounds").iterdir()} == strangers | {"0002.safetensors"}


def test_a_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(RunFolderError, match=r"file/run cannot be used .* choose another"):
        RunFolder(tmp_path / "file" / "run", {})


@pytest.mark.parametrize("damaged", [b"", b'[{"round": 1}]', b"[{", b"\xff"])
def test_a_damaged_history_is_refused(folder, damaged):
    (folder.path / "history.json").write_bytes(damaged)

    with pytest.raises(RunFolderError, match="choose another"):
        RunFolder(folder.path, {})


def test_a_file_that_cannot_be_written_is_named_with_what_to_do(folder):
    (folder.path / "report.html").mkdir()

    with pytest.raises(RunFolderError, match=r"report\.html cannot be written .* then resume"):
        folder.write("report.html", "<html>")


def test_an_epsilon_that_falls_from_one_round_to_the_next_is_noted(folder):
    for number, epsilon in enumerate((1.0, 2.0, 1.5, 2.001, 2.0), start=1):  # the last one by rounding alone
        update = SiteUpdate("A", number - 1, "", {}, ScanCounts(), {"privacy/epsilon": epsilon})
        folder.keep(GlobalModel(number, {"w": torch.zeros(1)}), [update], Contribution({}, {}))

    lines = [json.loads(line) for line in (folder.path / "audit.jsonl").read_text().splitlines()]
    assert [(line["round"], line["sites"]) for line in lines if line["event"] == "epsilon fell"] == [(3, ["A"])]
