"""What the hospital allows: its policy file, which always wins over what the coordinator wishes.

The file is the hospital's own and never leaves it. It is read anew for each task, so that a change holds from the next
task on, and a file that cannot be read allows nothing.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from fedgan.bundle import bundle_digest
from fedgan.config import read
from fedgan.errors import DiseaseRefused, ModelRefused, PrivacyRefused, SettingsError, TaskTooLong
from fedgan.settings import PatientPrivacy, SiteName, Terms
from fedgan.settings.types import Count, Fraction, Frozen, Name, Positive

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

DEFAULT = """\
# What this site allows. It always wins over what the coordinator wishes, and never leaves this machine.
# A change holds from the next task on. `fed-client --site {site} check` tells what is wrong with it.

scans:
  kind: manifest        # or phantoms (synthetic patients), with: patients, images_per_patient, seed
  root: scans           # folder of the manifest; a relative path begins at this file
  manifest: manifest.csv
  where: null           # rows to take, as in: matched == 1
  site: null            # rows of this name in the manifest's column "site"; null takes all rows
  cache: cache          # where prepared scans are kept

diseases: null          # for which the scans may be used, as in [glioma]; null: whatever the coordinator asks about
opt_out: null           # a text file with one patient a line, as named in the manifest: their scans are never used

device: auto            # auto takes the GPU when there is one; or cpu, cuda
threads: 0              # processor threads; 0 leaves the choice to PyTorch

longest_task:           # a task beyond this is refused, or ended
  local_steps: 2000
  seconds: 14400
  megabytes: 2000       # of what the coordinator sends

models:                 # what may be trained here, and how large at most
  kinds: [taggan, sagan]
  width: 64             # channels of a network's first level
  blocks: 16
  batch_size: 64
  critic_steps: 10

privacy:
  epsilon: null         # largest epsilon a patient may be exposed to, over all runs; null demands none, and what is
                        # then trained without a promise leaves no epsilon to be kept later
  delta: 1.0e-5         # at which the site's ledger counts epsilon; at most a tenth of one over its training patients
  ledger: null          # folder of the ledger; null: this one. Who trains the same patients in two federations, from
                        # two folders as this one, has both name one ledger: or each counts what it spends alone
  anchor: null          # file by which a ledger that was put back is found out; null: in the ledger's folder. If all
                        # of that is put back, as with a whole machine, it takes a file elsewhere, as on another disk

bundles: null           # SHA-256 of the code that the coordinator may ship; null: of that which is installed here alone
proxy_ca: null          # certificates (PEM) that verify an HTTPS proxy, if not this machine's own
"""


class Phantoms(Frozen):
    """Synthetic patients, for tests and demonstrations."""

    kind: Literal["phantoms"]
    patients: Annotated[int, Field(ge=6)]
    images_per_patient: Count
    seed: Annotated[int, Field(ge=0, lt=2**31)]


class Manifest(Frozen):
    """Scans listed in a manifest (CSV); see ``fedgan.cohort.manifest``."""

    kind: Literal["manifest"]
    root: Path
    manifest: str
    where: str | None
    site: SiteName | None
    """Rows of this name in the manifest's column; null takes all."""
    cache: Path


class LongestTask(Frozen):
    """Beyond what a task is refused, or ended."""

    local_steps: Count
    seconds: Count
    megabytes: Count


class Models(Frozen):
    """What may be trained, and how large at most."""

    kinds: Annotated[tuple[Literal["taggan", "sagan"], ...], Field(min_length=1)]
    width: Count
    blocks: Count
    batch_size: Count
    critic_steps: Count


class Privacy(Frozen):
    """What the site promises its patients."""

    epsilon: Positive | None
    """Largest epsilon, over all runs; null demands no differential privacy."""
    delta: Fraction
    """At which the site's ledger counts epsilon, whatever the coordinator's."""
    ledger: Path | None = None
    """Folder of the ledger, which several homes may share; null: the site's own."""
    anchor: Path | None = None
    """File that names the ledger's newest line; null: in the ledger's folder."""


