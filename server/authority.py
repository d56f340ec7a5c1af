"""What the coordinator decides about sites: invite, receive, approve, revoke; each decision a line of the audit."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from ipaddress import ip_address
from typing import Literal

from cryptography import x509

from fedgan.atomic import make_private, write_atomically
from fedgan.errors import HomeError, InvitationRefused, RequestRefused
from fedgan.identity import (
    Authority,
    Invitation,
    fingerprint,
    new_key,
    new_release_key,
    new_secret,
    private_pem,
    public_pem,
    requested_key,
)
from fedgan.processes import free_port
from server.home import Federation, Home, certificate_pem
from server.registry import Entry, Registry, Roll, State, signed_key

INVITATION_VALID = timedelta(days=14)
RENEW_BEFORE = timedelta(days=60)
"""The server's own certificate is signed anew when it has less than this left."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a site has come, for a person."""

    site: str
    state: State
    until: datetime | None
    """When the certificate, or else the invitation, expires."""


@dataclass(frozen=True, slots=True)
class Admission:
    """What a site takes home when it has been approved."""

    certificate: str
    release_key: str


def found(home: Home, *, name: str, address: str, sites: Sequence[str]) -> dict[str, Invitation]:
    """Make a federation in ``home``, and return an invitation for each site.

    Raises:
        HomeError: there is one already, or the folder cannot be written.
    """
    if (home.path / "federation.json").exists():
        raise HomeError(f"{home.path} holds a federation already; use it, or give another --home")
    federation = Federation(name=name, address=address, listen="", link_port=free_port())
    federation = federation.model_copy(update={"listen": "127.0.0.1" if _is_loopback(federation.host) else "0.0.0.0"})  # noqa: S104 - sites come from outside, to the fence
    try:
        make_private(home.path)
        home.path.chmod(0o700)
    except OSError as error:
        raise HomeError(f"{home.path} cannot be made ({error.strerror}); give another --home") from error
    authority, release_key = Authority.found(name), new_release_key()
    write_atomically(home.path / "authority/ca.key", private_pem(authority.key), secret=True)
    write_atomically(home.authority_certificate, certificate_pem(authority.certificate))
    write_atomically(home.release_key, private_pem(release_key), secret=True)
    write_atomically(home.release_public_key, public_pem(release_key.public_key()))
    _sign_server(home, authority, federation.host)
    home.keep(federation)  # last: without it there is no federation, and init may be run again
    home.audit.record("founded", federation=name, authority=fingerprint(authority.certificate))
    enrolment = Enrolment(home)
    return {site: enrolment.invite(site) for site in sites}


