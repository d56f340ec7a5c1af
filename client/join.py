"""A site that takes part: its gate, its worker and its SuperNode, kept running until it is told to stop."""

import fcntl
import json
import logging
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from client.gate import Gate, open_gate
from client.home import Home, Membership
from client.link import hello, proxy_for, tls_context
from client.loopback import make_loopback
from client.policy import approved_bundles, read_policy
from client.supernode import SuperNode
from fedgan.audit import Audit
from fedgan.errors import HomeError, Unreachable
from fedgan.forward import streaming_client
from fedgan.processes import flower_environment, free_port, keep_running

LOOK_S = 0.3
"""Between two looks at what has happened."""

LONGEST_SOCKET = 100
"""Letters in the path of a Unix socket; the system allows few more."""

LONGEST_LOG_BYTES = 10 * 1024 * 1024
"""A log that has grown longer begins anew at the next start; the old one stays until the start after."""

PLAIN = re.compile(r"[A-Za-z0-9/._-]+")

log = logging.getLogger(__name__)

Say = Callable[[str], None]


def join(home: Home, *, say: Say, stop: threading.Event) -> None:
    """Take part in the federation, saying each thing that happens in one line, until ``stop``.

    Raises:
        HomeError: the site belongs to no federation yet.
        HomeError: another process takes part for this site.
        SiteRefused: the coordinator does not let it in, or no longer.
        SettingsError: the policy cannot be read.
        EngineFailed: a part of it does not start.
    """
    membership, audit = home.membership(), Audit(home.audit)
    with ExitStack() as parts:
        parts.enter_context(_alone(home))
        events = _Events(home.audit)
        loopback = make_loopback(home.inside("link"))
        port = parts.enter_context(open_gate(_gate(home, membership, loopback.signer, audit), loopback))
        worker = parts.enter_context(_socket(home))
        node = SuperNode(home, loopback, port, free_port(), worker)
        say(f"waiting for the coordinator of {membership.federation} at {membership.address}")
        _run(home, membership, node, partial(_tell, events, membership, say), stop)
        audit.record("left")
    say("stopped")


def _gate(home: Home, membership: Membership, signer: Any, audit: Audit) -> Gate:
    policy = read_policy(home.policy)
    proxy = proxy_for(membership.address, policy)
    client = streaming_client(tls_context(home), proxy=proxy)
    return Gate(membership.address, client, lambda: approved_bundles(read_policy(home.policy)), signer, audit)