class Policy(Frozen):
    """What a site allows; the meaning of each line is in ``DEFAULT``."""

    scans: Annotated[Phantoms | Manifest, Field(discriminator="kind")]
    diseases: tuple[Name, ...] | None
    opt_out: Path | None
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=0)]
    longest_task: LongestTask
    models: Models
    privacy: Privacy
    bundles: tuple[Digest, ...] | None
    proxy_ca: Path | None

    @property
    def max_bytes(self) -> int:
        """Return how many bytes of arrays a task may bring."""
        return self.longest_task.megabytes * 10**6


def read_policy(path: Path) -> Policy:
    """Return the policy in the file ``path``, whose relative paths begin at its folder.

    Raises:
        SettingsError: it cannot be read, or something in it is missing, unknown or out of bounds.
    """
    policy, home = read(path, Policy), path.parent.absolute()
    found: dict[str, object] = {}
    if isinstance(policy.scans, Manifest):
        scans = policy.scans
        found["scans"] = scans.model_copy(update={"root": home / scans.root, "cache": home / scans.cache})
    found |= _placed(policy, ("opt_out", "proxy_ca"), home)
    found["privacy"] = policy.privacy.model_copy(update=_placed(policy.privacy, ("ledger", "anchor"), home))
    return policy.model_copy(update=found)


def _placed(told: Frozen, names: Sequence[str], home: Path) -> dict[str, object]:
    """Return the paths of these names that are given, as seen from ``home``."""
    return {name: home / file for name in names if (file := getattr(told, name)) is not None}


def write_default(path: Path, site: str) -> bool:
    """Write the commented default to ``path``, and return whether there was none before."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return False
    with os.fdopen(file, "w", encoding="utf-8") as stream:
        stream.write(DEFAULT.replace("{site}", site))
    return True


def opted_out(policy: Policy) -> frozenset[str]:
    """Return the patients whose scans are never used.

    Raises:
        SettingsError: the list cannot be read; without it, nothing may be trained.
    """
    if policy.opt_out is None:
        return frozenset()
    try:
        lines = policy.opt_out.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"opt_out: {policy.opt_out} cannot be read, and without it no scan may be used; mend it, or the policy"
        ) from error
    return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))


def approved_bundles(policy: Policy) -> frozenset[str]:
    """Return the SHA-256 of each bundle that may run here.

    Raises:
        EngineFailed: Flower cannot build the installed one.
    """
    return frozenset({bundle_digest()} if policy.bundles is None else policy.bundles)


def check_terms(policy: Policy, terms: Terms) -> None:
    """Judge what the coordinator wants trained.

    Raises:
        ModelRefused: the model is of a kind that the policy does not name, or larger than it allows.
        DiseaseRefused: a disease is not among those that the scans may be used for.
        PrivacyRefused: the policy demands differential privacy of patients, which the terms do not offer.
    """
    allowed, model = policy.models, terms.model
    if model.kind not in allowed.kinds:
        raise ModelRefused(f"the policy's models.kinds do not include {model.kind}")
    most = {"critic_width": allowed.width, **allowed.model_dump(exclude={"kinds"})}
    for name, bound in most.items():
        if (asked := getattr(model, name, 0)) > bound:
            raise ModelRefused(f"model.{name} is {asked}, and the policy allows {bound}")
    if policy.diseases is not None and not set(terms.data.diseases) <= set(policy.diseases):
        raise DiseaseRefused("the policy's diseases do not include all that the task is about")
    if policy.privacy.epsilon is not None and not isinstance(terms.privacy, PatientPrivacy):
        raise PrivacyRefused(
            f"the policy demands an epsilon of at most {policy.privacy.epsilon}, and none is promised to patients"
        )


def check_steps(policy: Policy, local_steps: int) -> None:
    """Judge how long the coordinator wants a round to be.

    Raises:
        TaskTooLong: there are more local steps than the policy allows.
    """
    if local_steps > policy.longest_task.local_steps:
        raise TaskTooLong(
            f"{local_steps} local steps are asked for, and the policy allows {policy.longest_task.local_steps}"
        )
