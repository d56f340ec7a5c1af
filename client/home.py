"""A site's folder: where everything is that a site keeps, and to which federation it belongs."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fedgan.config import read
from fedgan.errors import HomeError
from fedgan.settings import SiteName
from fedgan.settings.types import Frozen


class Membership(Frozen):
    """What enrolment leaves in ``site.json``."""

    site: SiteName
    federation: Annotated[str, Field(min_length=1, max_length=64)]
    address: str
    """Of the coordinator, as HOST:PORT."""


@dataclass(frozen=True, slots=True)
class Home:
    """The paths in a site's folder, which its own user alone can enter."""

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

    def inside(self, name: str) -> Path:
        """Return a folder in this one, made if need be."""
        folder = self.folder / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder

    def membership(self) -> Membership:
        """Return to which federation the site belongs.

        Raises:
            HomeError: it belongs to none, or not yet.
            SettingsError: ``site.json`` cannot be understood.
        """
        missing = [path for path in (self.folder / "site.json", self.key, self.certificate) if not path.is_file()]
        if missing:
            raise HomeError(
                f"{self.folder} has no {missing[0].name}: the site is not enrolled yet; "
                "run `fed-client --site NAME enrol INVITATION` with the coordinator's invitation"
            )
        return read(self.folder / "site.json", Membership)


def home_of(site: str, given: Path | None) -> Home:
    """Return the site's folder: as given, as the environment says (FEDGAN_HOME), or ``site-<name>`` here."""
    return Home((given or Path(os.environ.get("FEDGAN_HOME") or f"site-{site}")).absolute())
