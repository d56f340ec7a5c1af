"""``fed-server``: the coordinator's command, which says so while it cannot run a federation yet."""

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import version

NOT_YET = """\
fed-server: running a federation between hospitals is not there yet.
What works today: fed-simulate runs the whole federation on one machine, with phantoms or a manifest's scans.
See fed-simulate --help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Explain on standard error what works today, and return exit code 2; ``--help`` and ``--version`` exit with 0."""
    parser = argparse.ArgumentParser(prog="fed-server", description=NOT_YET.partition(": ")[2])
    parser.add_argument("--version", action="version", version=f"fedgan {version('fedgan')}")
    parser.parse_known_args(argv)
    print(NOT_YET, file=sys.stderr)
    return 2
