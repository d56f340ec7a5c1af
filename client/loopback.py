"""Secrets of the hour between a site's own processes: made at each start, and of no use to anybody else."""

import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fedgan.atomic import write_atomically
from fedgan.identity import Authority, new_key, private_pem

SIGNER = "site-gate"
"""Under which name the SuperNode knows whose signature approves a bundle."""


@dataclass(frozen=True, slots=True)
class Loopback:
    """What proves to the SuperNode that it speaks with the site's gate, and that the gate has approved a bundle."""

    certificate: Path
    key: Path
    root: Path
    """What verifies the certificate."""
    trusted: Path
    """Whose signatures the SuperNode takes, for Flower's ``--trusted-entities``."""
    secret: Path
    """Without which nobody else on this machine can take the SuperNode's tasks."""
    signer: Ed25519PrivateKey


def make_loopback(folder: Path) -> Loopback:
    """Return secrets made now, with their files in ``folder``.

    Raises:
        HomeError: the folder cannot be written.
    """
    authority, key, signer = Authority.found("site gate"), new_key(), Ed25519PrivateKey.generate()
    certificate = authority.sign_server(key.public_key(), ["localhost"])
    public = signer.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return Loopback(
        certificate=_written(folder / "gate.crt", certificate.public_bytes(Encoding.PEM)),
        key=_written(folder / "gate.key", private_pem(key)),
        root=_written(folder / "gate-root.crt", authority.certificate.public_bytes(Encoding.PEM)),
        trusted=_written(folder / "trusted.yaml", f"{SIGNER}: {public}\n".encode()),
        secret=_written(folder / "superexec.secret", os.urandom(32)),
        signer=signer,
    )


def _written(path: Path, content: bytes) -> Path:
    write_atomically(path, content, secret=True)
    return path
