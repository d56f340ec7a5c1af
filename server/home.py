"""The coordinator's folder: everything that the federation is, on this side."""

import json
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from pydantic import Field, ValidationError

from fedgan.atomic import make_private, write_atomically
from fedgan.audit import Audit
from fedgan.errors import HomeError
from fedgan.identity import Authority, load_key
from fedgan.settings.types import Frozen

ADDRESS = re.compile(r"^([A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,39}\]):[0-9]{1,5}$")


class Federation(Frozen):
    """What ``fed-server init`` was told, and chose, once."""

    name: str = Field(min_length=1, max_length=64)
    address: str = Field(pattern=ADDRESS.pattern)
    """Under which sites reach the coordinator: host:port."""
    listen: str
    """On which of this machine's addresses the fence listens."""
    link_port: int = Field(ge=1, le=65535)
    """On which port of the loopback Flower's SuperLink listens."""

    @property
    def host(self) -> str:
        """Return the host of the public address."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """Return the port of the public address, on which the fence listens too."""
        return int(self.address.rpartition(":")[2])


@dataclass(frozen=True)
class Home:
    """A coordinator's folder, and where in it everything is."""

    path: Path

    @cached_property
    def federation(self) -> Federation:
        """Return what the federation is.

        Raises:
            HomeError: there is none, or its file is damaged.
        """
        try:
            return Federation.model_validate_json((self.path / "federation.json").read_bytes())
        except FileNotFoundError as error:
            raise HomeError(
                f"{self.path} holds no federation; make one with fed-server init, or give --home"
            ) from error
        except (OSError, ValidationError) as error:
            raise HomeError(f"{self.path / 'federation.json'} is damaged; restore it from the backup") from error

    @cached_property
    def authority(self) -> Authority:
        """Return the federation's authority.

        Raises:
            HomeError: its files are missing or damaged.
        """
        try:
            key = load_key((self.path / "authority/ca.key").read_bytes())
            return Authority(key, x509.load_pem_x509_certificate(self.authority_certificate.read_bytes()))
        except (OSError, ValueError) as error:
            raise HomeError(f"{self.path / 'authority'} is damaged; restore it from the backup") from error

    @property
    def authority_certificate(self) -> Path:
        """Return the file of the authority's certificate."""
        return self.path / "authority/ca.crt"

    @property
    def server_key(self) -> Path:
        """Return the file of the server's key."""
        return self.path / "authority/server.key"

    @property
    def server_certificate(self) -> Path:
        """Return the file of the server's certificate."""
        return self.path / "authority/server.crt"

    @property
    def release_key(self) -> Path:
        """Return the file of the key that signs releases."""
        return self.path / "release.key"

    @property
    def release_public_key(self) -> Path:
        """Return the file of the key with which sites verify releases."""
        return self.path / "release.pub"

    @property
    def audit(self) -> Audit:
        """Return the coordinator's audit."""
        return Audit(self.path / "audit.jsonl")

    @property
    def sites(self) -> Path:
        """Return the file of ``server.registry``."""
        return self.path / "sites.json"

    @property
    def up_lock(self) -> Path:
        """Return the lock of whoever keeps the link up."""
        return self.folder("link") / "up.lock"

    def folder(self, name: str) -> Path:
        """Return a folder in the home, made if need be."""
        make_private(self.path / name)
        return self.path / name

    def keep(self, federation: Federation) -> None:
        """Write what the federation is.

        Raises:
            HomeError: the folder cannot be written.
        """
        content = json.dumps(federation.model_dump(mode="json"), indent=2) + "\n"
        write_atomically(self.path / "federation.json", content)


def home_at(path: Path | None) -> Home:
    """Return the home at ``path``, else where FEDGAN_HOME says, else ``federation`` in this folder."""
    return Home((path or Path(os.environ.get("FEDGAN_HOME") or "federation")).absolute())


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """Return a certificate as its file has it."""
    return certificate.public_bytes(serialization.Encoding.PEM)
