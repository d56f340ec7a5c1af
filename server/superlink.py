"""Flower's SuperLink, for us alone: on the loopback, watched, and told which keys are those of approved sites.

Flower's calls for whoever runs the federation ask nobody who they are: any user of this machine can make them. Tasks
at least can be claimed only by the executor that shares a secret with the SuperLink.
"""

import json
import logging
import os
import sqlite3
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

from fedgan.atomic import write_atomically
from fedgan.errors import EngineFailed, HomeError
from fedgan.flower import ask_flower
from fedgan.identity import PublicKey, openssh_public, public_key_of
from fedgan.processes import flower_environment, keep_running, tail_of, wait_until_open
from server.home import Home
from server.registry import Entry, Registry, Roll

log = logging.getLogger(__name__)

CONNECTION = "federation"
"""What ``flwr`` calls the SuperLink in the home's ``link/config.toml``."""

LOOK_S = 0.5
"""Between two looks whether sites have been approved or revoked."""

RETRY_S = 5.0

PAGE_BYTES = 32768
"""Of the SuperLink's database: an object of 5 MB is written in half the processor time that SQLite's 4096 take."""

IN_USE = "already in use"
"""In Flower's refusal of a key that it knows."""

GONE = "unregistered"


class Superlink:
    """The SuperLink of a home, and its executor."""

    def __init__(self, home: Home) -> None:
        """Take the federation in ``home``; nothing is started yet."""
        self._home = home
        self._folder = home.folder("link")
        self._port = home.federation.link_port
        self._process: Popen[bytes] | None = None
        self.has_started = threading.Event()
        self.env = {**flower_environment(self._folder), "FEDGAN_HOME": str(home.path)}  # for what runs in it

    @property
    def url(self) -> str:
        """Return where the SuperLink listens."""
        return f"https://127.0.0.1:{self._port}"

    def prepare(self) -> None:
        """Write what Flower's processes read, and give back what disk the runs before have left unused.

        Raises:
            HomeError: the home cannot be written.
        """
        authority = json.dumps(str(self._home.authority_certificate), ensure_ascii=False)
        lines = [
            f"[superlink.{CONNECTION}]",
            f'address = "127.0.0.1:{self._port}"',
            f"root-certificates = {authority}",
        ]
        write_atomically(self._folder / "config.toml", "\n".join(lines) + "\n")
        write_atomically(self._folder / "secret", os.urandom(32), secret=True)
        _lay_out(self._database)

    @property
    def _database(self) -> Path:
        return self._folder / "state.db"

    def run(self, until: threading.Event) -> None:
        """Keep the SuperLink running until the event."""
        log_file = self._log("superlink")

        def up(process: Popen[bytes]) -> None:
            self._process = process
            wait_until_open(self._port, process, log_file)
            self.has_started.set()
            log.info("Flower's SuperLink is up")

        def down(code: int) -> None:
            log.error(
                "Flower's SuperLink ended (%d); it is started again. Its last words:\n%s", code, tail_of(log_file)
            )

        command = [
            *(sys.executable, "-P", "-m", "server.engine"),
            "--host=127.0.0.1",
            f"--port={self._port}",
            f"--ssl-ca-certfile={self._home.authority_certificate}",
            f"--ssl-certfile={self._home.server_certificate}",
            f"--ssl-keyfile={self._home.server_key}",
            f"--database={self._database}",
            "--enable-supernode-auth",
            "--isolation=process",
            f"--superexec-auth-secret-file={self._folder / 'secret'}",
        ]
        keep_running(command, self.env, log_file, until=until, on_start=up, on_end=down)

    def restart(self) -> None:
        """Have the SuperLink, if it runs, end and be started again, as what it reads at its start has changed."""
        if self._process:
            self._process.terminate()

    def run_executor(self, until: threading.Event) -> None:
        """Keep the executor, which starts the coordinator's part of a run, running until the event."""
        log_file = self._log("superexec")

        def down(code: int) -> None:
            log.error("Flower's executor ended (%d); it is started again. Its last words:\n%s", code, tail_of(log_file))

        command = [
            "flower-superexec",
            f"--runtime-api-address=127.0.0.1:{self._port}",
            f"--root-certificates={self._home.authority_certificate}",
            f"--superexec-auth-secret-file={self._folder / 'secret'}",
        ]
        keep_running(command, self.env, log_file, until=until, on_end=down)

    def ask(self, *words: str) -> dict[str, Any]:
        """Return what ``flwr`` answers about this SuperLink.

        Raises:
            EngineFailed: it fails.
        """
        return ask_flower(self.env, *words)

    def _log(self, name: str) -> Path:
        return self._home.folder("logs") / f"{name}.log"


