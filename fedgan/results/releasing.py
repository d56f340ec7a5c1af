"""A release as it is made: a run's round with its lineage, written and signed. What one is, is in ``release``."""

import hashlib
import json
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedgan.checkpoint import save_model
from fedgan.cohort.rows import Row
from fedgan.errors import RunFolderError
from fedgan.model_files import WEIGHTS, digest
from fedgan.records import GlobalModel
from fedgan.results.contribution import contributions
from fedgan.results.release import Card, Lineage, Place, Release, fingerprint, write_card
from fedgan.run_folder import RunFolder


def lineage_of(
    folder: RunFolder,
    number: int,
    *,
    rounds: int,
    chosen: bool,
    **drawing: object,
) -> Lineage:
    """Return where the model of round ``number`` of the run in ``folder`` comes from.

    Args:
        folder: the run's.
        number: of the round.
        rounds: of the whole run.
        chosen: whether the round is the run's result.
        drawing: completes the card of the run's models, as ``threshold``.

    Raises:
        RunFolderError: the run's settings are not there.
    """
    made = [entry for entry in folder.history if entry.round <= number]
    site_level = made[-1].site_level if made else None
    told = made if site_level is None else []
    scores = [scored for entry in told if entry.round == number for scored in entry.validation.values()]
    try:
        settings = digest(folder.path / "config.yaml")
    except OSError as error:
        raise RunFolderError(f"{folder.path} lacks its config.yaml ({error.strerror}); start the run anew") from error
    return Lineage(
        run=folder.path.name,
        rounds=rounds,
        chosen=chosen,
        settings=settings,
        sites=contributions(told),
        epsilon={**dict.fromkeys(contributions(told)), **folder.epsilon_spent()},
        delta=folder.deltas(),
        site_level=site_level,
        metrics={name: fmean(found[name] for found in scores if name in found) for found in scores for name in found},
        drawing={**folder.card, **drawing},
    )


def sign_release(folder: Path, model: GlobalModel, lineage: Lineage, place: Place, key: Ed25519PrivateKey) -> Release:
    """Write a release into ``folder``, which appears whole or not at all.

    Raises:
        RunFolderError, HomeError: the folder is there already, or cannot be written.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a crash
        save_model(partial, model, lineage.drawing)
        card = _card_of(partial / WEIGHTS, model.round, lineage, place, key.public_key())
        content = (card.model_dump_json(indent=1) + "\n").encode()
        write_card(partial, content, key.sign(content))
        partial.rename(folder)
    except OSError as error:
        raise RunFolderError(
            f"release {place.serial} cannot be written ({error.strerror}); free space on the disk of {folder.parent}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Release(folder, card, hashlib.sha256(content).hexdigest())


def _card_of(weights: Path, number: int, lineage: Lineage, place: Place, key: Ed25519PublicKey) -> Card:
    return Card(
        **dict(lineage),
        **dict(place),
        round=number,
        date=datetime.now(UTC).replace(microsecond=0),
        weights=digest(weights),
        num_bytes=weights.stat().st_size,
        key=fingerprint(key),
        versions={name: version(name) for name in ("fedgan", "torch", "flwr")},
        code=source_digest(),
        data_schema=hashlib.sha256(json.dumps(Row.model_json_schema(), sort_keys=True).encode()).hexdigest(),
    )


def source_digest() -> str:
    """Return the SHA-256 of the installed fedgan's modules, of their names and contents in order."""
    package, found = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        found.update(f"{file.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()
