"""A release: a model, the card of its lineage, and the federation's signature over both; nothing of it is ever pickled.

model.safetensors   the weights; its header says how to draw maps with them, so that the folder is a model's
model.json          how to draw, once more, for people; not signed
card.json           the lineage, with the SHA-256 of ``model.safetensors``
card.sig            Ed25519 signature of the bytes of ``card.json``

``openssl pkeyutl -verify -pubin -inkey release.pub -rawin -in card.json -sigfile card.sig`` checks the same. How one is
made is in ``releasing``; whoever fetches it, checks it or hands it on has no use for PyTorch.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from fedgan.atomic import write_atomically
from fedgan.errors import ForeignKey, ForeignRelease, OlderRelease, TamperedRelease
from fedgan.model_files import WEIGHTS, digest
from fedgan.results.metrics import SiteContribution, SiteLevel
from fedgan.settings import Name, SiteName

CARD, SIGNATURE = "card.json", "card.sig"

AGAIN = "delete the folder, and a site fetches the release again"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Frozen(BaseModel):
    # What a newer coordinator says besides is signed too, and does no harm.
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, allow_inf_nan=False)


class Lineage(_Frozen):
    """Where a model comes from, as the run that made it knows."""

    run: Name
    rounds: int
    """Of the whole run, if it is not ended earlier."""
    chosen: bool
    """Whether it is the run's result, and not a round on the way."""
    settings: Digest
    """SHA-256 of the run's ``config.yaml``."""
    sites: dict[SiteName, SiteContribution]
    """Each site's part in it: the rounds up to this one."""
    epsilon: dict[SiteName, float | None]
    """Of each site's patients, as its ledger had it: over all its runs, of whatever federation; null without a promise.

    It is told at the site's own delta, and says nothing without.
    """
    delta: dict[SiteName, float] = {}
    """Of each site with an epsilon; absent from cards of before it was told."""
    site_level: SiteLevel | None = None
    """What is promised to each site as a whole; then the card does not tell who took part, nor how any site scored."""
    metrics: dict[str, float]
    """Mean over sites of each validation figure of this model; empty where none has scored it yet."""
    drawing: dict[str, Any]
    """How to draw maps with it; see ``fedgan.results.model_card``."""


class Place(_Frozen):
    """Which release of a federation it is."""

    federation: Annotated[str, Field(min_length=1, max_length=200)]
    serial: Annotated[int, Field(ge=1)]
    """Rises with every release of a federation."""
    previous: Digest | None
    """SHA-256 of the card before this one; null for a federation's first."""


class Card(Lineage, Place):
    """The whole of ``card.json``."""

    schema_version: Literal[1] = 1
    round: int
    date: AwareDatetime
    """UTC."""
    weights: Digest
    """SHA-256 of ``model.safetensors``."""
    num_bytes: Annotated[int, Field(ge=1)]
    """Size of ``model.safetensors``."""
    key: Digest
    """SHA-256 of the public key that checks the signature."""
    versions: dict[str, str]
    """Of the coordinator's packages."""
    code: Digest
    """SHA-256 of the coordinator's fedgan, see ``releasing.source_digest``."""
    data_schema: Digest
    """SHA-256 of what a line of a site's manifest must be, as JSON schema."""


@dataclass(frozen=True, slots=True)
class Release:
    """A release whose signature has been checked."""

    folder: Path
    card: Card
    digest: str
    """SHA-256 of ``card.json``."""


def write_card(folder: Path, content: bytes, signature: bytes) -> None:
    """Write a card and its signature as they are.

    Raises:
        HomeError: the folder cannot be written.
    """
    write_atomically(folder / CARD, content)
    write_atomically(folder / SIGNATURE, signature)


def verify_release(folder: Path, key: Ed25519PublicKey) -> Release:
    """Return the release in ``folder``, whose card and weights are what the owner of ``key`` signed.

    Raises:
        TamperedRelease: a file is missing, or is not what was signed.
        ForeignKey: another key signed it.
    """
    release = read_release(folder, key)
    try:
        found = digest(folder / WEIGHTS)
    except OSError as error:
        raise TamperedRelease(f"{folder} lacks its weights ({error.strerror}); {AGAIN}") from error
    if found != release.card.weights:
        raise TamperedRelease(f"the weights in {folder} are not those that were signed; {AGAIN}")
    return release


def read_release(folder: Path, key: Ed25519PublicKey) -> Release:
    """Return the release in ``folder`` by its signed card alone, without a look at the weights.

    Raises:
        As ``verify_release``.
    """
    try:
        content, signature = (folder / CARD).read_bytes(), (folder / SIGNATURE).read_bytes()
    except OSError as error:
        raise TamperedRelease(f"{folder} lacks its card ({error.strerror}); {AGAIN}") from error
    return Release(folder, open_card(content, signature, key), hashlib.sha256(content).hexdigest())


def open_card(content: bytes, signature: bytes, key: Ed25519PublicKey) -> Card:
    """Return the card that the owner of ``key`` signed.

    Raises:
        TamperedRelease: the card is not what was signed, or not of a kind that this version knows.
        ForeignKey: another key signed it.
    """
    try:
        key.verify(signature, content)
        return Card.model_validate_json(content)
    except InvalidSignature as error:
        if _claimed_key(content) not in (None, fingerprint(key)):
            raise ForeignKey(
                "a release is signed with another key than this federation's; ask the coordinator whether the key "
                "was changed, and enrol again if it was"
            ) from error
        raise TamperedRelease("a release's card is not what was signed; tell the coordinator") from error
    except ValidationError as error:
        raise TamperedRelease(
            "a release's card is signed, and of a kind that is not known here; install the coordinator's version"
        ) from error


def _claimed_key(content: bytes) -> str | None:
    """Return whose key an unsigned card speaks of, for the words of its refusal alone."""
    try:
        return str(json.loads(content)["key"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def check_place(place: Place, digest_of_card: str, *, federation: str, after: Release | None) -> None:
    """Refuse a release that is of another federation, or does not come ``after`` the one that is installed.

    Raises:
        ForeignRelease: it is of another federation.
        OlderRelease: it is older than the one installed, or says that another one was before it.
    """
    if place.federation != federation:
        raise ForeignRelease(f"a release is of another federation than {federation}; tell the coordinator")
    if after is None or digest_of_card == after.digest:
        return
    if place.serial <= after.card.serial:
        raise OlderRelease(
            f"release {place.serial} is not newer than release {after.card.serial}, which is installed; the "
            "coordinator may have lost its last releases and must say which one counts"
        )
    if place.serial == after.card.serial + 1 and place.previous != after.digest:
        raise OlderRelease(
            f"release {place.serial} does not come from release {after.card.serial}, which is installed; the "
            "coordinator must say why"
        )


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the SHA-256 of a public key's 32 bytes, in hex."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()
