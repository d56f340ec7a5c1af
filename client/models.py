"""A site's installed releases: fetched over a link that others secure, trusted by their signature alone.

000007/     a release; the last few are kept
current     a link to the one that ``map`` draws with; changed last, in one step
*.incoming/ what has arrived of the next one, to be gone on with
"""

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import Base64Bytes, BaseModel, ValidationError

from client.home import Home
from fedgan.audit import Audit
from fedgan.errors import HomeError, ModelError, ReleaseRefused, ReleaseUnavailable, TamperedRelease
from fedgan.model_files import WEIGHTS, digest
from fedgan.results.model_card import ModelCard
from fedgan.results.release import Card, Release, check_place, open_card, read_release, verify_release, write_card

LATEST = "/federation/releases/latest"
WEIGHTS_OF = "/federation/releases/{digest}"

PLAIN = {"Accept-Encoding": "identity"}
"""As it is: what is compressed has no size that can be announced."""

MOST_CARD_BYTES = 2**20
"""Many times what the card of a federation of a hundred sites takes."""


class _Signed(BaseModel):
    """What the coordinator answers of its last release."""

    card: str
    signature: Base64Bytes


class Models:
    """The releases that a site has installed."""

    def __init__(self, folder: Path, key: Ed25519PublicKey, *, federation: str, keep: int = 5) -> None:
        """Take the folder, which is made when there is something to install, and the federation's key and name."""
        self._folder = folder
        self._key = key
        self._federation = federation
        self._keep = keep

    def folders(self) -> list[Path]:
        """Return the installed releases' folders, the newest first."""
        return sorted((path for path in self._folder.glob("*") if path.name.isdecimal()), reverse=True)

    def verify(self, folder: Path) -> Release:
        """Return the release in one of ``folders``.

        Raises:
            ReleaseRefused: it is no longer what was installed.
        """
        return verify_release(folder, self._key)

    def current(self) -> Path | None:
        """Return the folder of the release to draw with, or nothing before the first."""
        link = self._folder / "current"
        return link.resolve() if link.is_symlink() else None

    def install(self, link: httpx.Client, audit: Audit, *, most_bytes: int) -> Release | None:
        """Install the coordinator's last release; return it, or nothing if it is installed or there is none yet.

        Whatever goes wrong, the model before stays, and what has arrived is gone on with the next time.

        Args:
            link: to the coordinator, which has proved to be who it is.
            audit: the site's.
            most_bytes: how long its weights may be.

        Raises:
            ReleaseUnavailable: it has not arrived whole, or cannot be written; then what has arrived makes room.
            ReleaseRefused: it is not to be trusted.
            ModelError: it is too long, or this version cannot draw with it.
        """
        signed = _last_card(link)
        if signed is None:
            return None
        content = signed.card.encode()
        try:
            card = open_card(content, signed.signature, self._key)
            _check_length(card, most_bytes)
            release = Release(self._folder / f"{card.serial:06d}", card, hashlib.sha256(content).hexdigest())
            if not self._install(release, content, signed.signature, link):
                return None
        except ModelError as refusal:
            audit.record("model refused", reason=type(refusal).__name__, digest=hashlib.sha256(content).hexdigest())
            raise
        except OSError as error:
            self._give_up_incoming()
            raise ReleaseUnavailable(
                f"a release cannot be written ({error.strerror}); free space on the disk of {self._folder}"
            ) from error
        audit.record("model installed", serial=card.serial, run=card.run, round=card.round, digest=release.digest)
        return release

    def _install(self, release: Release, content: bytes, signature: bytes, link: httpx.Client) -> bool:
        """Fetch what is not here, check it, switch to it, and forget what is too old; return whether it is new."""
        card, before = release.card, next(iter(self._sound()), None)
        check_place(card, release.digest, federation=self._federation, after=before)
        _check_drawing(card)
        if before is None or before.digest != release.digest:
            incoming = self._incoming_for(card)
            _fetch(link, card, incoming)
            write_card(incoming, content, signature)
            shutil.rmtree(release.folder, ignore_errors=True)  # damaged, or it would be the newest
            incoming.rename(release.folder)
        elif self.current() == release.folder.resolve():
            return False
        self._switch_to(release.folder)
        kept = [sound.folder for sound in self._sound()[: self._keep]]
        for folder in self.folders():
            if folder not in kept:  # too old, or of a federation that the site has left
                shutil.rmtree(folder)
        return True

    def _sound(self) -> list[Release]:
        """Return the installed releases whose cards this federation has signed, the newest first."""
        found = []
        for folder in self.folders():
            with suppress(ReleaseRefused):
                found.append(read_release(folder, self._key))
        return found

    def _incoming_for(self, card: Card) -> Path:
        """Return the folder in which the weights of ``card`` arrive; what has arrived of others is given up."""
        folder = self._folder / f"{card.weights}.incoming"
        self._give_up_incoming(but=folder)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _give_up_incoming(self, *, but: Path | None = None) -> None:
        for folder in self._folder.glob("*.incoming"):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)

    def _switch_to(self, folder: Path) -> None:
        partial = self._folder / "current.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(folder.name)
        partial.replace(self._folder / "current")


