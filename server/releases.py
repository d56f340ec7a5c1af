"""The releases below a coordinator's home: made in a run's process, handed to sites by the fence's.

The two share the folder alone. A release is a folder named by its serial number, and appears in it whole. Here is what
the fence has of it, which takes no PyTorch; ``publishing`` makes one.
"""

import base64
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response

from fedgan.audit import Audit
from fedgan.errors import ForeignKey, HomeError, ReleaseRefused, RunFolderError
from fedgan.model_files import WEIGHTS
from fedgan.results.release import CARD, SIGNATURE, Place, Release, read_release
from server.fence import Endpoint
from server.home import Home

log = logging.getLogger(__name__)


class Releases:
    """What a federation has released, of which the last few are kept, and the last that was a run's result."""

    def __init__(self, folder: Path, key: Ed25519PublicKey, audit: Audit, *, federation: str, keep: int = 5) -> None:
        """Take the folder, which is made at the first release, and the key by which releases are checked."""
        self._folder = folder
        self._key = key
        self._audit = audit
        self._federation = federation
        self._keep = keep

    def add(self, sign: Callable[[Path, Place], Release], key: Ed25519PublicKey) -> Release:
        """Take what ``sign`` makes of a folder and a place as the next release, and forget what is too old.

        Raises:
            ReleaseRefused: the release before it is damaged, or ``key``, which checks it, is not the federation's.
            As ``sign``, and then those before it stay.
        """
        if key != self._key:
            raise ForeignKey("the key to sign releases with is not this federation's; restore it from the backup")
        before = self.last()
        serial = max(self._serials(), default=0) + 1
        place = Place(federation=self._federation, serial=serial, previous=before.digest if before else None)
        release = sign(self._folder_of(serial), place)
        card = release.card
        self._audit.record("model released", serial=serial, run=card.run, round=card.round, digest=release.digest)
        self._forget()
        return release

    def last(self) -> Release | None:
        """Return the last release, or nothing before the first.

        Raises:
            ReleaseRefused: it is damaged.
        """
        serial = max(self._serials(), default=None)
        return self._read(serial) if serial else None

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """Return what answers sites, by path; the fence says which site asks."""
        return {"/federation/releases/latest": self._send_card, "/federation/releases/{digest}": self._send_weights}

    async def _send_card(self, site: str, request: Request) -> Response:
        """Answer with the last release's card and its signature; with 204 before the first."""
        release = await run_in_threadpool(self._last_sound)
        if release is None:
            return Response(status_code=204)
        card, signature = (release.folder / CARD).read_text(encoding="utf-8"), (release.folder / SIGNATURE).read_bytes()
        return JSONResponse({"card": card, "signature": base64.b64encode(signature).decode()})

    async def _send_weights(self, site: str, request: Request) -> Response:
        """Answer with the weights of that digest, or the range of them that is asked for; with 404 if not kept."""
        release = await run_in_threadpool(self._with_weights, request.path_params["digest"])
        if release is None:
            return JSONResponse({"error": "no such release"}, status_code=404)
        await run_in_threadpool(self._note_sent, site, release.card.serial)
        return _Weights(release.folder / WEIGHTS, media_type="application/octet-stream")

    def _note_sent(self, site: str, serial: int) -> None:
        try:
            self._audit.record("release sent", site=site, serial=serial)
        except RunFolderError as failure:  # the site gets it all the same
            log.error("%s", failure)  # noqa: TRY400 - the message says it all

    def _last_sound(self) -> Release | None:
        return next(iter(self._sound()), None)

    def _with_weights(self, digest: str) -> Release | None:
        return next((release for release in self._sound() if release.card.weights == digest), None)

    def _sound(self) -> list[Release]:
        """Return the releases that can be read, the last first."""
        found = []
        for serial in sorted(self._serials(), reverse=True):
            try:
                found.append(self._read(serial))
            except ReleaseRefused as refusal:
                log.warning("release %d is passed over: %s", serial, refusal)
        return found

    def _forget(self) -> None:
        """Delete all but the last few releases and the last that was a run's result, and what can no longer be read."""
        sound = self._sound()
        chosen = [release for release in sound if release.card.chosen][:1]
        kept = {release.card.serial for release in (*sound[: self._keep], *chosen)}
        for serial in set(self._serials()) - kept:
            shutil.rmtree(self._folder_of(serial))

    def _read(self, serial: int) -> Release:
        return read_release(self._folder_of(serial), self._key)

    def _folder_of(self, serial: int) -> Path:
        return self._folder / f"{serial:06d}"

    def _serials(self) -> list[int]:
        return [int(path.name) for path in self._folder.glob("*") if path.name.isdecimal()]


class _Weights(FileResponse):
    """A large file, of which Starlette's usual 64 KiB at a time would take twice the processor time."""

    chunk_size = 2**20


def releases_in(home: Home) -> Releases:
    """Return the releases of the federation in ``home``.

    Raises:
        HomeError: there is none, or its key is damaged.
    """
    name = home.federation.name
    key = _key_in(home.release_public_key, load_pem_public_key)
    if not isinstance(key, Ed25519PublicKey):
        raise HomeError(f"{home.release_public_key} is no key for releases; restore it from the backup")
    return Releases(home.path / "releases", key, home.audit, federation=name)


def signing_key(home: Home) -> Ed25519PrivateKey:
    """Return the key that signs the releases of the federation in ``home``.

    Raises:
        HomeError: it is missing or damaged.
    """
    key = _key_in(home.release_key, partial(load_pem_private_key, password=None))
    if not isinstance(key, Ed25519PrivateKey):
        raise HomeError(f"{home.release_key} is no key for releases; restore it from the backup")
    return key


def _key_in(path: Path, load: Callable[[bytes], object]) -> object:
    try:
        return load(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise HomeError(f"{path} cannot be read ({error}); restore it from the backup") from error
