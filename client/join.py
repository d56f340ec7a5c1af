"""A site that takes part: its gate, its worker, its SuperNode and its models, kept up until it is told to stop."""

import logging
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from client.delivery import install_as_they_come
from client.events import Events
from client.gate import Gate, open_gate
from client.home import Home, Membership, only_one, socket_in
from client.link import FEWEST_DAYS, days_left, hello, proxy_for, tls_context
from client.loopback import make_loopback
from client.policy import approved_bundles, read_policy
from client.supernode import ARRIVED, SuperNode
from fedgan.audit import Audit
from fedgan.bell import ring
from fedgan.errors import HomeError, Unreachable
from fedgan.flower import check_flower
from fedgan.forward import streaming_client
from fedgan.processes import flower_environment, free_port, keep_running

LOOK_S = 0.3
"""Between two looks at what has happened."""

OWN = {
    "superexec": {
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.01",  # in seconds; when to ask, it is told otherwise
        "OPENBLAS_NUM_THREADS": "1",  # otherwise NumPy starts threads, and beside others nothing is forked
    }
}
"""What one of the processes, by its name, finds in its environment beside what all find."""

log = logging.getLogger(__name__)

Say = Callable[[str], None]


def join(home: Home, *, say: Say, stop: threading.Event) -> None:
    """Take part in the federation, saying each thing that happens in one line, until ``stop``.

    Raises:
        HomeError: the site belongs to no federation yet, has another key by now, or another process takes part for it.
        SiteRefused: the coordinator does not let it in, or no longer.
        SettingsError: the policy cannot be read, or Flower is of an unknown version.
        EngineFailed: a part of it does not start.
    """
    check_flower()
    membership = home.membership()
    with ExitStack() as parts:
        parts.enter_context(only_one(home))
        events = Events(home.audit)
        loopback = make_loopback(home.inside("link"))
        certificate = home.certificate.read_bytes()
        port = parts.enter_context(open_gate(_gate(home, membership, loopback.signer, say), loopback))
        worker = parts.enter_context(socket_in(home))
        node = SuperNode(home, loopback, port, free_port(), worker)
        if (days := days_left(home)) < FEWEST_DAYS:
            say(f"the site's certificate holds for {days} more day(s); ask the coordinator for an invitation")
        say(f"waiting for the coordinator of {membership.federation} at {membership.address}")
        if obstacle := _obstacle(home, membership):
            say(obstacle)
        _Processes(home, membership, certificate, node, say, stop).run(events)
        Audit(home.audit).record("left")
    say("stopped")


def _obstacle(home: Home, membership: Membership) -> str | None:
    """Return what stands between the site and the coordinator, if anything does.

    Raises:
        SiteRefused: the coordinator does not let the site in, or no longer.
    """
    try:
        return hello(home, membership.address, read_policy(home.policy)).obstacle()
    except Unreachable as fault:
        return str(fault)


def _gate(home: Home, membership: Membership, signer: Ed25519PrivateKey, say: Say) -> Gate:
    proxy = proxy_for(membership.address, read_policy(home.policy).proxy_ca)
    return Gate(
        coordinator=membership.address,
        client=streaming_client(tls_context(home), proxy=proxy),
        approved=lambda: approved_bundles(read_policy(home.policy)),
        signer=signer,
        audit=Audit(home.audit),
        task_bytes=lambda: read_policy(home.policy).max_bytes,
        note=_Reach(say),
        arrived=partial(ring, home.inside("link") / ARRIVED),
    )


class _Reach:
    """Says when the coordinator goes, and when it is back."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._there = True

    def __call__(self, status: int) -> None:
        """Take the status of an answer; 502 is the gate's own, or the fence's for Flower behind it."""
        there = status != 502
        if there != self._there:
            self._say(
                "the coordinator is back" if there else "the coordinator does not answer; it is asked until it does"
            )
        self._there = there


@dataclass(frozen=True, slots=True)
class _Processes:
    """What runs beside this process, each in a thread that keeps it running."""

    home: Home
    membership: Membership
    certificate: bytes
    """Which the gate shows."""
    node: SuperNode
    say: Say
    stop: threading.Event

    def run(self, events: Events) -> None:
        """Keep all of it running, and say what happens, until it is to stop or something cannot go on."""
        with ThreadPoolExecutor(4) as pool:
            running = [
                pool.submit(self._keep, "worker", self._worker(), partial(self._ended, "the worker")),
                pool.submit(self._keep, "supernode", self.node.command, self._supernode_ended),
                pool.submit(self._keep, "superexec", self.node.executor, partial(self._ended, "Flower's SuperExec")),
                pool.submit(install_as_they_come, self.home, self.membership, say=self.say, stop=self.stop),
            ]
            try:
                self._watch(running, events)
            finally:
                self.stop.set()
        for part in running:
            part.result()

    def _watch(self, running: list[Future[None]], events: Events) -> None:
        while not self.stop.is_set() and not wait(running, LOOK_S, FIRST_COMPLETED).done:
            for line in events.lines():
                self.say(line)

    def _keep(self, name: str, command: list[str], on_end: Callable[[int], None]) -> None:
        env = flower_environment(self.home.inside("link")) | OWN.get(name, {})
        keep_running(command, env, self.home.inside("logs") / f"{name}.log", until=self.stop, on_end=on_end)

    def _worker(self) -> list[str]:
        socket = str(self.node.worker)
        return [sys.executable, "-P", "-m", "client.worker", self.membership.site, str(self.home.folder), socket]

    def _ended(self, what: str, code: int) -> None:
        self.say(f"{what} ended ({code}) and is started again; logs/ says why")

    def _supernode_ended(self, _code: int) -> None:
        """Go on, since Flower refuses a key that returns within a minute; but not if the coordinator refuses the site.

        Raises:
            SiteRefused: it does.
            HomeError: it knows the site by another certificate than the gate's.
        """
        if self.home.certificate.read_bytes() != self.certificate:
            raise HomeError("the site has been enrolled anew while it took part; start fed-client again")
        obstacle = _obstacle(self.home, self.membership)
        self.say(obstacle or "Flower does not take the site back yet; it is tried again")
