"""fed-simulate: a federation on one machine, from settings to a report."""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from fedgan.attacker import Coins, attack, check_promises, coins_in, in_words, without_left_out
from fedgan.cohort.cohort import Cohort
from fedgan.config import describe, dump, experiments, load, read
from fedgan.errors import FedganError, RunFolderError, SettingsError
from fedgan.flower import run_on_flower
from fedgan.model_files import digest
from fedgan.outcome import conclude, how_it_ended, write_maps
from fedgan.progress import LiveProgress
from fedgan.results.metrics import Metrics
from fedgan.results.pictures import Recovered
from fedgan.results.report import write_report
from fedgan.run_folder import RunFolder
from fedgan.settings import Simulation
from fedgan.simulation import Arm, arms_of, load_cohorts, open_folder, resolve, train_in_process

BAD_SETTINGS, REFUSED, INTERRUPTED = 2, 1, 130
"""Exit codes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fed-simulate`` and return its exit code: 0, or 2 for bad settings, 1 for a refused run, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    console = Console()
    logging.basicConfig(level="WARNING", format="%(message)s", handlers=[RichHandler(console=console, show_path=False)])
    if arguments.settings:
        _list_settings(console)
        return 0
    path: Path | None = arguments.resume
    try:
        settings, path = _settings_of(arguments.overrides, path)
        _run(settings, path, console)
    except FedganError as refusal:
        print(f"fed-simulate: {refusal}", file=sys.stderr)
        return BAD_SETTINGS if isinstance(refusal, SettingsError) else REFUSED
    except OSError as error:
        print(f"fed-simulate: {error}; make room or give runs=FOLDER, then resume", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        begun = path is not None and (path / "config.yaml").exists()
        print(
            f"\nfed-simulate: stopped{f'; go on with: fed-simulate --resume {path}' if begun else ''}", file=sys.stderr
        )
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fed-simulate",
        description="Train hospitals' disease maps together, on this machine; phantoms unless told otherwise.",
        epilog="Examples: fed-simulate rounds=20 | fed-simulate data=lgg data.root=FOLDER compare=true | "
        "fed-simulate data=manifest data.root=FOLDER 'data.diseases=[pneumonia]'",
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings that differ from configs/")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--settings", action="store_true", help="list every setting, its value and its meaning")
    parser.add_argument("--version", action="version", version=f"fedgan {version('fedgan')}")
    return parser


def _list_settings(console: Console) -> None:
    table = Table("setting", "value", "meaning", box=None, pad_edge=False)
    for row in describe("simulate", Simulation):
        table.add_row(*row)
    for name, meaning in experiments().items():
        table.add_row(f"experiment={name}", "", meaning)
    console.print(table, markup=False)


def _settings_of(overrides: Sequence[str], resumed: Path | None) -> tuple[Simulation, Path]:
    """Return the settings and the run's folder: those of a run to resume, or composed for a new one.

    Raises:
        SettingsError: the settings are wrong, or there are some beside ``--resume``.
        RunFolderError: a run of that name is there already.
    """
    if resumed:
        if overrides:
            raise SettingsError(f"--resume takes every setting from {resumed}; leave out {' '.join(overrides)}")
        if not (resumed / "config.yaml").exists():
            raise SettingsError(f"--resume: there is no run in {resumed}; runs lie in the folder of the setting runs")
        return read(resumed / "config.yaml", Simulation), resumed
    settings = load("simulate", Simulation, overrides)
    default = f"{settings.data.kind}-{settings.model.kind}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    path = settings.runs / (settings.name or default)
    if (path / "config.yaml").exists():
        raise RunFolderError(f"{path} holds a run already; resume it (--resume {path}) or give another name=")
    return settings, path


def _run(settings: Simulation, path: Path, console: Console) -> None:
    """Train every arm, conclude, and tell if an attacker learns more than was promised."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    with console.status("reading scans"):
        everyone = load_cohorts(settings)
    settings = resolve(settings, everyone)
    folder = open_folder(settings, path)
    folder.write("config.yaml", dump(settings))
    coins = coins_in(folder, everyone) if settings.tosses_coins else {}
    cohorts = without_left_out(everyone, coins)
    folder.audit.record("run started", settings=digest(path / "config.yaml"), sites=list(cohorts))
    console.print(
        f"{settings.model.kind} at {len(cohorts)} sites ({', '.join(cohorts)}), in {path}",
        highlight=False,
        soft_wrap=True,
    )
    trained = []
    with LiveProgress(console) as progress:
        for arm in arms_of(settings, cohorts):
            arm_folder = folder if arm.kind == "federated" else open_folder(settings, path / "arms" / arm.folder_name)
            _train(settings, arm, arm_folder, progress)
            trained.append((arm, arm_folder))
    with console.status("scoring and drawing"):
        metrics, report = _conclude(settings, trained, everyone, coins)
    _print_results(metrics, console)
    console.print(f"report: {report}", highlight=False, soft_wrap=True)
    if metrics.attacks:
        check_promises(metrics.attacks, folder.audit)


def _conclude(
    settings: Simulation, trained: Sequence[tuple[Arm, RunFolder]], everyone: Mapping[str, Cohort], coins: Coins
) -> tuple[Metrics, Path]:
    """Write what the run leaves; return its figures and where the report is."""
    _, folder = trained[0]
    metrics, examples = conclude(settings, trained)
    recovered: Sequence[Recovered] = ()
    if settings.attack != "none":
        found, recovered = attack(settings, folder, everyone, coins, number=metrics.chosen_round)
        metrics = metrics.model_copy(update={"attacks": found})
    folder.write("metrics.json", metrics.model_dump_json(indent=1) + "\n")
    write_maps(examples, folder.path / "maps")
    report = write_report(metrics, examples, dump(_without_paths(settings)), folder.path, recovered=recovered)
    folder.audit.record("run concluded", chosen_round=metrics.chosen_round)
    return metrics, report


def _without_paths(settings: Simulation) -> Simulation:
    """Return settings to show to others: where a hospital keeps its scans is nobody's business."""
    hidden: dict[str, object] = {"root": Path("..."), "cache": None} if settings.data.kind == "manifest" else {}
    shown = {"runs": Path("..."), "start": Path("...") if settings.start else None}
    return settings.model_copy(update=shown | {"data": settings.data.model_copy(update=hidden)})


def _train(settings: Simulation, arm: Arm, folder: RunFolder, progress: LiveProgress) -> None:
    if arm.kind == "federated" and settings.engine == "flower":
        progress.arm(arm.name, rounds=settings.rounds, done=len(folder.history), steps=0)

        def show(_line: str) -> None:
            folder.reload()
            for entry in folder.history:
                progress.round(entry.round, folder.score_of(entry.round - 1))

        run_on_flower(folder.path, num_sites=len(arm.cohorts), on_output=show)
        folder.reload()
    else:
        train_in_process(settings, arm, folder, progress)
    if folder.history[-1].round < settings.rounds:
        progress.stopped(how_it_ended(settings, folder))


def _print_results(metrics: Metrics, console: Console) -> None:
    """Show the figures that matter most, one line an arm or control."""
    table = Table("test patients of all sites", "pixel AP", "best Dice", "image AUROC", box=None, pad_edge=False)
    for arm in (*metrics.arms, *metrics.controls):
        figures = (arm.overall.pixel_ap, arm.overall.best_dice, arm.overall.image_auroc)
        table.add_row(arm.name, *("-" if figure is None else f"{figure.value:.3f}" for figure in figures))
    console.print(table)
    if metrics.attacks:
        console.print(f"an attacker: {in_words(metrics.attacks)}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
