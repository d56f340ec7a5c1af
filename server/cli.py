"""``fed-server``: the coordinator's command."""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from fedgan.atomic import write_atomically
from fedgan.errors import FedganError, HomeError, SettingsError
from fedgan.identity import Invitation, fingerprint, key_fingerprint, requested_key
from fedgan.settings.types import SiteName
from server.authority import Enrolment, found
from server.current import CurrentRun
from server.home import ADDRESS, Home, home_at
from server.presence import PRESENCE, activations
from server.releases import releases_in
from server.up import up

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

DEFAULT_ADDRESS = "127.0.0.1:9443"


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fed-server`` and return its exit code: 0, 1 for what was refused, 2 for a wrong command line."""
    parser = _parser()
    arguments = parser.parse_args(_with_command(list(sys.argv[1:] if argv is None else argv)))
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return int(arguments.command(arguments, home_at(arguments.home)))
    except (FedganError, OSError) as refusal:
        print(f"fed-server: {refusal}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _with_command(words: list[str]) -> list[str]:
    """Return the words of a command line, a run's with its command, which may be left out.

    >>> _with_command(["rounds=50", "model=taggan"])
    ['run', 'rounds=50', 'model=taggan']
    """
    plain = [word for word in words if not word.startswith("-")]
    of_a_run = any("=" in word for word in plain) or not {"--resume", "--settings"}.isdisjoint(words)
    return ["run", *words] if of_a_run and plain[:1] not in (["run"], ["plan"]) else words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fed-server", description="The coordinator's side of a federation.")
    parser.add_argument("--version", action="version", version=f"fedgan {version('fedgan')}")
    parser.set_defaults(command=None)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--home", type=Path, metavar="FOLDER", help="the federation's folder; FEDGAN_HOME or federation"
    )
    commands = parser.add_subparsers(metavar="COMMAND")

    init = commands.add_parser("init", parents=[shared], help="found a federation, and invite its sites")
    init.add_argument("--sites", type=_sites, default=[], metavar="A,B,C", help="whom to invite")
    init.add_argument(
        "--address", type=_address, default=DEFAULT_ADDRESS, metavar="HOST:PORT", help="where sites reach it"
    )
    init.add_argument("--name", default="federation", help="what sites see it called")
    init.set_defaults(command=_init)

    _add_runs(commands, shared)
    for name, command, text in (
        ("invite", _invite, "invite one more site, or one again whose certificate or invitation has expired"),
        ("approve", _approve, "sign the key of a site that has asked"),
        ("revoke", _revoke, "take a site's certificate from it"),
    ):
        one = commands.add_parser(name, parents=[shared], help=text)
        one.add_argument("site", type=_site)
        one.set_defaults(command=command)
        if name == "approve":
            one.add_argument("--yes", action="store_true", help="do not ask whether the key is the site's")

    for name, alone, text in (
        ("up", _up, "keep up the link that sites dial, and the run that is on"),
        ("stop", _stop, "stop the run that is on"),
        ("list", _list, "show every site, how far it has come and until when"),
    ):
        commands.add_parser(name, parents=[shared], help=text).set_defaults(command=alone)
    return parser


def _add_runs(commands: Commands, shared: argparse.ArgumentParser) -> None:
    running = commands.add_parser(
        "run", parents=[shared], help="train a model with the sites; the word may be left out: fed-server rounds=50"
    )
    running.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ from configs/")
    running.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    running.add_argument("--settings", action="store_true", help="list every setting, its value and its meaning")
    running.set_defaults(command=_run)

    planning = commands.add_parser(
        "plan", help="say what privacy=patient, or site, takes: noise, and for how many patients or sites it is"
    )
    planning.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for a run")
    planning.set_defaults(command=_plan, home=None)

    showing = commands.add_parser("demo", help="play a federation of three phantom sites on this machine")
    showing.add_argument("--folder", type=Path, default=Path("fedgan-demo"), metavar="FOLDER", help="all it leaves")
    showing.add_argument("--rounds", type=int, default=10)
    showing.set_defaults(command=_demo, home=None)


def _init(arguments: argparse.Namespace, home: Home) -> int:
    invitations = found(home, name=arguments.name, address=arguments.address, sites=arguments.sites)
    print(f"{home.path} holds the federation {arguments.name} at {arguments.address}.")
    print(f"Its authority's SHA-256, for sites to compare: {fingerprint(home.authority.certificate)}")
    for invitation in invitations.values():
        _hand_out(home, invitation)
    print("Next: fed-server up")
    return 0


def _up(_: argparse.Namespace, home: Home) -> int:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("server").setLevel(logging.INFO)
    up(home, routes=releases_in(home).endpoints)
    return 0


def _run(arguments: argparse.Namespace, home: Home) -> int:
    from fedgan.progress import LiveProgress  # the imports below bring PyTorch: other commands start without it
    from server.running import begin, carry_out

    console = Console()
    if arguments.settings:
        return _list_settings(console)
    if arguments.resume and arguments.overrides:
        raise SettingsError(f"--resume takes every setting from {arguments.resume}; leave the others out")
    path = arguments.resume.absolute() if arguments.resume else begin(home, arguments.overrides)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("fed-server: ended; the run goes on with fed-server up"))

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True, markup=False)

    say(f"training in {path}")
    try:
        with LiveProgress(console) as progress:
            metrics = carry_out(home, path, progress, say)
    except KeyboardInterrupt:
        print(f"\nfed-server: stopped; go on with: fed-server --resume {path}", file=sys.stderr)
        return 130
    say(f"round {metrics.chosen_round} is released: {metrics.chosen_by}")
    say(f"report: {path / 'report.html'}")
    return 0


def _plan(arguments: argparse.Namespace, _: Home) -> int:
    from server.planning import plan

    for line in plan(arguments.overrides):
        print(line)
    return 0


def _stop(_: argparse.Namespace, home: Home) -> int:
    run = CurrentRun(home)
    path = run.path
    if path is None:
        raise HomeError(f"no run of the federation {home.federation.name} is on")
    run.end()
    print(f"run {path.name} is stopped; go on with: fed-server --resume {path}")
    return 0


def _list_settings(console: Console) -> int:
    from fedgan.config import describe
    from fedgan.settings import Deployment

    table = Table("setting", "value", "meaning", box=None, pad_edge=False)
    for row in describe("server", Deployment):
        table.add_row(*row)
    console.print(table, markup=False)
    return 0


def _demo(arguments: argparse.Namespace, _: Home) -> int:
    from server.demo import demo

    demo(arguments.folder.absolute(), arguments.rounds, lambda line: print(line, flush=True))
    return 0


def _invite(arguments: argparse.Namespace, home: Home) -> int:
    _hand_out(home, Enrolment(home).invite(arguments.site))
    return 0


def _approve(arguments: argparse.Namespace, home: Home) -> int:
    enrolment, site = Enrolment(home), arguments.site
    request = enrolment.registry.roll.entry(site).request
    if request:
        print(f"site {site}: the key's SHA-256 is {key_fingerprint(requested_key(request.encode(), site))}")
        if not arguments.yes and not _agreed(f"Does site {site} see the same? [y/N] "):
            print("Nothing is signed.")
            return 1
    certificate = enrolment.approve(site, request)
    print(f"site {site} is approved until {certificate.not_valid_after_utc:%Y-%m-%d}.")
    return 0


def _revoke(arguments: argparse.Namespace, home: Home) -> int:
    Enrolment(home).end(arguments.site, "revoked")
    print(f"site {arguments.site} may no longer take part.")
    return 0


def _list(_: argparse.Namespace, home: Home) -> int:
    seen = activations(home.path / PRESENCE)
    table = Table("site", "state", "until", "last came in")
    now = datetime.now(UTC)
    for standing in Enrolment(home).standings():
        until = f"{standing.until:%Y-%m-%d} ({(standing.until - now).days} days)" if standing.until else ""
        last = seen.get(standing.site)
        came = f"{datetime.fromtimestamp(last.at, UTC):%Y-%m-%d %H:%M} UTC" if last else ""
        table.add_row(standing.site, standing.state, until, came)
    Console().print(table)
    return 0


def _hand_out(home: Home, invitation: Invitation) -> None:
    """Write an invitation to a file of its own: its secret does not belong on a screen."""
    file = home.path / "invitations" / f"{invitation.site}.txt"
    write_atomically(file, invitation.encode() + "\n", secret=True)
    print(f"Invitation of site {invitation.site}, for its eyes only, good until {invitation.expires:%Y-%m-%d}: {file}")


def _agreed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _site(text: str) -> str:
    try:
        return TypeAdapter(SiteName).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text}: a letter, then letters, digits and hyphens, at most 32") from error


def _sites(text: str) -> list[str]:
    return [_site(name) for name in text.split(",")]


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not ADDRESS.fullmatch(text) or not 0 < int(port) < 65536 or not host:
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT")
    return text


if __name__ == "__main__":
    sys.exit(main())
