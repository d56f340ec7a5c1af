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
from client.home import home_of, started_log
from client.join import join
from client.lineage import line_of, lines_of
from client.models import open_models
from client.policy import write_default
from client.preflight import preflight
from fedgan.cohort.images import PICTURES, VOLUMES, file_and_slice
from fedgan.errors import FedganError, ModelError
from fedgan.gan.build import choose_device
from fedgan.mapping import Finding, Mapper
from fedgan.results.pictures import Example, panel

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


def _join(arguments: argparse.Namespace) -> int:
    """Take part until Ctrl-C or SIGTERM, with a line for each thing that happens."""
    home = home_of(arguments.site, arguments.home)
    home.membership()
    if write_default(home.policy, arguments.site):
        print(f"fed-client: {home.policy} is new: say in it where the scans are, then start again", file=sys.stderr)
        return 1
    logging.basicConfig(filename=started_log(home, "fed-client"), level=logging.INFO, format=LOG_LINE)
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
    findings = []
    for finding in preflight(home_of(arguments.site, arguments.home)):
        findings.append(finding)
        print(f"{'ok' if finding.fine else 'PROBLEM':8} {finding.what:12} {finding.said}", flush=True)
    return int(not all(finding.fine for finding in findings))


def _show_model(arguments: argparse.Namespace) -> int:
    """Say where the installed model comes from, and which others are kept."""
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


def _model(arguments: argparse.Namespace) -> Path:
    """Return the folder of the model to draw with: the one asked for, or the installed one, checked once more."""
    if arguments.model:
        return Path(arguments.model)
    models = open_models(home_of(arguments.site, arguments.home))
    current = models.current()
    if current is None:
        raise ModelError("no model is installed yet; join the federation, or give --model FOLDER")
    return models.verify(current).folder


def _map(arguments: argparse.Namespace) -> int:
    """Draw the map of each picture as ``<name>-map.png`` and say what it shows, in one line each.

    Returns:
        0, or 1 if a picture could not be read or its map would lie over a file that is there.
    """
    mapper = Mapper(_model(arguments), device=choose_device(arguments.device))
    arguments.out.mkdir(parents=True, exist_ok=True)
    code = 0
    for image in arguments.images:
        drawn = arguments.out / f"{_stem(image)}-map.png"
        if drawn.exists():
            print(f"fed-client: {drawn} is there already; move it or give another --out", file=sys.stderr)
            code = 1
            continue
        try:
            finding = mapper.read(image, disease=arguments.disease)
        except ValueError as refusal:
            print(f"fed-client: {image}: {refusal}", file=sys.stderr)
            code = 1
            continue
        panel(_example(arguments.site, finding), threshold=mapper.card.threshold).save(drawn)
        area = "" if finding.area_mm2 is None else f", {finding.area_mm2:.0f} mm2 above the threshold"
        print(
            f"{drawn}: evidence {finding.score:.3f} on average{_place(finding)}, "
            f"{float(finding.evidence.max()):.3f} at most{area}"
        )
    if mapper.card.normal_scores is None:
        print(f"No place among normal scans: {mapper.card.no_normal_scores}.")
    print("For research. Not for diagnosis.")
    return code


def _place(finding: Finding) -> str:
    """Return where the score lies among those of normal scans, in words, if that is known."""
    if finding.place is None:
        return ""
    share = {0.0: "none", 1.0: "all"}.get(finding.place, f"about {100 * finding.place:.0f} %")
    return f" (higher than {share} of the normal validation scans)"


def _stem(image: Path) -> str:
    """Return the picture's name without its format: ``brain.nii.gz#42`` is ``brain-42``."""
    file, number = file_and_slice(image)
    stem = next((file.name[: -len(end)] for end in (*VOLUMES, *PICTURES) if file.name.lower().endswith(end)), file.name)
    return stem if number is None else f"{stem}-{number}"


def _example(site: str, finding: Finding) -> Example:
    return Example(
        site=site,
        title="map",
        scan=finding.scan,
        counterpart=finding.normal,
        disease_map=finding.evidence,
        mask=None,
        abnormal=False,
        score=finding.score,
    )


if __name__ == "__main__":
    sys.exit(main())
