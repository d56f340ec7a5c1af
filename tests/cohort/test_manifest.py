"""From a manifest on disk to cohorts, and everything that stands in the way."""

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.cohort.manifest import LeftOut, load_cohorts, read_manifest
from fedgan.errors import CohortError, SettingsError
from fedgan.settings import ManifestData

HEADER = "file,patient,label,disease,site,split,mask,boxes,age"
ABNORMAL_LINE = "a.png,Ann,abnormal,diffuse;nodular,A,train,mask.png,2 4 8 6;0 0 4 4,61"
LINES = (
    ABNORMAL_LINE,
    "b.png,Bob,normal,,B,val,,,18",
    "c.png,Cem,unlabelled,,A,test,,,40",
    "d.png,Dan,abnormal,nodular,A,train,,,55",
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with five different pictures, some masks, and no manifest yet."""
    rng = np.random.default_rng(0)
    for name in "abcde":
        Image.fromarray(rng.integers(0, 256, (48, 64), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((48, 64), bool)
    mask[4:12, 2:18] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.zeros((48, 64), bool)).save(tmp_path / "no_lesion.png")
    Image.fromarray(mask[:24]).save(tmp_path / "low.png")
    Image.fromarray(np.full((48, 64), 7, np.uint8)).save(tmp_path / "blank.png")
    return tmp_path


def settings(site: Path, *lines: str, header: str = HEADER, **changes: object) -> ManifestData:
    """Write a manifest of these lines, and return the settings that name it."""
    (site / "manifest.csv").write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    values = {
        "kind": "manifest",
        "hide_labels": 0,
        "hidden_abnormal": None,
        "root": site,
        "manifest": "manifest.csv",
        "where": None,
        "sites": None,
        "diseases": ("diffuse", "nodular"),
        "size": 32,
        "intensity": "range",
        "cache": site / "kept",
    }
    return ManifestData.model_validate(values | changes)


def same(one: Cohort, other: Cohort) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks) and one.boxes == other.boxes


def test_each_site_of_a_manifest_becomes_a_cohort(site):
    cohorts = load_cohorts(settings(site, *LINES))

    a, b = cohorts["A"], cohorts["B"]
    assert list(cohorts) == ["A", "B"]
    assert a.patients == ("Ann", "Cem", "Dan")
    assert a.splits == ("train", "test", "train")
    assert a.status.tolist() == [ABNORMAL, UNLABELLED, ABNORMAL]
    assert b.status.tolist() == [NORMAL]
    assert a.diseases.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert a.has_mask.tolist() == [True, False, False]
    assert b.has_mask.tolist() == [True]
    assert a.images.shape == (3, 1, 32, 32)
    assert a.images.dtype == torch.float32
    assert a.masks.sum(dim=(1, 2)).tolist() == [32, 0, 0]


def test_masks_and_boxes_follow_the_padding_of_their_scan(site):
    cohort = load_cohorts(settings(site, ABNORMAL_LINE))["A"]

    assert cohort.boxes == (((1, 6, 4, 3), (0, 4, 2, 2)),)
    assert cohort.masks[0].nonzero()[0].tolist() == [6, 1]
    assert (cohort.images[0, 0, :4] == -1).all()


def test_the_second_load_takes_the_scans_that_were_kept(site):
    asked = settings(site, *LINES)
    prepared: list[int] = []

    first = load_cohorts(asked, progress=lambda done, _: prepared.append(done))
    second = load_cohorts(asked, progress=lambda done, _: prepared.append(done))

    assert prepared == [1, 2, 3, 4]
    assert same(first["A"], second["A"])


@pytest.mark.parametrize("change", [{"size": 64}, {"intensity": "tissue_median"}])
def test_other_settings_prepare_other_scans(site, change):
    before = load_cohorts(settings(site, *LINES))["A"]

    after = load_cohorts(settings(site, *LINES, **change))["A"]

    assert before.images.shape != after.images.shape or not torch.equal(before.images, after.images)


def test_a_picture_that_changed_is_prepared_anew(site):
    asked = settings(site, *LINES)
    before = load_cohorts(asked)["A"]

    Image.fromarray(np.eye(48, 64, dtype=np.uint8)).save(site / "a.png")
    after = load_cohorts(asked)["A"]

    assert not torch.equal(before.images[0], after.images[0])
    assert torch.equal(before.images[1:], after.images[1:])


@pytest.mark.parametrize(
    "damage",
    [lambda kept: kept[:-1], lambda _: b"", lambda kept: b"x" + kept[1:], lambda kept: kept.replace(b"(4,)", b"(3,)")],
)
def test_damaged_kept_scans_are_made_anew_with_a_warning(site, caplog, damage):
    asked = settings(site, *LINES)
    sound = load_cohorts(asked)["A"].take(range(3))
    (kept,) = (site / "kept").iterdir()

    kept.write_bytes(damage(kept.read_bytes()))
    with caplog.at_level(logging.WARNING):
        mended = load_cohorts(asked)["A"]

    assert same(sound, mended)
    assert "damaged" in caplog.text
    assert same(sound, load_cohorts(asked)["A"])


def test_what_is_kept_names_no_file_and_no_patient_and_cannot_be_written_through(site):
    asked = settings(site, *LINES)
    load_cohorts(asked)["A"].images.fill_(0)

    kept = b"".join(file.name.encode() + file.read_bytes() for file in (site / "kept").iterdir())

    assert not any(name in kept for name in (b"Ann", b"a.png", str(site).encode()))
    assert load_cohorts(asked)["A"].images.abs().sum() > 0


def test_a_refused_manifest_leaves_nothing_behind(site):
    with pytest.raises(CohortError):
        load_cohorts(settings(site, *LINES, "blank.png,Eve,normal,,A,train,,,3"))

    assert list((site / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("none.png,Eve,normal,,A,train,,,", "there is no file none.png"),
        ("e.png,Eve,ill,,A,train,,,", "label: Input should be 'normal', 'abnormal' or 'unlabelled' (got 'ill')"),
        ("e.png,,normal,,A,train,,,", "patient is empty"),
        ("e.png,Eve,normal,,A,,,,", "split is empty"),
        ("e.png,Eve,normal,,A,training,,,", "split: Input should be 'train', 'val' or 'test' (got 'training')"),
        ("e.png,Eve,abnormal,,A,train,,,", "an abnormal scan must name its disease: diffuse, nodular"),
        ("e.png,Eve,abnormal,focal,A,train,,,", "disease focal is not among those of the settings: diffuse, nodular"),
        ("e.png,Eve,normal,nodular,A,train,,,", "the scan is normal, yet a disease or a box is given"),
        ("e.png,Eve,normal,,A,train,,1 2 3 4,", "the scan is normal, yet a disease or a box is given"),
        ("e.png,Eve,abnormal,nodular,A,train,,1 2 3,", "boxes are written x y w h;... in pixels (got '1 2 3')"),
        ("e.png,Eve,abnormal,nodular,A,train,,1 2 3 inf,", "boxes are written x y w h;... in pixels (got '1 2 3 inf')"),
        ("e.png,Eve,abnormal,nodular,A,train,,1 2 0 4,", "boxes are written x y w h;... in pixels (got '1 2 0 4')"),
        ("e.png,Eve,abnormal,nodular,A,train,,60 0 9 9,", "a box reaches beyond e.png, which is 64 x 48 pixels"),
        ("e.png,Eve,abnormal,nodular,A,train,,-1 0 9 9,", "a box reaches beyond e.png, which is 64 x 48 pixels"),
        ("e.png,Eve,abnormal,nodular,A,train,gone.png,,", "there is no file gone.png"),
        ("e.png,Eve,abnormal,nodular,A,train,no_lesion.png,,", "the mask is empty, yet the scan is abnormal"),
        ("e.png,Eve,normal,,A,train,mask.png,,", "mask.png: the mask shows a lesion, yet the scan is normal"),
        ("e.png,Eve,abnormal,nodular,A,train,low.png,,", "the mask is 64 x 24 pixels, its scan 64 x 48 pixels"),
        ("e.png,Eve,abnormal,nodular,A,train,manifest.csv,,", "manifest.csv: files named *.csv are not read here"),
        ("manifest.csv,Eve,normal,,A,train,,,", "manifest.csv: files named *.csv are not read here"),
        ("blank.png,Eve,normal,,A,train,,,", "blank.png: the picture is empty: its pixels are all (nearly) the same"),
        ("a.png,Ann,abnormal,nodular,A,train,,,", "a.png is on line 2 too"),
        ("copy.png,Ann,abnormal,nodular,A,train,,,", "copy.png is the same picture as a.png on line 2"),
        ("e.png,Ann,normal,,A,test,,,", "patient Ann is in test, but in train on line 2"),
        ("e.png,Ann,normal,,B,train,,,", "patient Ann is at B, but at A on line 2"),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_used_is_named_with_its_reason(site, line, problem):
    (site / "copy.png").write_bytes((site / "a.png").read_bytes())
    asked = settings(site, ABNORMAL_LINE, line)

    with pytest.raises(CohortError) as refused:
        load_cohorts(asked)

    (told,) = refused.value.problems
    assert told.startswith("line 3: ")
    assert problem in told


def test_all_problems_of_lines_and_pictures_are_told_at_once_in_order(site):
    asked = settings(
        site, "blank.png,Eve,normal,,A,train,,,3", "none.png,Eve,ill,,A,,,,3", "none.png,Eve,normal,,A,test,,,1"
    )

    with pytest.raises(CohortError) as refused:
        load_cohorts(asked)

    assert refused.value.site == "A"
    assert [problem.partition(":")[0] for problem in refused.value.problems] == ["line 2", "line 3", "line 3", "line 4"]


UNUSABLE = (
    "none.png,Eve,normal,,A,train,,,",
    "blank.png,Fay,normal,,A,train,,,",
    "e.png,Gus,normal,focal,A,train,,,",
    "e.png,Ann,normal,,A,test,,,",
)


def test_lines_that_cannot_be_used_are_left_out_of_a_cohort_that_may_do_without(site):
    told: list[LeftOut] = []
    asked = settings(site, *LINES, *UNUSABLE)

    for _ in range(2):  # the second time from what was kept
        cohort = load_cohorts(asked, left_out=told.append)["A"]

        assert cohort.patients == ("Ann", "Cem", "Dan")
    assert same(cohort, load_cohorts(settings(site, *LINES))["A"])
    assert [problem.partition(":")[0] for problem in told[0].problems] == ["line 6", "line 7", "line 8", "line 9"]
    assert [problem.partition(":")[0] for problem in told[1].problems] == ["line 6", "line 7", "line 8", "line 9"]
    assert "blank.png" in told[0].problems[1]
    assert "when it was prepared" in told[1].problems[1]


def test_scans_of_a_disease_that_is_not_asked_about_are_left_out_and_never_taken_for_normal(site):
    told: list[LeftOut] = []

    cohort = load_cohorts(settings(site, *LINES, diseases=("nodular",)), left_out=told.append)["A"]

    assert cohort.patients == ("Cem", "Dan")
    assert told == [LeftOut(unasked=1, problems=())]
    assert str(told[0]).startswith("left out: 1 scan(s) of diseases that are not asked about")


def test_a_file_that_cannot_be_read_for_the_moment_is_neither_left_out_nor_kept_as_unusable(site):
    (site / "v.nii").symlink_to("/proc/self/mem")  # a regular file whose beginning gives an input/output error
    asked = settings(site, *LINES, "v.nii#0,Eve,normal,,A,train,,,3")

    with pytest.raises(CohortError, match=r"line 6: v\.nii#0: the file cannot be decoded"):
        load_cohorts(asked, left_out=lambda _: None)

    assert list((site / "kept").iterdir()) == []


def test_nothing_is_told_where_nothing_is_left_out(site):
    told: list[LeftOut] = []

    load_cohorts(settings(site, *LINES), left_out=told.append)

    assert told == []


def test_what_is_kept_without_lines_is_not_taken_for_all_of_them(site):
    asked = settings(site, *LINES, "blank.png,Fay,normal,,A,train,,,")
    load_cohorts(asked, left_out=lambda _: None)

    with pytest.raises(CohortError, match=r"blank\.png"):
        load_cohorts(asked)


def test_a_site_that_is_left_without_a_scan_is_refused_with_the_reason(site):
    with pytest.raises(CohortError, match=r"blank\.png"):
        load_cohorts(settings(site, "blank.png,Fay,normal,,A,train,,,"), left_out=lambda _: None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file;patient;label\n", "line 1: the column file is missing; there are file;patient;label"),
        ("file,patient,label,label\n", "line 1: the column label is there twice"),
        ("file,patient,label\na.png,Ann\n", "line 2: 2 cells in 3 columns"),
        ('file,patient,label\n"a.png,Ann\n', "cannot be read"),
        ("file,patient,label\n\xff,Ann\n", "cannot be read"),
        ("file,patient,label\n", "line 1: no scan is left"),
        ("", "line 1: the column file is missing"),
    ],
)
def test_a_manifest_that_is_no_table_of_scans_is_refused(tmp_path, text, problem):
    (tmp_path / "manifest.csv").write_text(text, encoding="latin-1")

    with pytest.raises(CohortError) as refused:
        read_manifest(tmp_path / "manifest.csv", where=None, diseases=("disease",))

    assert problem in refused.value.problems[0]


def test_an_absent_manifest_is_refused(tmp_path):
    with pytest.raises(CohortError, match=r"manifest\.csv cannot be read"):
        read_manifest(tmp_path / "manifest.csv", where=None, diseases=("disease",))


def test_where_takes_rows_and_the_others_are_not_looked_at(site):
    cohorts = load_cohorts(
        settings(site, *LINES, "none.png,Eve,ill,,A,train,,,99", where="age < 60 and label != 'unlabelled'")
    )

    assert {name: cohort.patients for name, cohort in cohorts.items()} == {"A": ("Dan",), "B": ("Bob",)}


def test_where_on_a_cell_without_a_number_names_the_line(site):
    with pytest.raises(CohortError, match="line 3: where: age is '', not a number"):
        load_cohorts(settings(site, ABNORMAL_LINE, "b.png,Bob,normal,,B,val,,,", where="age > 3"))


def test_only_the_sites_asked_for_are_loaded(site):
    (site / "a.png").write_bytes(b"not a picture, but at a site that nobody asked for")

    assert list(load_cohorts(settings(site, *LINES, sites=("B",)))) == ["B"]


def test_a_site_that_the_manifest_lacks_is_refused_naming_those_it_has(site):
    with pytest.raises(SettingsError, match="the manifest has only A, B"):
        load_cohorts(settings(site, *LINES, sites=("B", "Z")))


def test_with_one_disease_abnormal_scans_need_not_name_it(site):
    asked = settings(site, "a.png,Ann,abnormal", "b.png,Bob,normal", header="file,patient,label", diseases=("glioma",))

    assert load_cohorts(asked)["A"].diseases.tolist() == [[1], [0]]


def test_without_split_and_site_columns_patients_split_by_name_and_stay_when_others_come(tmp_path):
    (tmp_path / "a.png").touch()
    volumes = [f"v.nii#{n},patient {n // 2},normal" for n in range(4000)]
    (tmp_path / "v.nii").touch()

    def splits(lines: list[str]) -> dict[str, str]:
        (tmp_path / "manifest.csv").write_text("\n".join(["file,patient,label", *lines]), encoding="utf-8-sig")
        rows = read_manifest(tmp_path / "manifest.csv", where=None, diseases=("glioma",))
        assert {row.site for row in rows} == {"A"}
        return {row.patient: row.split for row in rows}

    all_splits = splits(volumes)

    counts = [list(all_splits.values()).count(name) for name in ("train", "val", "test")]
    assert counts == pytest.approx([1400, 300, 300], abs=60)
    assert splits(volumes[:100]).items() <= all_splits.items()


def test_slices_of_one_volume_are_different_scans(site):
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((16, 16, 3)), np.eye(4)), site / "v.nii.gz")
    lines = [f"v.nii.gz#{n},Ann,normal,,A,train,,,1" for n in range(3)]

    cohort = load_cohorts(settings(site, *lines))["A"]

    assert len({image.numpy().tobytes() for image in cohort.images}) == 3
