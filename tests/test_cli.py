import json

import pytest
import torch
from PIL import Image

from client.cli import main as fed_client
from fedgan.audit import broken_links
from fedgan.checkpoint import load_model, load_round
from fedgan.cli import main as fed_simulate
from fedgan.federated.site import Site
from fedgan.results.metrics import Metrics


@pytest.fixture
def simulate(tiny_overrides):
    def run(*overrides: str) -> int:
        return fed_simulate([*tiny_overrides, "name=run", *overrides])

    return run


def interrupt_in(monkeypatch, number: int):
    """Press Ctrl-C when site B is asked for round ``number``."""
    answer = Site.answer

    def answer_until(site, task):
        if site.name == "B" and task.model.round == number - 1:
            raise KeyboardInterrupt
        return answer(site, task)

    monkeypatch.setattr(Site, "answer", answer_until)


def test_a_run_leaves_a_report_its_figures_a_model_its_settings_an_audit_and_maps(simulate, tmp_path):
    assert simulate() == 0

    run = tmp_path / "run"
    metrics = Metrics.model_validate_json((run / "metrics.json").read_bytes())
    assert [entry.round for entry in metrics.rounds] == [1, 2]
    assert [arm.name for arm in metrics.arms] == ["federated"]
    assert "<html" in (run / "report.html").read_text()
    assert load_model(run / "model")[1]["round"] == metrics.chosen_round
    assert "rounds: 2" in (run / "config.yaml").read_text()
    assert broken_links(run / "audit.jsonl") == []
    assert list((run / "maps").glob("A-*-abnormal.png"))


def test_a_comparison_trains_each_site_alone_and_all_together_as_well(simulate, tmp_path):
    assert simulate("compare=true", "rounds=1", "local_steps=1") == 0

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {arm["name"]: arm["steps"] for arm in metrics["arms"]} == {
        "federated": 1,
        "local A": 1,
        "local B": 1,
        "pooled, steps of one site": 1,
        "pooled, steps of all sites": 2,
    }
    assert "mean of the local arms" in {comparison["against"] for comparison in metrics["comparisons"]}


def test_ctrl_c_leaves_the_last_round_usable_and_resuming_ends_where_an_unbroken_run_does(
    simulate, tmp_path, monkeypatch, capsys
):
    assert simulate("name=unbroken") == 0
    with monkeypatch.context() as patched:
        interrupt_in(patched, number=2)
        assert simulate() == 130
    assert f"go on with: fed-simulate --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert load_model(tmp_path / "run" / "model")[1]["round"] == 1

    assert fed_simulate(["--resume", str(tmp_path / "run")]) == 0

    resumed, unbroken = (load_round(tmp_path / name / "rounds" / "0002.safetensors") for name in ("run", "unbroken"))
    assert all(torch.equal(resumed.weights[name], unbroken.weights[name]) for name in unbroken.weights)


def test_a_run_that_stops_early_says_where_and_a_resumed_one_stays_there(simulate, tmp_path, capsys):
    still = (
        "rounds=30",
        "local_steps=1",
        "patience=1",
        "model.learning_rate=1e-12",
        "model.critic_learning_rate=1e-12",
    )
    assert simulate(*still) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "stopped" in line]
    before = load_model(tmp_path / "run" / "model")[0]

    assert fed_simulate(["--resume", str(tmp_path / "run")]) == 0

    metrics = Metrics.model_validate_json((tmp_path / "run" / "metrics.json").read_bytes())
    last = metrics.rounds[-1].round
    assert last < 30
    assert told == [f"federated: stopped {metrics.ended}"]
    assert told[0] in capsys.readouterr().out.splitlines()
    assert metrics.ended in (tmp_path / "run" / "report.html").read_text()
    after = load_model(tmp_path / "run" / "model")[0]
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert broken_links(tmp_path / "run" / "audit.jsonl") == []


def test_a_full_disk_ends_in_one_message_and_the_kept_round_stays(full_disk, simulate, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        interrupt_in(patched, number=2)
        simulate()
    kept = tmp_path / "run" / "rounds" / "0001.safetensors"
    before = kept.read_bytes()
    capsys.readouterr()

    with full_disk():
        code = fed_simulate(["--resume", str(tmp_path / "run")])

    (message,) = capsys.readouterr().err.splitlines()
    assert (code, kept.read_bytes()) == (1, before)
    assert "free space on the disk" in message
    assert fed_simulate(["--resume", str(tmp_path / "run")]) == 0


def test_a_loss_that_is_not_finite_ends_in_one_message_that_says_who_must_act(simulate, capsys):
    code = simulate("model.learning_rate=1e30", "local_steps=5")

    assert code == 1
    assert "round 1: 0 of 2 sites trained, 2 are needed (A: Diverged, B: Diverged)" in capsys.readouterr().err


def test_a_run_is_never_overwritten(simulate, capsys):
    simulate("rounds=1", "local_steps=1")

    assert simulate("rounds=1") == 1
    assert "holds a run already; resume it" in capsys.readouterr().err


def test_unknown_settings_end_in_one_message_and_exit_code_2(capsys):
    assert fed_simulate(["typo=3", "rounds=0"]) == 2

    message = capsys.readouterr().err
    assert "typo" in message
    assert "rounds" in message
    assert "Traceback" not in message


def test_settings_beside_resume_are_refused(tmp_path, capsys):
    assert fed_simulate(["rounds=3", "--resume", str(tmp_path)]) == 2
    assert "--resume takes every setting from" in capsys.readouterr().err


def test_a_site_draws_the_map_of_one_picture_with_a_runs_model(simulate, tmp_path, capsys):
    simulate("rounds=1", "local_steps=1")
    picture = tmp_path / "scan.png"
    Image.linear_gradient("L").save(picture)

    code = fed_client(
        ["--site", "A", "map", str(picture), "--model", str(tmp_path / "run" / "model"), "--out", str(tmp_path)]
    )

    assert code == 0
    with Image.open(tmp_path / "scan-map.png") as drawn:
        assert drawn.size[0] > 400
    assert "evidence" in capsys.readouterr().out


def test_a_picture_that_cannot_be_read_is_refused_in_one_line(simulate, tmp_path, capsys):
    simulate("rounds=1", "local_steps=1")
    picture = tmp_path / "scan.png"
    picture.write_bytes(b"no picture")
    capsys.readouterr()

    code = fed_client(["--site", "A", "map", str(picture), "--model", str(tmp_path / "run" / "model")])

    assert code == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
