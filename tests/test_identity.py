"""Keys, certificates and invitations hold what they promise, and refuse what is not theirs."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedgan.errors import InvitationRefused, RequestRefused
from fedgan.identity import (
    Authority,
    Invitation,
    load_key,
    new_key,
    new_secret,
    openssh_private,
    openssh_public,
    private_pem,
    public_pem,
    request_signature,
    requested_key,
    site_of,
)

AUTHORITY = Authority.found("lungs")
OTHER = Authority.found("lungs")


def invitation(**changes):
    values = {
        "federation": "lungs",
        "address": "coordinator.example:9443",
        "site": "A",
        "secret": new_secret(),
        "authority": AUTHORITY.certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "expires": datetime.now(UTC) + timedelta(days=1),
    }
    return Invitation(**{**values, **changes})


def verifier(authority):
    return PolicyBuilder().store(Store([authority.certificate]))


def test_a_signed_site_is_verified_by_its_authority_and_by_no_other():
    certificate = AUTHORITY.sign_site(request_signature(new_key(), "A"), "A")

    verifier(AUTHORITY).build_client_verifier().verify(certificate, [])

    assert site_of(certificate) == "A"
    with pytest.raises(VerificationError):
        verifier(OTHER).build_client_verifier().verify(certificate, [])


@pytest.mark.parametrize("name", ["coordinator.example", "localhost"])
def test_the_server_is_verified_under_its_public_name_and_on_loopback(name):
    certificate = AUTHORITY.sign_server(new_key().public_key(), ["coordinator.example", "192.0.2.7"])

    verifier(AUTHORITY).build_server_verifier(x509.DNSName(name)).verify(certificate, [])

    addresses = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"127.0.0.1", "::1", "192.0.2.7"} == {str(ip) for ip in addresses.get_values_for_type(x509.IPAddress)}


def test_a_sites_certificate_serves_nobody_and_signs_nobody():
    certificate = AUTHORITY.sign_site(request_signature(new_key(), "A"), "A")

    purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert list(purposes) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not constraints.ca


def test_a_certificate_lasts_a_year_and_the_authority_ten():
    certificate = AUTHORITY.sign_site(request_signature(new_key(), "A"), "A")

    assert 364 < (certificate.not_valid_after_utc - datetime.now(UTC)).days + 1 <= 365
    assert (AUTHORITY.certificate.not_valid_after_utc - datetime.now(UTC)).days > 3650


def test_a_request_for_another_name_is_not_signed():
    with pytest.raises(RequestRefused, match="site A: the request is for another name"):
        AUTHORITY.sign_site(request_signature(new_key(), "B"), "A")


def test_a_request_with_a_weaker_key_is_not_signed():
    with pytest.raises(RequestRefused, match=r"P-384"):
        requested_key(request_signature(ec.generate_private_key(ec.SECP256R1()), "A"), "A")


def test_a_damaged_request_is_not_signed():
    with pytest.raises(RequestRefused, match="damaged"):
        requested_key(b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "A")


def test_a_request_that_another_key_has_signed_is_not_signed():
    key, der = new_key(), x509.load_pem_x509_csr(request_signature(new_key(), "A"))
    forged = der.public_bytes(serialization.Encoding.DER).replace(
        der.public_key().public_numbers().x.to_bytes(48, "big"), key.public_key().public_numbers().x.to_bytes(48, "big")
    )
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n" + base64.encodebytes(forged) + b"-----END CERTIFICATE REQUEST-----\n"

    with pytest.raises(RequestRefused):
        requested_key(pem, "A")


def test_what_else_a_request_asks_for_is_ignored():
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A")])
    greedy = x509.CertificateSigningRequestBuilder().subject_name(name)
    greedy = greedy.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    request = greedy.sign(new_key(), hashes.SHA384()).public_bytes(serialization.Encoding.PEM)

    certificate = AUTHORITY.sign_site(request, "A")

    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_flower_reads_the_same_key_in_its_own_form():
    key = load_key(private_pem(new_key()))

    private, public = (
        serialization.load_ssh_private_key(openssh_private(key), None),
        serialization.load_ssh_public_key(openssh_public(key.public_key())),
    )

    assert private.private_numbers() == key.private_numbers()
    assert public_pem(public) == public_pem(key.public_key())


def test_an_invitation_survives_a_letter_that_breaks_its_line():
    sent = invitation()
    text = sent.encode()

    assert Invitation.decode(f" {text[:60]}\n{text[60:]}\n") == sent


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:-9],
        lambda text: "x" + text,
        lambda text: "",
        lambda text: "é" * 50,
        lambda text: text * 40,
        lambda text: base64.urlsafe_b64encode(json.dumps(["A"]).encode()).decode(),
    ],
)
def test_a_damaged_invitation_is_refused(damage):
    with pytest.raises(InvitationRefused, match="damaged; copy it anew"):
        Invitation.decode(damage(invitation().encode()))


@pytest.mark.parametrize("change", [{"site": "../A"}, {"authority": "no certificate"}, {"address": "http://x/y"}])
def test_an_invitation_with_impossible_content_is_refused(change):
    values = {**invitation().model_dump(mode="json"), **change}

    with pytest.raises(InvitationRefused, match="damaged"):
        Invitation.decode(base64.urlsafe_b64encode(json.dumps(values).encode()).decode())


def test_an_expired_invitation_says_so():
    with pytest.raises(InvitationRefused, match=r"site A has expired on 20\d\d-"):
        invitation(expires=datetime.now(UTC) - timedelta(seconds=1)).check_good()
