"""A release is what the federation signed, whole and in its place, or it is refused by name."""

import json

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedgan.assembly import networks_for
from fedgan.checkpoint import load_model
from fedgan.errors import (
    ForeignKey,
    ForeignRelease,
    HomeError,
    OlderRelease,
    RunFolderError,
    TamperedRelease,
)
from fedgan.federated.site import weights_of
from fedgan.mapping import Mapper
from fedgan.model_files import WEIGHTS, digest
from fedgan.records import Contribution, GlobalModel, ScanCounts, SiteFailure, SiteUpdate
from fedgan.results.metrics import SiteContribution
from fedgan.results.release import (
    CARD,
    SIGNATURE,
    Lineage,
    Place,
    check_place,
    verify_release,
)
from fedgan.results.releasing import lineage_of, sign_release
from fedgan.simulation import open_folder

KEY = Ed25519PrivateKey.generate()
MODEL = GlobalModel(2, {"w": torch.arange(6.0)})
PART = SiteContribution(trained=2, failed={}, shares={"generator": 1.0}, planned_shares={"generator": 1.0})
LINEAGE = Lineage(
    run="first",
    rounds=3,
    chosen=False,
    settings="0" * 64,
    sites={"A": PART},
    epsilon={"A": None},
    metrics={"pixel_ap": 0.5},
    drawing={"size": 32},
)
FIRST = Place(federation="demo", serial=1, previous=None)


def signed(folder, *, place=FIRST, key=KEY, lineage=LINEAGE):
    return sign_release(folder, MODEL, lineage, place, key)


def test_a_release_comes_back_as_it_was_signed(tmp_path):
    release = signed(tmp_path / "000001")

    assert verify_release(tmp_path / "000001", KEY.public_key()) == release
    assert (release.card.round, release.card.run, release.card.sites) == (2, "first", {"A": PART})
    assert release.card.weights == digest(tmp_path / "000001" / WEIGHTS)
    assert release.digest == digest(tmp_path / "000001" / CARD)


def test_a_release_is_a_model(tiny, tmp_path):
    settings = tiny()
    networks = networks_for(settings)
    lineage = LINEAGE.model_copy(update={"drawing": dict(open_folder(settings, tmp_path / "run").card)})
    sign_release(tmp_path / "000001", GlobalModel(2, weights_of(networks)), lineage, FIRST, KEY)

    mapper = Mapper(tmp_path / "000001", device=torch.device("cpu"))

    weights, _ = load_model(tmp_path / "000001")
    assert mapper.card.round == 2
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(networks).items())


@pytest.mark.parametrize("name", [WEIGHTS, CARD, SIGNATURE])
@pytest.mark.parametrize("place", [0, -1])
def test_a_changed_byte_is_refused_wherever_it_is(tmp_path, name, place):
    file = signed(tmp_path / "000001").folder / name
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)

    with pytest.raises(TamperedRelease):
        verify_release(tmp_path / "000001", KEY.public_key())


@pytest.mark.parametrize("name", [WEIGHTS, CARD, SIGNATURE])
def test_a_file_that_is_missing_is_refused(tmp_path, name):
    (signed(tmp_path / "000001").folder / name).unlink()

    with pytest.raises(TamperedRelease, match="lacks its"):
        verify_release(tmp_path / "000001", KEY.public_key())


def test_another_ones_signature_is_refused_as_such(tmp_path):
    signed(tmp_path / "000001", key=Ed25519PrivateKey.generate())

    with pytest.raises(ForeignKey, match="another key than this federation's"):
        verify_release(tmp_path / "000001", KEY.public_key())


def test_who_claims_the_federations_key_without_having_it_is_refused(tmp_path):
    card = signed(tmp_path / "000001", key=Ed25519PrivateKey.generate()).folder / CARD
    claimed = signed(tmp_path / "000002").card.key
    card.write_text(json.dumps({**json.loads(card.read_text()), "key": claimed}))

    with pytest.raises(TamperedRelease, match="not what was signed"):
        verify_release(tmp_path / "000001", KEY.public_key())


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_card_is_refused_signed_or_not(tmp_path, content):
    folder = signed(tmp_path / "000001").folder
    (folder / CARD).write_bytes(content)

    with pytest.raises(TamperedRelease):
        verify_release(folder, KEY.public_key())
    (folder / SIGNATURE).write_bytes(KEY.sign(content))
    with pytest.raises(TamperedRelease, match="of a kind that is not known here"):
        verify_release(folder, KEY.public_key())


