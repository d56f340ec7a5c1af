"""Flower's SuperNode at a site: how it is started, and what its end means; ``client.join`` keeps it running.

It is Flower's own program, driven through its command line. It dials the site's gate and nothing else, and what takes
its tasks (Flower's SuperExec, ``client.executor``) is started by us, with a secret, so that nobody else on the machine
can.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from client.home import Home
from client.loopback import Loopback

ARRIVED = "arrived"
"""In the folder of Flower's files: the bell that the gate rings when all of a task has arrived."""


@dataclass(frozen=True, slots=True)
class SuperNode:
    """One SuperNode, and the SuperExec that starts the relay for each of its messages."""

    home: Home
    loopback: Loopback
    gate_port: int
    runtime_port: int
    worker: Path
    """The worker's socket, which the relay is told of; the coordinator is not."""

    @property
    def command(self) -> list[str]:
        """Return what starts the SuperNode."""
        return [
            "flower-supernode",
            f"--superlink=127.0.0.1:{self.gate_port}",
            f"--root-certificates={self.loopback.root}",
            f"--auth-supernode-private-key={self.home.flower_key}",
            f"--trusted-entities={self.loopback.trusted}",
            f"--node-config=worker={json.dumps(str(self.worker))}",
            "--host=127.0.0.1",
            f"--port={self.runtime_port}",
            "--isolation=process",
            f"--superexec-auth-secret-file={self.loopback.secret}",
        ]

    @property
    def executor(self) -> list[str]:
        """Return what starts the SuperExec."""
        return [
            *(sys.executable, "-P", "-m", "client.executor"),
            f"--runtime-api-address=127.0.0.1:{self.runtime_port}",
            "--insecure",
            f"--superexec-auth-secret-file={self.loopback.secret}",
        ]