def renew_server(home: Home) -> bool:
    """Give the server another key and certificate if the one that it has expires soon; return whether it did.

    Raises:
        HomeError: the home is damaged or cannot be written.
    """
    try:
        certificate = x509.load_pem_x509_certificate(home.server_certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise HomeError(f"{home.server_certificate} is damaged; restore it from the backup") from error
    due = certificate.not_valid_after_utc - datetime.now(UTC) < RENEW_BEFORE
    if due:
        _sign_server(home, home.authority, home.federation.host)
        home.audit.record("server certificate renewed")
    return due


class Enrolment:
    """The way of sites into the federation and out of it."""

    def __init__(self, home: Home) -> None:
        """Take the federation in ``home``.

        Raises:
            HomeError: there is none.
        """
        self._home, self._federation = home, home.federation
        self.registry = Registry(home.sites)

    def invite(self, site: str) -> Invitation:
        """Return an invitation for ``site``; one that it had before is no longer good.

        Raises:
            HomeError: the home is damaged or cannot be written.
        """
        federation, secret = self._federation, new_secret()
        until = (datetime.now(UTC) + INVITATION_VALID).replace(microsecond=0)
        authority = certificate_pem(self._home.authority.certificate).decode()
        invitation = Invitation(
            federation=federation.name,
            address=federation.address,
            site=site,
            secret=secret,
            authority=authority,
            expires=until,
        )
        news = {"secret": _digest(secret), "invited_until": until, "claimed_by": None, "request": None}
        self.registry.change(
            lambda roll: roll.with_entry((roll.sites.get(site) or Entry(site=site)).model_copy(update=news))
        )
        self._home.audit.record("invited", site=site, until=until.isoformat())
        return invitation

    def receive(self, secret: str, request: bytes) -> str:
        """Keep the request that came with an invitation's ``secret``, and return whose it is.

        The same request may come again: who was cut off asks twice.

        Raises:
            InvitationRefused: no invitation has this secret, or it has expired, or another key came with it before.
            RequestRefused: the request cannot be signed.
        """
        entry = self._invited(secret)
        key = public_pem(requested_key(request, entry.site)).decode()
        if entry.claimed_by == key:
            return entry.site
        if entry.claimed_by:
            raise InvitationRefused(
                f"the invitation of site {entry.site} has been used; ask for another if it was not you"
            )
        if entry.invited_until is None or entry.invited_until < datetime.now(UTC):
            raise InvitationRefused(f"the invitation of site {entry.site} has expired; ask the coordinator for another")

        def claim(roll: Roll) -> Roll:
            now = roll.entry(entry.site)
            if now != entry:
                raise InvitationRefused(f"the invitation of site {entry.site} has just been used; ask for another")
            return roll.with_entry(now.model_copy(update={"claimed_by": key, "request": request.decode()}))

        self.registry.change(claim)
        self._home.audit.record("asked to be signed", site=entry.site)
        return entry.site

    def collect(self, secret: str) -> Admission | None:
        """Return what the site with this ``secret`` takes home, or nothing while it must wait.

        Raises:
            InvitationRefused: no invitation has this secret, or its site was refused.
        """
        entry = self._invited(secret)
        if entry.request:
            return None
        signed = entry.signed
        if signed is None or signed_key(signed) != entry.claimed_by:
            raise InvitationRefused(f"the coordinator has not admitted site {entry.site}; ask for another invitation")
        return Admission(certificate_pem(signed).decode(), self._release_key)

    def approve(self, site: str, seen: str | None) -> x509.Certificate:
        """Sign the request of ``site`` that waits; from then on the new certificate is the only one that counts.

        ``seen`` is the request (PEM) that a person has looked at: no other is signed.

        Raises:
            RequestRefused: the site is not known, or has not asked.
            HomeError: the home is damaged or cannot be written.
        """
        authority = self._home.authority

        def sign(roll: Roll) -> Roll:
            entry = roll.entry(site)
            if not entry.request:
                raise RequestRefused(
                    f"site {site} waits for nothing (it is {entry.state(datetime.now(UTC))}); it must run "
                    f"fed-client --site {site} enrol first"
                )
            if entry.request != seen:
                raise RequestRefused(f"site {site} has just asked with another key; approve it again")
            certificate = certificate_pem(authority.sign_site(entry.request.encode(), site)).decode()
            news = {"certificate": certificate, "request": None, "ended": None}
            roll = roll.without_node(site)
            return roll.with_entry(roll.entry(site).model_copy(update=news))

        certificate = self.registry.change(sign).entry(site).signed
        if certificate is None:
            raise RequestRefused(f"site {site} has just been revoked")
        self._home.audit.record("approved", site=site, certificate=fingerprint(certificate))
        return certificate

    def end(self, site: str, how: Literal["revoked", "left"]) -> None:
        """Take from ``site`` what it had, because it was ``revoked`` or has ``left``.

        Raises:
            RequestRefused: the site is not known.
            HomeError: the home is damaged or cannot be written.
        """

        def take(roll: Roll) -> Roll:
            return roll.without_node(site).with_entry(Entry(site=site, ended=how))

        self.registry.change(take)
        self._home.audit.record(how, site=site)

    def standings(self) -> list[Standing]:
        """Return how far each site has come, by name.

        Raises:
            HomeError: the home is damaged.
        """
        now = datetime.now(UTC)
        entries = sorted(self.registry.roll.sites.values(), key=lambda entry: entry.site)
        return [
            Standing(entry.site, entry.state(now), signed.not_valid_after_utc if signed else entry.invited_until)
            for entry in entries
            for signed in [entry.signed]
        ]

    @cached_property
    def _release_key(self) -> str:
        return self._home.release_public_key.read_text(encoding="ascii")

    def _invited(self, secret: str) -> Entry:
        digest = _digest(secret)
        for entry in self.registry.roll.sites.values():
            if entry.secret == digest:  # of a digest, how long a comparison takes tells nothing
                return entry
        raise InvitationRefused("no invitation like this is known here; ask the coordinator for another")


def _sign_server(home: Home, authority: Authority, host: str) -> None:
    key = new_key()
    certificate = authority.sign_server(key.public_key(), [host])
    write_atomically(home.server_key, private_pem(key), secret=True)
    write_atomically(home.server_certificate, certificate_pem(certificate))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
