"""A model's folder and a picture become a finding, with a model whose map is known beforehand."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from fedgan.assembly import networks_for
from fedgan.checkpoint import load_model, save_model
from fedgan.cohort.images import prepare
from fedgan.errors import ModelError
from fedgan.federated.site import weights_of
from fedgan.gan.disease_map import Drawing, draw_maps
from fedgan.mapping import Mapper
from fedgan.records import GlobalModel
from fedgan.simulation import open_folder

CPU = torch.device("cpu")
PIXELS = np.arange(40 * 20, dtype=np.int16).reshape(40, 20)
"""40 voxels to the right and 20 to the front: as a picture, 20 high and 40 wide."""


@pytest.fixture
def release(tiny, tmp_path):
    """Leave a model behind as a run does; with ``bias``, its difference is tanh(bias) at each pixel of every 2 x 2."""

    def leave(*, bias=None, **card):
        settings = tiny("model=taggan", "model.map_smoothing=0", "data.diseases=[diffuse,nodular]")
        networks = networks_for(settings)
        if bias is not None:
            out = networks.forward_average.out
            with torch.no_grad():
                out.weight.zero_()
                out.bias.copy_(torch.tensor(bias))
        open_folder(settings, tmp_path / "run").release(GlobalModel(3, weights_of(networks)), **card)
        return tmp_path / "run" / "model"

    return leave


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(PIXELS.astype(np.uint16)).save(tmp_path / "scan.png")
    return tmp_path / "scan.png"


def save_slices(path, *, width_mm, height_mm, slices=1):
    voxels = np.repeat(PIXELS[..., None], slices, axis=2)
    nib.save(nib.Nifti1Image(voxels, np.diag([width_mm, height_mm, 5.0, 1.0])), path)
    return path


def test_the_area_is_that_of_the_pixels_at_or_above_the_threshold_in_the_files_own_millimetres(release, tmp_path):
    scan = save_slices(tmp_path / "scan.nii.gz", width_mm=2.0, height_mm=3.0)
    mapper = Mapper(release(bias=[1.0, 0.0, 0.0, 0.0], threshold=0.9), device=CPU)

    finding = mapper.read(scan)

    # A quarter of the pixels differ by tanh(1), the others by nothing; padded to a square the scan is 80 x 120 mm.
    strong = 1 - np.exp(-np.tanh(1) / 0.25)
    assert float(finding.evidence.max()) == pytest.approx(strong)
    assert finding.score == pytest.approx(strong / 4)
    assert finding.area_mm2 == pytest.approx(80 * 120 / 4)


def test_evidence_below_the_threshold_has_no_area(release, tmp_path):
    scan = save_slices(tmp_path / "scan.nii", width_mm=2.0, height_mm=3.0, slices=4)

    finding = Mapper(release(bias=[1.0] * 4, threshold=0.99), device=CPU).read(scan.with_name("scan.nii#2"))

    assert finding.area_mm2 == 0


def test_a_pixel_whose_evidence_is_the_threshold_is_found(release, tmp_path):
    scan = save_slices(tmp_path / "scan.nii", width_mm=1.0, height_mm=1.0)
    highest = float(Mapper(release(), device=CPU).read(scan).evidence.max())

    finding = Mapper(release(threshold=highest), device=CPU).read(scan)

    assert finding.area_mm2 == pytest.approx((40 / 32) ** 2)


def test_an_area_needs_a_threshold_and_a_pixel_spacing(release, picture, tmp_path):
    scan = save_slices(tmp_path / "scan.nii", width_mm=2.0, height_mm=3.0)

    without_spacing = Mapper(release(threshold=0.5), device=CPU).read(picture)
    without_threshold = Mapper(release(threshold=None), device=CPU).read(scan)

    assert without_spacing.area_mm2 is None
    assert without_threshold.area_mm2 is None


def test_a_scan_is_prepared_as_the_models_scans_were(release, picture):
    mapper = Mapper(release(intensity="tissue_median"), device=CPU)

    finding = mapper.read(picture)

    assert np.array_equal(finding.scan.numpy(), prepare(PIXELS.astype(np.float32), size=32, intensity="tissue_median"))
    assert finding.normal.shape == finding.evidence.shape == (32, 32)


@pytest.mark.parametrize(("disease", "asked"), [("diffuse", [1, 0]), ("nodular", [0, 1]), (None, [1, 1])])
def test_a_map_shows_the_disease_that_is_asked_for_and_else_all_of_the_models(release, picture, tiny, disease, asked):
    finding = Mapper(release(), device=CPU).read(picture, disease=disease)

    maps = draw_maps(
        networks_for(tiny("model=taggan")),
        finding.scan[None, None],
        torch.tensor([asked], dtype=torch.float32),
        drawing=Drawing(smoothing=0),
    )
    assert torch.equal(finding.evidence, maps.evidence[0])


def test_a_disease_that_the_model_does_not_know_is_refused_with_those_that_it_knows(release, picture):
    mapper = Mapper(release(), device=CPU)

    with pytest.raises(ModelError, match="the model knows diffuse, nodular, not measles"):
        mapper.read(picture, disease="measles")


@pytest.mark.parametrize(("score", "place"), [(0.01, 0.0), (0.4, 0.5), (0.6, 1.0)])
def test_a_score_has_its_place_among_those_of_normal_scans(release, picture, score, place):
    evidence = 1 - np.exp(-np.tanh(1) / 0.25)
    table = [value - score + evidence for value in (0.3, 0.4, 0.5)]
    folder = release(bias=[1.0] * 4, normal_scores=[min(value, 1.0) for value in table])

    finding = Mapper(folder, device=CPU).read(picture)

    assert finding.score == pytest.approx(evidence)
    assert finding.place == pytest.approx(place, abs=1e-5)


def test_a_place_needs_a_table_and_a_map_of_every_disease_as_the_normal_scans_had(release, picture):
    without_table = Mapper(release(), device=CPU).read(picture)
    mapper = Mapper(release(normal_scores=[0.0, 1.0]), device=CPU)

    assert without_table.place is None
    assert mapper.read(picture, disease="nodular").place is None
    assert mapper.read(picture).place is not None


@pytest.mark.parametrize("content", [None, b"", b"no picture"])
def test_a_picture_that_cannot_be_read_is_a_value_error(release, tmp_path, content):
    if content is not None:
        (tmp_path / "scan.png").write_bytes(content)

    with pytest.raises(ValueError, match=r"no such file|cannot be decoded"):
        Mapper(release(), device=CPU).read(tmp_path / "scan.png")


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no model"):
        Mapper(tmp_path, device=CPU)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model", {"kind": "diffusion"}), ("diseases", "diffuse"), ("size", 48), ("intensity", None), ("threshold", "x")]
    + [("normal_scores", table) for table in ([0.5], [0.5, 0.4], [0.5, 1.5], ["x", "y"])],
)
def test_a_card_of_another_kind_is_refused(release, key, value):
    folder = release()
    weights, card = load_model(folder)
    save_model(folder, GlobalModel(3, weights), card | {key: value})

    with pytest.raises(ModelError, match="is not of this version's kind"):
        Mapper(folder, device=CPU)


def test_weights_that_do_not_fit_their_card_are_refused(release):
    folder = release(diseases=["diffuse"])

    with pytest.raises(ModelError, match="do not fit"):
        Mapper(folder, device=CPU)
