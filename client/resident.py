"""What stays warm at a site between tasks: its scans, its networks; of which nothing is lost with the process."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import RecordDict

from client.home import Home
from client.policy import Manifest, Phantoms, Policy, Privacy, check_steps, check_terms, opted_out, read_policy
from client.privacy import ledger_of
from client.scans import listed_at, load_scans
from fedgan.assembly import build_site, networks_for, promise_in
from fedgan.audit import Audit
from fedgan.cohort.cohort import Cohort
from fedgan.config import read
from fedgan.errors import FedganError, TaskAbandoned, TaskTooLong
from fedgan.federated.memory import FolderMemory
from fedgan.federated.site import Site
from fedgan.gan.build import choose_device
from fedgan.privacy.promise import note_unpromised
from fedgan.records import RoundTask, SiteFailure
from fedgan.settings import AgreedScans, PatientPrivacy, Terms
from fedgan.wire import pack_answer, terms_in, unpack_task

MOST_MEMORIES = 3
"""Of so many runs, the present one among them, a site keeps what it needs from round to round, in case one goes on."""

log = logging.getLogger(__name__)

Wanted = Callable[[], bool]
"""Whether somebody still waits for the answer."""


@dataclass(frozen=True, slots=True)
class _Scans:
    """All that prepared scans depend on."""

    where: Phantoms | Manifest
    asked: AgreedScans
    without: frozenset[str]
    listed_at: int


@dataclass(frozen=True, slots=True)
class _Built:
    """All that a site depends on."""

    terms: Terms
    scans: _Scans
    device: str
    privacy: Privacy


class Resident:
    """A site that answers one task after the other, and keeps warm what the next one is likely to need."""

    def __init__(self, name: str, home: Path) -> None:
        """Take the site's name and its folder, with the policy in it."""
        self.name = name
        self.home = home
        self.audit = Audit(home / "audit.jsonl")
        self._scans: tuple[_Scans, Cohort] | None = None
        self._site: tuple[_Built, Site] | None = None
        self._must_end: Callable[[], None] = lambda: None

    def policy(self) -> Policy:
        """Return the policy as it is now.

        Raises:
            SettingsError: it cannot be read.
        """
        return read_policy(self.home / "policy.yaml")

    def answer(self, records: RecordDict, number: str, wanted: Wanted = lambda: True) -> RecordDict:
        """Return the answer to the task in ``records``; of whatever goes wrong, the name of its class.

        Args:
            records: as the coordinator sent them.
            number: by which the site's own log and audit call the task.
            wanted: says whether to go on.
        """
        began = time.monotonic()
        try:
            policy = self.policy()
            terms, task = self._judge(policy, records)
            asked = {"round": task.model.round + 1} if task.local_steps else {"scores": task.model.round}
            self.audit.record("task", task=number, run=terms.name, **asked)
            site = self._site_for(policy, terms, wanted)
            if task.local_steps and _tells_of_patients(policy, terms):
                note_unpromised(ledger_of(self.name, self.home, policy), task, federation=self._federation())
            answer = site.answer(task)
        except FedganError as refusal:
            log.error("task %s is refused: %s", number, refusal)  # noqa: TRY400  the message says it all
            answer = SiteFailure(self.name, 0, type(refusal).__name__)
        except Exception as fault:  # whatever it is, only its class may leave
            log.exception("task %s cannot be answered", number)
            answer = SiteFailure(self.name, 0, type(fault).__name__)
        if isinstance(answer, SiteFailure):
            self.audit.record("refused", task=number, reason=answer.reason)
        else:
            took_s = round(time.monotonic() - began, 1)
            self.audit.record("answered", task=number, round=answer.round + 1, seconds=took_s)
        return pack_answer(answer)

    def _judge(self, policy: Policy, records: RecordDict) -> tuple[Terms, RoundTask]:
        """Return the terms and the task, if they are understood and the policy allows them."""
        terms = read(terms_in(records), Terms)
        check_terms(policy, terms)
        memory = FolderMemory(self._memory(terms))
        task = unpack_task(records, memory.model_of)
        check_steps(policy, task.local_steps)
        if terms.compress.model != "none":
            memory.keep_model(task.model.weights)
        return terms, task

    def _site_for(self, policy: Policy, terms: Terms, wanted: Wanted) -> Site:
        """Return the site that trains as ``terms`` and the policy say."""
        if policy.threads:
            torch.set_num_threads(policy.threads)
        self._must_end = _limit(policy.longest_task.seconds, wanted)
        scans = _Scans(policy.scans, terms.data, opted_out(policy), listed_at(policy.scans))
        key = _Built(terms, scans, policy.device, policy.privacy)
        if self._site is None or self._site[0] != key:
            self._site = None  # its networks make room for the next
            self._forget_before(self._memory(terms))
            site = build_site(
                terms,
                self.name,
                self._cohort(scans),
                networks_for(terms, choose_device(policy.device)),
                memory=self._memory(terms),
                promise=promise_in(terms, ledger_of(self.name, self.home, policy), federation=self._federation()),
                on_step=self._on_step,
            )
            self._site = key, site
        return self._site[1]

    def _cohort(self, scans: _Scans) -> Cohort:
        if self._scans is None or self._scans[0] != scans:
            cohort = load_scans(self.name, scans.where, scans.asked, scans.without, left_out=log.warning)
            self._scans = scans, cohort
        return self._scans[1]

    def _federation(self) -> str:
        """Return by what name the ledger tells with whom the site spends its budget."""
        home = Home(self.name, self.home)
        return home.membership().federation if home.certificate.exists() else self.name

    def _memory(self, terms: Terms) -> Path:
        return self.home / "memory" / terms.privacy.kind / terms.name  # what has no noise must not get into what has

    def _forget_before(self, present: Path) -> None:
        """Forget the runs that were longest not trained: each takes as much as a model and its moments."""
        others = [folder for folder in present.parent.glob("*") if folder != present]
        others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in others[MOST_MEMORIES - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)

    def _on_step(self, _step: int, _losses: Mapping[str, float]) -> None:
        self._must_end()


def _tells_of_patients(policy: Policy, terms: Terms) -> bool:
    """Return whether the terms train on patients, not on phantoms, and promise nothing to them."""
    return isinstance(policy.scans, Manifest) and not isinstance(terms.privacy, PatientPrivacy)


def _limit(seconds: int, wanted: Wanted) -> Callable[[], None]:
    """Return what ends a task that takes longer than ``seconds``, or for which nobody waits any more."""
    deadline = time.monotonic() + seconds

    def must_end() -> None:
        if time.monotonic() > deadline:
            raise TaskTooLong(f"the policy's {seconds} s are over; ask for fewer local steps, or allow more")
        if not wanted():
            raise TaskAbandoned("nobody waits for this task's answer any more")

    return must_end
