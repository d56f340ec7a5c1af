"""``fed-client --site A``: the site's command; today it draws disease maps, joining a federation comes later."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from client.lineage import line_of, lines_of
from client.models import open_models
from fedgan.cohort.images import PICTURES, VOLUMES, file_and_slice
from fedgan.errors import FedganError, ModelError
from fedgan.gan.build import choose_device
from fedgan.mapping import Finding, Mapper
from fedgan.results.pictures import Example, panel

NOT_YET = (
    "fed-client: joining a federation is not there yet; `fed-client --site A map IMAGE --model FOLDER` works today"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fed-client`` and return its exit code: 0, or 1 for what cannot be mapped, 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    if arguments.command is None:
        print(NOT_YET, file=sys.stderr)
        return 2
    try:
        return int(arguments.run(arguments))
    except (FedganError, OSError) as refusal:
        print(f"fed-client: {refusal}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fed-client", description="The site's side of a federation.")
    parser.add_argument("--site", required=True, help="the site's name, as in A")
    parser.add_argument("--version", action="version", version=f"fedgan {version('fedgan')}")
    parser.add_argument("--home", type=Path, metavar="FOLDER", help="of all the site's files; $FEDGAN_HOME or site-A")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    mapping = commands.add_parser("map", help="draw the disease map of pictures, here, with a model of a run")
    mapping.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="PNG, TIFF or NIfTI (brain.nii.gz#42)")
    mapping.add_argument("--model", type=Path, metavar="FOLDER", help="as runs/NAME/model; the installed one otherwise")
    mapping.add_argument("--disease", help="look for this disease only; all of the model's otherwise")
    mapping.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where the pictures go; here")
    mapping.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    mapping.set_defaults(run=_map)
    model = commands.add_parser("model", help="say which model is installed, who made it, and whether it is signed")
    model.set_defaults(run=_show_model)
    return parser


def _home(arguments: argparse.Namespace) -> Path:
    return arguments.home or Path(os.environ.get("FEDGAN_HOME") or f"site-{arguments.site}")


def _show_model(arguments: argparse.Namespace) -> int:
    """Say where the installed model comes from, and which others are kept."""
    models = open_models(_home(arguments))
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
    models = open_models(_home(arguments))
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