def _lay_out(database: Path) -> None:
    """Give Flower's database pages for large objects, and make it smaller if most of it is of models that are gone."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            size, pages, unused = (
                connection.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("page_size", "page_count", "freelist_count")
            )
            if size != PAGE_BYTES or 2 * unused > pages:
                connection.execute("PRAGMA journal_mode = DELETE")  # only so can the size of pages change
                connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
                connection.execute("VACUUM")
    except sqlite3.Error as fault:  # it works as it is
        log.warning("the database of Flower's SuperLink stays as large as it is: %s", fault)


class Keys:
    """Flower's knowledge of keys, kept as the registry wants it."""

    def __init__(self, home: Home, link: Superlink, registry: Registry) -> None:
        """Take where to look and whom to tell."""
        self._home = home
        self._link = link
        self._registry = registry
        self._compared = False
        """Whether the registry's nodes are known to be Flower's."""

    def keep_told(self, until: threading.Event) -> None:
        """Tell Flower of each site that is approved or revoked, soon after, until the event."""
        pause_s = LOOK_S
        while not until.wait(pause_s):
            if not self._link.has_started.is_set():
                continue
            try:
                self.tell()
                pause_s = LOOK_S
            except (EngineFailed, HomeError) as failure:
                pause_s = RETRY_S
                log.warning("Flower has not been told of all sites, and will be in %.0f s: %s", pause_s, failure)

    def tell(self) -> None:
        """Register each approved key that has no node, and unregister each retired node.

        Raises:
            EngineFailed: Flower cannot be told now of some; of the others it has been.
            HomeError: the registry is damaged or cannot be written.
        """
        if not self._compared:
            self._forget_lost()
            self._compared = True
        roll, failures = self._registry.roll, []
        unsaid = [entry for entry in roll.sites.values() if entry.signed and entry.node is None]
        for step in (
            *(partial(self._unregister, node) for node in roll.retired),
            *(partial(self._enter, entry) for entry in unsaid),
        ):
            try:
                step()
            except EngineFailed as failure:
                failures.append(str(failure))
        if failures:
            raise EngineFailed("; ".join(failures))

    def _forget_lost(self) -> None:
        """Let sites be registered anew whose nodes Flower no longer has, since its database was lost."""
        known = self._known()

        def step(roll: Roll) -> Roll:
            lost = [entry for entry in roll.sites.values() if entry.node is not None and entry.node not in known]
            for entry in lost:
                log.warning("Flower no longer knows site %s; it is registered anew", entry.site)
                roll = roll.with_entry(entry.model_copy(update={"node": None}))
            return roll

        self._registry.change(step)

    def _enter(self, entry: Entry) -> None:
        if signed := entry.signed:
            self._bind(entry.site, entry.certificate, self._register(entry.site, public_key_of(signed)))

    def _register(self, site: str, key: PublicKey) -> int:
        file = self._home.folder("link") / f"{site}.pub"
        write_atomically(file, openssh_public(key))
        try:
            return int(self._link.ask("supernode", "register", str(file), CONNECTION)["node-id"])
        except EngineFailed as refusal:
            if IN_USE not in str(refusal):
                raise
        return self._forgotten(site)

    def _forgotten(self, site: str) -> int:
        """Return the node that was registered for the key of ``site`` when we ended before we could write it down."""
        roll = self._registry.roll
        nodes = self._known() - {entry.node for entry in roll.sites.values()} - set(roll.retired)
        if len(nodes) != 1:  # keys are registered one after the other, so there can be only one
            raise EngineFailed(f"Flower knows the key of site {site}, under no number that can be told; invite it anew")
        return nodes.pop()

    def _known(self) -> set[int]:
        """Return the nodes that Flower has."""
        nodes: Sequence[dict[str, str]] = self._link.ask("supernode", "list", CONNECTION)["nodes"]
        return {int(node["node-id"]) for node in nodes if node["status"] != GONE}

    def _unregister(self, node: int) -> None:
        if node in self._known():
            self._link.ask("supernode", "unregister", str(node), CONNECTION)
        self._registry.change(
            lambda roll: roll.model_copy(update={"retired": tuple(one for one in roll.retired if one != node)})
        )

    def _bind(self, site: str, certificate: str | None, node: int) -> None:
        """Write down whose ``node`` is, or that it is nobody's if the site has been revoked in the meantime."""

        def step(roll: Roll) -> Roll:
            entry = roll.sites.get(site)
            if entry is None or entry.certificate != certificate:
                return roll.model_copy(update={"retired": (*roll.retired, node)})
            return roll.with_entry(entry.model_copy(update={"node": node}))

        self._registry.change(step)
        log.info("site %s may take part", site)
