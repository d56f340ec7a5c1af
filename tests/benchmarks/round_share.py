"""Which share of a real round goes to everything but the sites' work, over the network and with real scans.

The four LGG hospitals, each with its own scans and all its processes on this machine, train the model of the README's
figures over TLS. Of each kept round, what counts as work is the time of the site that took longest, from the task's
arrival at its worker to the answer: reading, validation, training. All else is the federation's: fence, gate, SuperNode
and relay, the transport both ways, screening, aggregation, the release. The first round starts processes and prepares
scans, and is told apart.

    python tests/benchmarks/round_share.py --root ../shared/data/lgg-flair-128 --lines FILE
"""

import argparse
import json
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from link_cost import ROUND_S, commit_here, joined, machine

SITES = ("CS", "DU", "FG", "HT")

SETTINGS = ["model=tagsagan", "data.diseases=[glioma]", "data.intensity=tissue_median"]
SETTINGS += ["quorum=4", "deadline_s=3600", "select=last"]
"""As ``experiment=lgg-cpu``, one thread a site; there, a round has 40 local steps."""


def worked_s(site: Path) -> dict[int, float]:
    """Return how many seconds a site's worker took for each round."""
    events = map(json.loads, (site / "audit.jsonl").read_text().splitlines())
    return {event["round"]: event["seconds"] for event in events if event["event"] == "answered"}


def main() -> None:
    """Run a federation, and print what was found as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of lgg-flair-128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local-steps", type=int, default=40)
    parser.add_argument("--lines", type=Path, help="append what was found to this file")
    arguments = parser.parse_args()
    scans = {
        site: {
            "kind": "manifest",
            "root": str(arguments.root.absolute()),
            "manifest": "manifest.csv",
            "where": "matched == 1",
            "site": site,
            "cache": "cache",
        }
        for site in SITES
    }
    with tempfile.TemporaryDirectory(prefix="round-share-") as name:
        folder = Path(name)

        def take_part(site: str, place: Path) -> tuple[str, ...]:
            return ("-m", "client.cli", "--site", site, "--home", str(place))

        length = [f"rounds={arguments.rounds}", f"local_steps={arguments.local_steps}"]
        with joined(folder, scans, [*SETTINGS, *length], take_part) as federation:
            deadline = time.monotonic() + ROUND_S
            while (done := federation.finished()) < arguments.rounds:
                if time.monotonic() > deadline:
                    sys.exit(f"{done} of {arguments.rounds} rounds within {ROUND_S:.0f} s; see the logs")
                time.sleep(0.5)
            history = json.loads((folder / "federation/runs/cost/history.json").read_text())
            worked = [worked_s(folder / f"site-{site}") for site in SITES]
    round_s = [entry["seconds"] for entry in history]
    longest_s = [max(of_site[entry["round"]] for of_site in worked) for entry in history]
    told = {
        "local_steps": arguments.local_steps,
        "round_s": [round(seconds, 1) for seconds in round_s],
        "longest_site_s": longest_s,
        "share_first": round(1 - longest_s[0] / round_s[0], 3),
        "share": round(1 - sum(longest_s[1:]) / sum(round_s[1:]), 3),
        "load": round(os.getloadavg()[1], 1),
        "machine": machine(),
        "commit": commit_here(),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
    }
    print(json.dumps(told))
    if arguments.lines:
        with arguments.lines.open("a") as file:
            file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