def test_what_a_newer_coordinator_says_besides_is_no_reason_to_refuse(tmp_path):
    folder = signed(tmp_path / "000001").folder
    content = json.dumps({**json.loads((folder / CARD).read_text()), "licence": "any"}).encode()
    (folder / CARD).write_bytes(content)
    (folder / SIGNATURE).write_bytes(KEY.sign(content))

    assert verify_release(folder, KEY.public_key()).card.round == 2


def test_the_next_release_and_any_later_one_may_follow(tmp_path):
    first = signed(tmp_path / "000001")

    check_place(FIRST, first.digest, federation="demo", after=None)
    check_place(FIRST, first.digest, federation="demo", after=first)
    check_place(Place(federation="demo", serial=2, previous=first.digest), "1" * 64, federation="demo", after=first)
    check_place(Place(federation="demo", serial=9, previous="2" * 64), "1" * 64, federation="demo", after=first)


@pytest.mark.parametrize(
    ("place", "refusal"),
    [
        (Place(federation="other", serial=3, previous=None), ForeignRelease),
        (Place(federation="demo", serial=1, previous=None), OlderRelease),
        (Place(federation="demo", serial=2, previous=None), OlderRelease),
        (Place(federation="demo", serial=3, previous="3" * 64), OlderRelease),
    ],
    ids=["of another federation", "older", "another of the same number", "of another line"],
)
def test_a_release_out_of_place_is_refused(tmp_path, place, refusal):
    second = signed(tmp_path / "000002", place=Place(federation="demo", serial=2, previous="0" * 64))

    with pytest.raises(refusal):
        check_place(place, "1" * 64, federation="demo", after=second)


def test_a_release_that_cannot_be_written_leaves_nothing(tmp_path, full_disk):
    with full_disk(), pytest.raises((RunFolderError, HomeError)):
        sign_release(tmp_path / "000001", GlobalModel(2, {"w": torch.zeros(1000)}), LINEAGE, FIRST, KEY)

    assert list(tmp_path.iterdir()) == []


def test_a_release_never_takes_the_place_of_another(tmp_path):
    before = signed(tmp_path / "000001")

    with pytest.raises(RunFolderError, match="release 1 cannot be written"):
        signed(tmp_path / "000001", lineage=LINEAGE.model_copy(update={"run": "second"}))

    assert verify_release(tmp_path / "000001", KEY.public_key()) == before


def test_lineage_is_that_of_the_rounds_up_to_the_one_released(tiny, tmp_path):
    folder = open_folder(tiny(), tmp_path / "first")
    folder.write("config.yaml", "seed: 0\n")
    for number in (1, 2):
        scored = {"validation/pixel_ap": number / 4, "privacy/epsilon": 3.5, "privacy/delta": 1e-5}
        answers = [
            SiteUpdate("A", number - 1, "0" * 64, {}, ScanCounts(), scored),
            SiteFailure("B", number - 1, "NoAnswer"),
        ]
        folder.keep(GlobalModel(number, MODEL.weights), answers, Contribution({"A": {"generator": 1.0}}, {}))

    lineage = lineage_of(folder, 1, rounds=2, chosen=True, threshold=0.25)

    assert (lineage.run, lineage.rounds, lineage.chosen) == ("first", 2, True)
    assert lineage.settings == digest(tmp_path / "first" / "config.yaml")
    assert (lineage.sites["A"].trained, lineage.sites["A"].shares) == (1, {"generator": 1.0})
    assert lineage.sites["B"].failed == {"NoAnswer": 1}
    assert (lineage.epsilon, lineage.delta) == ({"A": 3.5, "B": None}, {"A": 1e-5})
    assert lineage.metrics == {"pixel_ap": 0.5}  # scored when the round after it was trained
    assert (lineage.drawing["size"], lineage.drawing["threshold"]) == (32, 0.25)
