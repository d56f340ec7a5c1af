"""``fed-client --site A``: the site's command; without a further word it takes part in the federation."""

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from client.enrolment import enrol
from client.home import home_of
from client.link import leave
from client.policy import read_policy, write_default
from fedgan.audit import Audit
from fedgan.errors import FedganError
from fedgan.processes import started_log

LOG_LINE = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fed-client`` and return its exit code: 0, 1 for what is refused or wrong, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except (FedganError, OSError) as refusal:
        print(f"fed-client: {refusal}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fed-client",
        description="The site's side of a federation. Without COMMAND: take part, until Ctrl-C.",
    )
    parser.add_argument("--site", required=True, help="the site's name, as in A")
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="the site's folder; FEDGAN_HOME or site-<name>")
    parser.add_argument("--version", action="version", version=f"fedgan {version('fedgan')}")
    parser.set_defaults(run=_join)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    checking = commands.add_parser("check", help="look for everything that would waste a round, and say what to do")
    checking.set_defaults(run=_check)
    privacy = commands.add_parser(
        "privacy", help="say what of the patients' privacy is spent, on what, and what is left"
    )
    privacy.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="the coordinator's settings: what one more round would take"
    )
    privacy.set_defaults(run=_tell_privacy)
    model = commands.add_parser("model", help="say which model is installed, who made it, and whether it is signed")
    model.set_defaults(run=_show_model)
    enrolling = commands.add_parser("enrol", help="join a federation: make the site's key, and have it signed")
    enrolling.add_argument(
        "invitation", metavar="INVITATION", help="the coordinator's invitation, or a file that holds it"
    )
    enrolling.add_argument("--fingerprint", metavar="SHA256", help="the authority's, as the coordinator has told it")
    enrolling.add_argument(
        "--ca-bundle", type=Path, metavar="FILE", help="certificates (PEM) that verify an HTTPS proxy"
    )
    enrolling.set_defaults(run=_enrol)
    leaving = commands.add_parser("leave", help="leave the federation; the way back is another invitation")
    leaving.set_defaults(run=_leave)
    _add_map(commands.add_parser("map", help="draw the disease map of pictures, here, with the installed model"))
    return parser


def _add_map(mapping: argparse.ArgumentParser) -> None:
    mapping.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG, TIFF or NIfTI (brain.nii.gz#42)")
    mapping.add_argument("--model", type=Path, metavar="FOLDER", help="as runs/NAME/model; the installed one otherwise")
    mapping.add_argument("--disease", help="look for this disease only; all of the model's otherwise")
    mapping.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go; here")
    mapping.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    mapping.set_defaults(run=_map)


def _enrol(arguments: argparse.Namespace) -> int:
    """Enrol, waiting for the coordinator's approval as long as it takes, or until Ctrl-C."""
    stop = _stop_at_signals()
    try:
        invited = Path(arguments.invitation).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no file of that name, or no name of a file: the invitation itself
        invited = arguments.invitation
    home = home_of(arguments.site, arguments.home)
    done = enrol(
        home,
        invited,
        expected=arguments.fingerprint,
        proxy_authority=arguments.ca_bundle,
        say=lambda line: _say(arguments.site, line),
        until=stop,
    )
    if not done:
        _say(arguments.site, "not approved yet; go on waiting with the same command")
    elif write_default(home.policy, arguments.site):
        _say(arguments.site, f"say in {home.policy} where the scans are, then run fed-client --site {home.site} check")
    return 0 if done else 130


def _leave(arguments: argparse.Namespace) -> int:
    """Leave the federation; its models and the site's own records stay here."""
    home = home_of(arguments.site, arguments.home)
    membership = home.membership()
    leave(home, membership.address, read_policy(home.policy))
    Audit(home.audit).record("left the federation", federation=membership.federation)
    _say(arguments.site, f"has left {membership.federation}; its models stay")
    return 0


def _join(arguments: argparse.Namespace) -> int:
    """Take part until Ctrl-C or SIGTERM, with a line for each thing that happens."""
    home = home_of(arguments.site, arguments.home)
    home.membership()
    if write_default(home.policy, arguments.site):
        print(f"fed-client: {home.policy} is new: say in it where the scans are, then start again", file=sys.stderr)
        return 1
    from client.join import join

    log_file = started_log(home.inside("logs") / "fed-client.log")
    logging.basicConfig(filename=log_file, level=logging.INFO, format=LOG_LINE)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each object that passes, and for each look
    join(home, say=lambda line: _say(arguments.site, line), stop=_stop_at_signals())
    return 0


def _stop_at_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


def _say(site: str, line: str) -> None:
    print(f"{datetime.now():%H:%M:%S} site {site}: {line}", flush=True)


def _check(arguments: argparse.Namespace) -> int:
    """Print what is fine and what is not, and return 1 if anything is not."""
    from client.preflight import preflight

    findings = []
    for finding in preflight(home_of(arguments.site, arguments.home)):
        findings.append(finding)
        print(f"{'ok' if finding.fine else 'PROBLEM':8} {finding.what:12} {finding.said}", flush=True)
    return int(not all(finding.fine for finding in findings))


def _show_model(arguments: argparse.Namespace) -> int:
    """Say where the installed model comes from, and which others are kept."""
    from client.lineage import line_of, lines_of
    from client.models import open_models

    models = open_models(home_of(arguments.site, arguments.home))
    current = models.current()
    if current is None:
        print("No model is installed yet; the site fetches the first one that the coordinator releases.")
        return 0
    for line in lines_of(models.verify(current)):
        print(line)
    for folder in models.folders():
        if folder != current:
            print(f"Also kept: {line_of(models, folder)}")
    return 0


def _tell_privacy(arguments: argparse.Namespace) -> int:
    """Say what the ledger says, and what one more round would make of it: as the last, or of the given settings."""
    from client.privacy import ledger_of, round_of
    from fedgan.privacy.telling import tell_account

    home = home_of(arguments.site, arguments.home)
    one_round = round_of(arguments.overrides) if arguments.overrides else None
    for line in tell_account(ledger_of(home.site, home.folder, read_policy(home.policy)), one_round):
        print(line)
    return 0


def _map(arguments: argparse.Namespace) -> int:
    """Draw the maps; return 1 if one could not be drawn."""
    from client.drawing import Artist  # brings PyTorch, as the imports below do: other commands start without it

    artist = Artist(home_of(arguments.site, arguments.home), model=arguments.model, device=arguments.device)
    arguments.out.mkdir(parents=True, exist_ok=True)
    code = 0
    for image in arguments.images:
        try:
            print(artist.draw(image, arguments.out, disease=arguments.disease))
        except ValueError as refusal:
            print(f"fed-client: {image}: {refusal}", file=sys.stderr)
            code = 1
    for line in artist.remarks():
        print(line)
    return code


if __name__ == "__main__":
    sys.exit(main())
