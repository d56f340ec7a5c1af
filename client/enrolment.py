"""A site's way into a federation: a key made here, an invitation that proves nothing else is needed, and patience.

What is under way lies in the site's folder below ``enrolment/``: who is cut off runs the same command again.
"""

import hashlib
import shutil
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from pydantic import Field, ValidationError

from client.home import Home, Membership
from client.link import dial, no_way_to
from fedgan.atomic import write_atomically
from fedgan.audit import Audit
from fedgan.errors import InvitationRefused, Unreachable
from fedgan.identity import (
    Invitation,
    Key,
    fingerprint,
    key_fingerprint,
    load_key,
    new_key,
    openssh_private,
    openssh_public,
    private_pem,
    public_key_of,
    request_signature,
    same_fingerprint,
    site_of,
)
from fedgan.settings.types import Frozen

TIMEOUT_S = 20.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
"""Between two questions whether the coordinator has approved."""

LONGEST_REASON = 200

BUSY = frozenset({429, 502, 503, 504})
"""Statuses that a later question may not meet again."""


class Admission(Frozen):
    """What the coordinator gives to a site that it has approved (PEM)."""

    certificate: str = Field(max_length=8192)
    release_key: str = Field(max_length=1024)


@dataclass(frozen=True, slots=True)
class Coordinator:
    """Who invited, at the other end of TLS that trusts the invitation's authority alone."""

    invitation: Invitation
    client: httpx.Client

    def ask(self, key: Key) -> None:
        """Ask to be signed; asking again with the same key is no harm.

        Raises:
            InvitationRefused: the coordinator does not take the invitation.
            Unreachable: there is no coordinator, or another.
        """
        request = request_signature(key, self.invitation.site).decode()
        content = {"secret": self.invitation.secret, "request": request}
        self._said(self._send("POST", "/federation/enrolment", json=content))

    def collect(self) -> Admission | None:
        """Return what the coordinator has signed, or nothing while it has not.

        Raises:
            As ``ask``.
        """
        secret = {"Authorization": f"Bearer {self.invitation.secret}"}
        response = self._said(self._send("GET", "/federation/certificate", headers=secret))
        try:
            return None if response.status_code == 202 else Admission.model_validate_json(response.content)
        except ValidationError as error:
            raise Unreachable(f"{self.invitation.address} answers as no coordinator does; check the address") from error

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:  # noqa: ANN401 - as httpx takes it
        try:
            return self.client.request(method, path, **content)
        except httpx.TransportError as fault:
            whose = " who answers is not the coordinator of this invitation;" if "CERTIFICATE" in str(fault) else ""
            raise no_way_to(self.invitation.address, fault, whose) from fault

    def _said(self, response: httpx.Response) -> httpx.Response:
        if response.is_success:
            return response
        if response.status_code in BUSY:
            raise Unreachable(f"{self.invitation.address} is busy ({response.status_code}); try again in a minute")
        raise InvitationRefused(f"the coordinator says: {_reason(response)}")