def open_models(home: Home) -> Models:
    """Return the installed releases of a site.

    Raises:
        HomeError: the site is not enrolled, or without the key by which releases can be checked.
        SettingsError: the site's membership cannot be understood.
    """
    federation = home.membership().federation
    try:
        key = load_pem_public_key(home.release_key.read_bytes())
    except (OSError, ValueError) as error:
        raise HomeError(f"{home.release_key} cannot be read ({error}); enrol again") from error
    if not isinstance(key, Ed25519PublicKey):
        raise HomeError(f"{home.release_key} is no key of a federation; enrol again")
    return Models(home.folder / "models", key, federation=federation)


def _last_card(link: httpx.Client) -> _Signed | None:
    """Return the coordinator's last card, still to be checked, or nothing before its first release.

    Raises:
        ReleaseUnavailable: the coordinator cannot be reached or has no sensible answer.
    """
    content = b""
    try:
        with link.stream("GET", LATEST, headers=PLAIN) as answer:
            if answer.status_code == httpx.codes.NO_CONTENT:
                return None
            _check_status(answer, httpx.codes.OK)
            for part in answer.iter_raw():
                content += part
                if len(content) > MOST_CARD_BYTES:
                    raise ReleaseUnavailable("the coordinator sends a card without end; tell the coordinator")
        return _Signed.model_validate_json(content)
    except ValidationError as error:
        raise ReleaseUnavailable("the coordinator sends no card of a release; tell the coordinator") from error
    except httpx.HTTPError as error:
        raise ReleaseUnavailable(
            f"the coordinator cannot be asked for its last release ({error}); try later"
        ) from error


def _check_length(card: Card, most_bytes: int) -> None:
    if card.num_bytes > most_bytes:
        raise ModelError(
            f"release {card.serial} has {card.num_bytes / 1e6:.0f} MB of weights, and the policy's longest_task allows "
            f"{most_bytes / 1e6:.0f}; allow more, or tell the coordinator"
        )


def _check_drawing(card: Card) -> None:
    try:
        ModelCard.model_validate({**card.drawing, "round": card.round})
    except ValidationError as error:
        raise ModelError(
            f"release {card.serial} is of a kind that is not known here; install the coordinator's version "
            f"({card.versions.get('fedgan')}) of fedgan"
        ) from error


def _fetch(link: httpx.Client, card: Card, folder: Path) -> None:
    """Bring the weights of ``card`` into ``folder``, going on where an earlier attempt ended.

    Raises:
        ReleaseUnavailable: the link broke, or the coordinator does not have them any more.
        TamperedRelease: what came is not what was signed; none of it is kept.
    """
    file = folder / WEIGHTS
    try:
        with file.open("ab") as arriving:
            if arriving.tell() < card.num_bytes:
                _receive(link, card, arriving)
            arriving.flush()
            os.fsync(arriving.fileno())
    except httpx.HTTPError as error:
        raise ReleaseUnavailable(
            f"release {card.serial} has not arrived whole ({error}); the next attempt goes on where it ended"
        ) from error
    if file.stat().st_size != card.num_bytes or digest(file) != card.weights:
        file.unlink()
        raise TamperedRelease(f"the weights of release {card.serial} are not those that were signed")


def _receive(link: httpx.Client, card: Card, arriving: BinaryIO) -> None:
    """Append what is missing, and no more than a part beyond what was announced."""
    have = arriving.tell()
    asked = {**PLAIN, "Range": f"bytes={have}-"}
    with link.stream("GET", WEIGHTS_OF.format(digest=card.weights), headers=asked) as answer:
        _check_status(answer, httpx.codes.OK, httpx.codes.PARTIAL_CONTENT)
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            arriving.truncate(0)  # it is sent all of it
            have = 0
        for part in answer.iter_raw():
            have += arriving.write(part)
            if have > card.num_bytes:
                return


def _check_status(answer: httpx.Response, *expected: int) -> None:
    if answer.status_code not in expected:
        raise ReleaseUnavailable(
            f"the coordinator answers {answer.status_code} when asked for a release; try later, then ask there"
        )
