"""Which sites there are and what each may do: one file, read by the fence at every request, changed under a lock."""

import fcntl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import AwareDatetime, ValidationError

from fedgan.atomic import write_atomically
from fedgan.errors import HomeError, RequestRefused
from fedgan.identity import public_key_of, public_pem, requested_key
from fedgan.settings.types import Frozen, SiteName

State = Literal["invited", "waiting", "approved", "revoked", "left", "expired"]


class Entry(Frozen):
    """One site."""

    site: SiteName
    invited_until: AwareDatetime | None = None
    secret: str | None = None
    """SHA-256 of the invitation's secret."""
    claimed_by: str | None = None
    """The public key (PEM) that came with the secret first, and so the only one that may come with it again."""
    request: str | None = None
    """What waits to be signed (PEM)."""
    certificate: str | None = None
    """What was signed last and is not revoked (PEM)."""
    ended: Literal["revoked", "left"] | None = None
    node: int | None = None
    """Flower's number for the key of ``certificate``, once Flower has registered it."""

    def state(self, now: datetime) -> State:
        """Return how far the site has come."""
        if self.request:
            return "waiting"
        if signed := self.signed:
            return "approved" if signed.not_valid_after_utc > now else "expired"
        if self.invited_until and self.invited_until > now:
            return "invited"
        return self.ended or "expired"

    @property
    def signed(self) -> x509.Certificate | None:
        """Return the certificate."""
        return x509.load_pem_x509_certificate(self.certificate.encode()) if self.certificate else None

    @property
    def key(self) -> str | None:
        """Return the public key (PEM) that waits to be signed, or else that is."""
        if self.request:
            return public_pem(requested_key(self.request.encode(), self.site)).decode()
        signed = self.signed
        return signed_key(signed) if signed else None


class Roll(Frozen):
    """All sites, and what Flower must still be told to forget."""

    sites: Mapping[SiteName, Entry] = {}
    retired: tuple[int, ...] = ()
    """Nodes whose keys may no longer be used."""

    def entry(self, site: str) -> Entry:
        """Return what is known of ``site``.

        Raises:
            RequestRefused: nothing is.
        """
        if site not in self.sites:
            known = ", ".join(self.sites) or "none yet"
            raise RequestRefused(f"site {site} is not known here (known: {known}); invite it with fed-server invite")
        return self.sites[site]

    def with_entry(self, entry: Entry) -> "Roll":
        """Return the roll with one site as in ``entry``."""
        return self.model_copy(update={"sites": {**self.sites, entry.site: entry}})

    def without_node(self, site: str) -> "Roll":
        """Return the roll with the node of ``site``, if it has one, retired."""
        entry = self.entry(site)
        if entry.node is None:
            return self
        roll = self.with_entry(entry.model_copy(update={"node": None}))
        return roll.model_copy(update={"retired": (*self.retired, entry.node)})


@dataclass(frozen=True, slots=True)
class Member:
    """A site that may take part, as the fence knows it."""

    site: str
    key: str
    until: datetime
    node: int | None


class Registry:
    """The file of the roll, for any number of processes."""

    def __init__(self, path: Path) -> None:
        """Take the file at ``path``, which need not be there yet."""
        self._path = path
        self._seen: tuple[int, ...] = ()
        self._roll = Roll()
        self._members: Mapping[bytes, Member] = {}

    @property
    def roll(self) -> Roll:
        """Return what the file says now.

        Raises:
            HomeError: the file is damaged.
        """
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen != self._seen:
                self._roll = Roll.model_validate_json(self._path.read_bytes())
                self._members = _members(self._roll)
                self._seen = seen
        except FileNotFoundError:
            return Roll()
        except (OSError, ValidationError) as error:
            raise HomeError(f"{self._path} is damaged; restore it from the backup") from error
        return self._roll

    def member(self, certificate: bytes) -> Member | None:
        """Return whose ``certificate`` (DER) is, if it is the one that its site may use now.

        Raises:
            HomeError: the file is damaged.
        """
        _ = self.roll
        member = self._members.get(certificate)
        return member if member and member.until > datetime.now(UTC) else None

    def change(self, step: Callable[[Roll], Roll]) -> Roll:
        """Replace the roll by what ``step`` makes of it, one process at a time, and return it.

        Raises:
            HomeError: the file is damaged or cannot be written.
            As ``step``, which then has changed nothing.
        """
        try:
            lock = self._path.with_suffix(".lock").open("w")
        except OSError as error:
            raise HomeError(f"{self._path.parent} cannot be written ({error.strerror}); check who owns it") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
            before = self.roll
            after = step(before)
            if after != before:
                write_atomically(self._path, after.model_dump_json(indent=2) + "\n", secret=True)
            return after


def signed_key(certificate: x509.Certificate) -> str:
    """Return the public key (PEM) of a site's certificate."""
    return public_pem(public_key_of(certificate)).decode()


def _members(roll: Roll) -> Mapping[bytes, Member]:
    return {
        signed.public_bytes(serialization.Encoding.DER): Member(
            entry.site, signed_key(signed), signed.not_valid_after_utc, entry.node
        )
        for entry in roll.sites.values()
        if (signed := entry.signed)
    }
