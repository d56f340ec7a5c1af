"""A site's folder: where everything is that a site keeps, and to which federation it belongs."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedgan.config import read
from fedgan.errors import HomeError
from fedgan.locks import held
from fedgan.settings import SiteName
from fedgan.settings.types import Frozen

LONGEST_SOCKET = 100
"""Bytes in the path of a Unix socket; systems allow few more."""

PLAIN = re.compile(r"[A-Za-z0-9/._-]+")


class Membership(Frozen):
    """What enrolment leaves in ``site.json``."""

    site: SiteName
    federation: Annotated[str, Field(min_length=1, max_length=64)]
    address: str
    """Of the coordinator, as HOST:PORT."""


@dataclass(frozen=True, slots=True)
class Home:
    """The paths in a site's folder, which its own user alone can enter."""

    site: str
    folder: Path

    @property
    def policy(self) -> Path:
        """Return where the hospital's policy is."""
        return self.folder / "policy.yaml"

    @property
    def audit(self) -> Path:
        """Return where the site's audit is."""
        return self.folder / "audit.jsonl"

    @property
    def key(self) -> Path:
        """Return where the site's private key is (PEM), which never leaves."""
        return self.folder / "keys" / "site.key"

    @property
    def flower_key(self) -> Path:
        """Return where the same key is in the form that Flower reads."""
        return self.folder / "keys" / "site.ssh"

    @property
    def certificate(self) -> Path:
        """Return where the certificate is that the federation's authority signed."""
        return self.folder / "keys" / "site.crt"

    @property
    def authority(self) -> Path:
        """Return where the authority's own certificate is."""
        return self.folder / "keys" / "ca.crt"

    @property
    def release_key(self) -> Path:
        """Return where the key is with which the federation's releases are checked (PEM)."""
        return self.folder / "keys" / "release.pub"

    def inside(self, name: str) -> Path:
        """Return a folder in this one, made if need be."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def membership(self) -> Membership:
        """Return to which federation the site belongs.

        Raises:
            HomeError: it belongs to none, or not yet, or the folder is another site's.
            SettingsError: ``site.json`` cannot be understood.
        """
        missing = [path for path in (self.folder / "site.json", self.key, self.certificate) if not path.is_file()]
        if missing:
            raise HomeError(
                f"{self.folder} has no {missing[0].name}: the site is not enrolled yet; "
                f"run `fed-client --site {self.site} enrol INVITATION` with the coordinator's invitation"
            )
        found = read(self.folder / "site.json", Membership)
        if found.site != self.site:
            raise HomeError(f"{self.folder} is the folder of site {found.site}; give --site {found.site}, or --home")
        return found


def home_of(site: str, given: Path | None) -> Home:
    """Return the site's folder: as given, as the environment says (FEDGAN_HOME), or ``site-<name>`` here."""
    return Home(site, (given or Path(os.environ.get("FEDGAN_HOME") or f"site-{site}")).absolute())


@contextmanager
def only_one(home: Home) -> Iterator[None]:
    """Be the only process that takes part for this site until the block ends.

    Raises:
        HomeError: there is one already.
    """
    refusal = HomeError(f"{home.folder}: another fed-client runs for this site; stop that one first")
    with held(home.folder / "lock", refusal):
        yield


@contextmanager
def socket_in(home: Home) -> Iterator[Path]:
    """Give a path for the worker's socket: in the site's folder, or where it is short and plain enough for a socket."""
    path = home.folder / "worker.sock"
    if len(os.fsencode(path)) <= LONGEST_SOCKET and PLAIN.fullmatch(str(path)):
        yield path
        path.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="fedgan-") as folder:  # which nobody else may enter
            yield Path(folder) / "worker.sock"
