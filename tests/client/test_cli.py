"""``fed-client`` as a site's engineer types it; one picture from a finished run is in tests/test_cli.py."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from client.cli import main as fed_client
from fedgan.assembly import networks_for
from fedgan.federated.site import weights_of
from fedgan.records import GlobalModel
from fedgan.simulation import open_folder


@pytest.fixture
def release(tiny, tmp_path):
    """Leave a model behind whose difference is tanh(1) at every pixel, and say where."""
    settings = tiny("model=taggan", "model.map_smoothing=0")
    networks = networks_for(settings)
    out = networks.forward_average.out
    with torch.no_grad():
        out.weight.zero_()
        out.bias.fill_(1.0)
    folder = open_folder(settings, tmp_path / "run")

    def release(**card):
        folder.release(GlobalModel(1, weights_of(networks)), threshold=0.9, **card)
        return folder.path / "model"

    return release


@pytest.fixture
def draw(release, tmp_path):
    """Draw maps into the folder ``maps``."""

    def run(*words, **card):
        model = release(**card)
        return fed_client(["--site", "A", "map", "--model", str(model), "--out", str(tmp_path / "maps"), *words])

    return run


def save_picture(path):
    path.parent.mkdir(exist_ok=True)
    Image.linear_gradient("L").save(path)
    return str(path)


def drawn(tmp_path):
    return sorted(file.name for file in (tmp_path / "maps").iterdir())


def test_a_damaged_picture_among_several_is_named_and_the_others_are_drawn(draw, tmp_path, capsys):
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no picture")

    code = draw(save_picture(tmp_path / "a.png"), str(damaged), save_picture(tmp_path / "b.PNG"))

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert str(damaged) in refusal
    assert drawn(tmp_path) == ["a-map.png", "b-map.png"]


def test_a_map_never_lies_over_that_of_another_picture_of_the_same_name(draw, tmp_path, capsys):
    one, other = save_picture(tmp_path / "one" / "scan.png"), save_picture(tmp_path / "other" / "scan.tif")
    assert draw(one) == 0
    first = (tmp_path / "maps" / "scan-map.png").read_bytes()
    capsys.readouterr()

    code = draw(other)

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "is there already; move it or give another --out" in refusal
    assert (tmp_path / "maps" / "scan-map.png").read_bytes() == first


def test_slices_of_a_volume_become_a_map_each_with_its_area(draw, tmp_path, capsys):
    voxels = np.arange(40 * 20 * 3, dtype=np.int16).reshape(40, 20, 3)
    nib.save(nib.Nifti1Image(voxels, np.diag([2.0, 3.0, 5.0, 1.0])), tmp_path / "brain.nii.gz")

    code = draw(f"{tmp_path}/brain.nii.gz#0", f"{tmp_path}/brain.nii.gz#2")

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert drawn(tmp_path) == ["brain-0-map.png", "brain-2-map.png"]
    # 1 - exp(-tanh(1) / 0.25) everywhere; padded to a square a slice is 80 x 120 mm.
    assert all("evidence 0.952 on average, 0.952 at most, 9600 mm2 above the threshold" in line for line in lines[:2])
    assert lines[3:] == ["For research. Not for diagnosis."]


@pytest.mark.parametrize(
    ("table", "place"), [([0.1, 0.2], "all"), ([0.99, 0.999], "none"), ([0.932, 0.972], "about 51 %")]
)
def test_a_score_is_told_beside_those_of_normal_scans(draw, tmp_path, capsys, table, place):
    draw(save_picture(tmp_path / "a.png"), normal_scores=table)

    line, last = capsys.readouterr().out.splitlines()
    assert f"evidence 0.952 on average (higher than {place} of the normal validation scans), 0.952 at most" in line
    assert last == "For research. Not for diagnosis."


def test_without_a_table_of_normal_scores_it_says_why(draw, tmp_path, capsys):
    draw(save_picture(tmp_path / "a.png"), no_normal_scores="fewer than 10 were normal")

    assert capsys.readouterr().out.splitlines()[1] == "No place among normal scans: fewer than 10 were normal."


def test_a_disease_that_the_model_does_not_know_ends_in_one_message(draw, tmp_path, capsys):
    code = draw(save_picture(tmp_path / "a.png"), "--disease", "measles")

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "the model knows diffuse, nodular, not measles" in refusal
    assert drawn(tmp_path) == []


def test_a_folder_without_a_model_ends_in_one_message(tmp_path, capsys):
    code = fed_client(["--site", "A", "map", save_picture(tmp_path / "a.png"), "--model", str(tmp_path)])

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "give a run's model folder" in refusal


def test_a_file_where_the_maps_should_go_ends_in_one_message(draw, tmp_path, capsys):
    (tmp_path / "maps").touch()

    code = draw(save_picture(tmp_path / "a.png"))

    (refusal,) = capsys.readouterr().err.splitlines()
    assert code == 1
    assert str(tmp_path / "maps") in refusal


def test_without_a_site_the_command_line_is_wrong(capsys):
    with pytest.raises(SystemExit, match="2"):
        fed_client(["map", "scan.png", "--model", "model"])

    assert "--site" in capsys.readouterr().err


def test_privacy_says_what_a_first_round_of_given_settings_would_take(site_home, capsys):
    home = site_home(privacy={"epsilon": 1e-3, "delta": 1e-5})
    asked = ("rounds=10", "local_steps=5", "privacy.epsilon=3")

    code = fed_client(["--site", "A", "--home", str(home), "privacy", *asked])

    assert code == 0
    _, told = capsys.readouterr().out.splitlines()
    assert told.startswith("  one more round of 10 noisy steps: ")
    assert told.endswith("over the ceiling: it would be refused")


@pytest.mark.parametrize("asked", ["privacy=none", "rounds=0", "privacy.epsilon"])
def test_privacy_refuses_settings_that_no_private_run_can_have(site_home, capsys, asked):
    code = fed_client(["--site", "A", "--home", str(site_home()), "privacy", asked])

    assert code == 1
    assert asked.partition("=")[0] in capsys.readouterr().err


def test_privacy_says_what_a_site_has_spent_and_has_left(site_home, capsys):
    home = site_home(privacy={"epsilon": 8.0, "delta": 1e-5})

    code = fed_client(["--site", "A", "--home", str(home), "privacy"])

    assert code == 0
    assert capsys.readouterr().out == "site A: epsilon 0 of 8 spent, 8 left, at delta 1e-05\n"
