"""Everything that can be wrong at a site before a round is wasted on it; for the hospital's eyes, nothing leaves.

The first form: policy, software, scans, device, disk, certificate, coordinator and clock.
"""

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version

from client.home import Home
from client.link import FEWEST_DAYS, days_left, hello
from client.policy import Phantoms, Policy, approved_bundles, opted_out, read_policy
from client.scans import diseases_in, load_scans
from fedgan.cohort.cohort import ABNORMAL, NORMAL, UNLABELLED, Cohort
from fedgan.cohort.manifest import LeftOut
from fedgan.errors import CohortError, FedganError
from fedgan.flower import check_flower
from fedgan.gan.build import choose_device
from fedgan.privacy.plan import largest_delta
from fedgan.settings import AgreedScans

FEWEST_FREE_BYTES = 5 * 10**9
"""Room for the models and the optimisers' state of a few runs."""

TRIED_SIZE = 64
"""To what size scans are prepared to try them, in pixels; a run may ask for another."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    what: str
    fine: bool
    said: str
    """How it is; and if it is not fine, what to do."""


Check = Callable[[Home, Policy], str]


class _Problem(FedganError):
    """A check's finding; its message says what to do."""


def preflight(home: Home) -> Iterator[Finding]:
    """Yield what is found, one thing after the other; without a policy that can be read, that alone."""
    try:
        policy = read_policy(home.policy)
        approved = len(approved_bundles(policy))
    except FedganError as problem:
        yield Finding("policy", False, str(problem))
        return
    yield Finding("policy", True, f"readable; {approved} bundle(s) of code approved")
    checks: dict[str, Check] = {
        "software": _software,
        "scans": _scans,
        "device": _device,
        "disk": _disk,
        "certificate": _certificate,
        "coordinator": _coordinator,
    }
    for what, check in checks.items():
        try:
            yield Finding(what, True, check(home, policy))
        except FedganError as problem:
            yield Finding(what, False, str(problem))


def _software(_home: Home, _policy: Policy) -> str:
    check_flower()
    return f"fedgan {version('fedgan')} on flwr {version('flwr')}"


def _scans(home: Home, policy: Policy) -> str:
    without = opted_out(policy)
    asked = AgreedScans(size=TRIED_SIZE, diseases=policy.diseases or diseases_in(policy.scans), intensity="range")
    left: list[LeftOut] = []
    cohort = load_scans(home.site, policy.scans, asked, without, left_out=left.append)
    if problems := [problem for told in left for problem in told.problems]:
        raise CohortError(home.site, problems)
    _check_delta(policy, cohort)
    absent = "".join(f"; {told.unasked} of other diseases left out" for told in left)
    absent += f"; {len(without)} patient(s) opted out" if without else ""
    kind = "phantoms: " if isinstance(policy.scans, Phantoms) else ""
    return f"{kind}{_counted(cohort)} of {len(set(cohort.patients))} patients{absent}"


def _check_delta(policy: Policy, cohort: Cohort) -> None:
    patients = len(set(cohort.split("train").patients))
    if patients and policy.privacy.delta > (most := largest_delta(patients)):
        raise _Problem(
            f"the policy's privacy.delta is {policy.privacy.delta:g}, which is no promise to each of {patients} "
            f"training patients; give {10 ** math.floor(math.log10(most)):g} or less"
        )


def _counted(cohort: Cohort) -> str:
    counts = {"normal": NORMAL, "abnormal": ABNORMAL, "unlabelled": UNLABELLED}
    found = {name: int((cohort.status == status).sum()) for name, status in counts.items()}
    if not found["normal"] + found["abnormal"]:
        raise _Problem("no scan is labelled normal or abnormal; the site cannot train")
    return ", ".join(f"{count} {name}" for name, count in found.items() if count) + " scans"


def _device(_home: Home, policy: Policy) -> str:
    return str(choose_device(policy.device))


def _disk(home: Home, _policy: Policy) -> str:
    free = shutil.disk_usage(home.folder).free  # the folder is there: the policy was read from it
    if free < FEWEST_FREE_BYTES:
        raise _Problem(f"{free / 1e9:.1f} GB free; make room for {FEWEST_FREE_BYTES / 1e9:.0f} GB")
    return f"{free / 1e9:.0f} GB free"


def _certificate(home: Home, _policy: Policy) -> str:
    home.membership()
    days = days_left(home)
    if days < 0:
        raise _Problem("expired; ask the coordinator for an invitation, and enrol again")
    if days < FEWEST_DAYS:
        raise _Problem(f"expires in {days} days; ask the coordinator for an invitation, and enrol again")
    return f"holds for {days} days"


def _coordinator(home: Home, policy: Policy) -> str:
    address = home.membership().address
    said = hello(home, address, policy)
    if obstacle := said.obstacle():
        raise _Problem(obstacle)
    return f"{address} knows this site as {said.site}; clocks agree within {max(1.0, said.skew_s):.0f} s"