def enrol(
    home: Home,
    invited: str,
    *,
    expected: str | None,
    proxy_authority: Path | None,
    say: Callable[[str], None],
    until: threading.Event,
) -> bool:
    """Make the site's key, have it signed, and return True; False if the event came before the coordinator's approval.

    ``invited`` is an invitation, ``expected`` the authority's fingerprint as the coordinator has told it.

    Raises:
        InvitationRefused: the invitation is damaged, expired, used, or another site's, or the fingerprint differs.
        Unreachable: there is no coordinator, or another, when asked the first time.
        HomeError: the site's folder cannot be written.
    """
    invitation = _checked(home, invited, expected, say)
    key = _key_for(home, invitation)
    say(f"the key's SHA-256, which the coordinator must see too: {key_fingerprint(key.public_key())}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=invitation.authority)
    with dial(invitation.address, context, proxy_authority, timeout_s=TIMEOUT_S) as client:
        coordinator = Coordinator(invitation, client)
        coordinator.ask(key)
        admission = _wait(coordinator, say, until)
    if admission is None:
        return False
    _keep(home, invitation, key, admission)
    Audit(home.audit).record("enrolled", federation=invitation.federation)
    say(f"enrolled in {invitation.federation}")
    return True


def _checked(home: Home, invited: str, expected: str | None, say: Callable[[str], None]) -> Invitation:
    invitation = Invitation.decode(invited)
    if invitation.site != home.site:
        raise InvitationRefused(f"the invitation is that of site {invitation.site}, not of site {home.site}")
    if not _pending(home, invitation):
        invitation.check_good()
    found = fingerprint(x509.load_pem_x509_certificate(invitation.authority.encode()))
    if expected is not None and not same_fingerprint(found, expected):
        raise InvitationRefused(
            f"the invitation's authority has the SHA-256 {found}, not the expected one; do not use it, and tell the "
            "coordinator"
        )
    say(f"the authority's SHA-256: {found}")
    if expected is None:
        say("compare it with what the coordinator tells you by another way than the invitation came")
    return invitation


def _pending(home: Home, invitation: Invitation) -> bool:
    """Return whether this invitation's enrolment has been begun here."""
    mark = home.folder / "enrolment/invitation"
    return mark.is_file() and mark.read_text(encoding="ascii") == _mark(invitation)


def _mark(invitation: Invitation) -> str:
    return hashlib.sha256(invitation.secret.encode()).hexdigest()


def _key_for(home: Home, invitation: Invitation) -> Key:
    """Return the key made for this invitation, made now if there is none."""
    file = home.folder / "enrolment/site.key"
    if _pending(home, invitation):
        return load_key(file.read_bytes())
    key = new_key()
    (home.folder / "enrolment/invitation").unlink(missing_ok=True)  # that of another invitation
    write_atomically(file, private_pem(key), secret=True)
    write_atomically(home.folder / "enrolment/invitation", _mark(invitation))  # last: now there is a key for it
    return key


def _wait(coordinator: Coordinator, say: Callable[[str], None], until: threading.Event) -> Admission | None:
    """Ask until the coordinator has approved, through every outage of it, or until the event."""
    pause_s, told = FIRST_PAUSE_S, ""
    while not until.is_set():
        try:
            if admission := coordinator.collect():
                return admission
            news = f"waiting for the coordinator to approve site {coordinator.invitation.site}"
        except Unreachable as fault:
            news = str(fault)
        if news != told:
            say(news)
            told = news
        until.wait(pause_s)
        pause_s = min(1.5 * pause_s, LONGEST_PAUSE_S)
    return None


def _keep(home: Home, invitation: Invitation, key: Key, admission: Admission) -> None:
    """Check what was signed, and put it with the key in place of what was there before.

    Raises:
        Unreachable: what was signed is not for this key and site, or not by the invitation's authority.
        HomeError: the folder cannot be written.
    """
    certificate = x509.load_pem_x509_certificate(admission.certificate.encode())
    try:
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(invitation.authority.encode()))
    except (ValueError, TypeError, InvalidSignature) as error:
        raise Unreachable(
            "the certificate is not signed by the invitation's authority; tell the coordinator"
        ) from error
    if site_of(certificate) != home.site or public_key_of(certificate) != key.public_key():
        raise Unreachable("the certificate is not for this site's key; tell the coordinator")
    fresh, keys, old = (home.folder / name for name in ("keys.new", "keys", "keys.old"))
    for name, content, secret in (
        ("site.key", private_pem(key), True),
        ("site.ssh", openssh_private(key), True),
        ("site.pub", openssh_public(key.public_key()), False),
        ("site.crt", admission.certificate.encode(), False),
        ("ca.crt", invitation.authority.encode(), False),
        ("release.pub", admission.release_key.encode(), False),
    ):
        write_atomically(fresh / name, content, secret=secret)
    shutil.rmtree(old, ignore_errors=True)
    if keys.exists():
        keys.rename(old)
    fresh.rename(keys)  # a crash before this line is mended by enrolling again: enrolment/ is still there
    membership = Membership(site=home.site, federation=invitation.federation, address=invitation.address)
    write_atomically(home.folder / "site.json", membership.model_dump_json(indent=2) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(home.folder / "enrolment")


def _reason(response: httpx.Response) -> str:
    """Return why the coordinator refuses, in its words, made fit for a terminal."""
    try:
        said = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        said = f"status {response.status_code}"
    return "".join(letter for letter in said[:LONGEST_REASON] if letter.isprintable())
