"""Who is who in a federation: a key per site, the authority that signs it, and the invitation that begins it.

A site's key (EC P-384, the curve that Flower wants) is made at the site and never leaves it. It proves the site twice:
as the key of its certificate in mutual TLS, and as the key of its SuperNode. Certificates are X.509 (RFC 5280).
"""

import base64
import binascii
import ipaddress
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from pydantic import AwareDatetime, Field, ValidationError

from fedgan.errors import InvitationRefused, RequestRefused
from fedgan.settings.types import Frozen, SiteName

AUTHORITY_VALID = timedelta(days=3652)
CERTIFICATE_VALID = timedelta(days=365)
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid a little before they are signed: no two clocks agree."""

SECRET_BYTES = 32
PEM = serialization.Encoding.PEM
LONGEST_INVITATION = 16 * 1024

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


def new_key() -> Key:
    """Return a new key, of a site, a server or an authority."""
    return ec.generate_private_key(ec.SECP384R1())


def load_key(pem: bytes) -> Key:
    """Return the key that ``private_pem`` wrote.

    Raises:
        RequestRefused: it is no such key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise RequestRefused("a key file is damaged; restore it from the backup, or enrol anew") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise RequestRefused("a key file holds a key of another kind; restore it from the backup, or enrol anew")
    return key


def private_pem(key: Key | ed25519.Ed25519PrivateKey) -> bytes:
    """Return a private key as PEM; its file's mode is what protects it."""
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key: PublicKey | ed25519.Ed25519PublicKey) -> bytes:
    """Return a public key as PEM: for an EC key, what Flower calls its bytes and writes in a request's header."""
    return key.public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def openssh_private(key: Key) -> bytes:
    """Return a key as SuperNode reads it."""
    return key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())


def openssh_public(key: PublicKey) -> bytes:
    """Return a public key as ``flwr supernode register`` reads it."""
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH) + b"\n"


def new_release_key() -> ed25519.Ed25519PrivateKey:
    """Return a new key to sign releases with."""
    return ed25519.Ed25519PrivateKey.generate()


def key_fingerprint(key: PublicKey) -> str:
    """Return the SHA-256 of a public key, for two people to compare over the telephone."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))
    return digest.finalize().hex(":")


def fingerprint(certificate: x509.Certificate) -> str:
    """Return the SHA-256 of a certificate, likewise."""
    return certificate.fingerprint(hashes.SHA256()).hex(":")


def same_fingerprint(one: str, other: str) -> bool:
    """Return whether two people mean the same, with or without colons, in capitals or not.

    >>> same_fingerprint("AB:0c", " ab0C ")
    True
    """
    return one.replace(":", "").strip().lower() == other.replace(":", "").strip().lower()


def request_signature(key: Key, site: str) -> bytes:
    """Return a site's request to be signed (PKCS #10, PEM), which proves that it has the key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key, hashes.SHA384()).public_bytes(PEM)


def requested_key(request: bytes, site: str) -> PublicKey:
    """Return the key of the request of ``site``; nothing else in it counts.

    Raises:
        RequestRefused: it is damaged, for another name, not signed by its own key, or its key is of another kind.
    """
    try:
        asked = x509.load_pem_x509_csr(request)
        valid, key = asked.is_signature_valid, asked.public_key()
    except (ValueError, InvalidSignature) as error:
        raise RequestRefused(f"site {site}: the request is damaged; the site must enrol again") from error
    if [name.value for name in asked.subject] != [site]:
        raise RequestRefused(f"site {site}: the request is for another name; the site must use its own invitation")
    if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise RequestRefused(f"site {site}: the request proves no EC P-384 key; the site must enrol again")
    return key


def site_of(certificate: x509.Certificate) -> str:
    """Return whose a site's certificate is."""
    return str(certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def public_key_of(certificate: x509.Certificate) -> PublicKey:
    """Return the key that a certificate of ours is for.

    Raises:
        RequestRefused: its key is of another kind.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RequestRefused("a certificate is for a key of another kind; invite the site anew")
    return key


@dataclass(frozen=True, slots=True)
class Authority:
    """The federation's own certificate authority: what it signs is a site, or the coordinator's server."""

    key: Key
    certificate: x509.Certificate

    @classmethod
    def found(cls, federation: str) -> "Authority":
        """Make the authority of a new federation."""
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{federation} authority")])
        builder = _builder(name, name, key.public_key(), AUTHORITY_VALID)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        return cls(key, builder.sign(key, hashes.SHA384()))

    def sign_server(self, key: PublicKey, names: Sequence[str]) -> x509.Certificate:
        """Sign the coordinator's server key for ``names`` (hosts and addresses), and for this machine's loopback.

        Flower's own processes dial the loopback and silently do nothing if the certificate lacks it.
        """
        known = dict.fromkeys([*names, "localhost", "127.0.0.1", "::1"])
        alternatives = x509.SubjectAlternativeName([_alternative(name) for name in known])
        return self._sign(key, names[0], ExtendedKeyUsageOID.SERVER_AUTH, alternatives)

    def sign_site(self, request: bytes, site: str) -> x509.Certificate:
        """Sign the request of ``site``.

        Raises:
            RequestRefused: as ``requested_key``.
        """
        alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"urn:fedgan:site:{site}")])
        return self._sign(requested_key(request, site), site, ExtendedKeyUsageOID.CLIENT_AUTH, alternatives)

    def _sign(
        self, key: PublicKey, name: str, purpose: x509.ObjectIdentifier, alternatives: x509.SubjectAlternativeName
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self.certificate.subject, key, CERTIFICATE_VALID)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        for extension in (issuer, x509.ExtendedKeyUsage([purpose]), alternatives):
            builder = builder.add_extension(extension, critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        return builder.add_extension(_usage(), critical=True).sign(self.key, hashes.SHA384())


class Invitation(Frozen):
    """What a coordinator hands to a site, once, over a way that they trust: a letter, an encrypted mail."""

    federation: str = Field(min_length=1, max_length=64)
    address: str = Field(pattern=r"^[A-Za-z0-9.:\[\]-]{1,255}:[0-9]{1,5}$")
    site: SiteName
    secret: str = Field(min_length=40, max_length=64)
    authority: str = Field(max_length=8192)
    """The authority's certificate (PEM): whom the site trusts from the first byte."""
    expires: AwareDatetime

    def encode(self) -> str:
        """Return the invitation as one line of text."""
        return base64.urlsafe_b64encode(self.model_dump_json().encode()).decode()

    @classmethod
    def decode(cls, text: str) -> "Invitation":
        """Return the invitation that ``encode`` wrote.

        Raises:
            InvitationRefused: it is damaged.
        """
        try:
            content = base64.b64decode("".join(text[:LONGEST_INVITATION].split()), b"-_", validate=True)
            invitation = cls.model_validate_json(content)
            x509.load_pem_x509_certificate(invitation.authority.encode())
        except (ValueError, binascii.Error, ValidationError) as error:
            raise InvitationRefused("the invitation is damaged; copy it anew, whole, as one line") from error
        return invitation

    def check_good(self) -> None:
        """Check that the invitation has not expired.

        Raises:
            InvitationRefused: it has.
        """
        if self.expires < datetime.now(UTC):
            raise InvitationRefused(
                f"the invitation of site {self.site} has expired on {self.expires:%Y-%m-%d}; "
                "ask the coordinator for another"
            )


def new_secret() -> str:
    """Return a secret that nobody guesses."""
    return secrets.token_urlsafe(SECRET_BYTES)


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, valid: timedelta) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
