"""Many sites on one machine, with a tiny model: whether their rounds complete, and what memory a site takes that waits.

The sites are those of ``idle_sites.py``: all of a site's processes, of which the worker does not train. Memory is
counted when the run is over and all of them wait for the next; what processes share is divided among them (PSS), so
that a site among many takes less than one alone.

    python tests/benchmarks/many_sites.py --sites 20 --rounds 3
"""

import argparse
import json
import string
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from link_cost import ROUND_S, children, commit_here, machine, memory_mib, ours, pss_mib, words_of

WIDTH = 4

PARTS = {"idle_worker.py": "worker", "flower-supernode": "SuperNode", "client.executor": "SuperExec"}
"""Words of a command line to what it is; all else is fed-client and what watches over its children."""


def parts_of(site: int) -> Counter[str]:
    """Return the memory of each part of a site, in MiB."""
    found: Counter[str] = Counter()
    for pid in children(site):
        names = {Path(word).name for word in words_of(pid)}
        found[next((part for name, part in PARTS.items() if name in names), "fed-client")] += pss_mib(pid)
    return found


def main() -> None:
    """Run a federation, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    sites = string.ascii_uppercase[: arguments.sites]
    with (
        tempfile.TemporaryDirectory(prefix="many-sites-") as folder,
        ours(Path(folder), WIDTH, arguments.rounds, sites) as federation,
    ):
        deadline = time.monotonic() + ROUND_S
        while (done := federation.finished()) < arguments.rounds:
            if time.monotonic() > deadline:
                sys.exit(f"{done} of {arguments.rounds} rounds within {ROUND_S:.0f} s; see the logs")
            time.sleep(0.5)
        coordinator = memory_mib(*federation.coordinator)
        parts = [parts_of(site) for site in federation.sites]
    told = {
        "sites": len(sites),
        "rounds": done,
        "site_mib": round(fmean(part.total() for part in parts)),
        "parts_mib": {name: round(fmean(part[name] for part in parts)) for name in sorted(set().union(*parts))},
        "coordinator_mib": round(coordinator),
        "commit": commit_here(),
        "machine": machine(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
