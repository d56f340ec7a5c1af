"""A global model on disk: named tensors (safetensors) and JSON, written atomically; never pickle."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedgan.errors import ModelError, RunFolderError
from fedgan.records import GlobalModel, Weights

WEIGHTS, CARD = "model.safetensors", "model.json"


def save_round(path: Path, model: GlobalModel) -> None:
    """Write ``model`` to the one file ``path``; a crash leaves the old file or the new one, never half.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; what was kept before stays.
    """
    partial = path.with_suffix(".partial")
    try:
        save_file(dict(model.weights), partial, metadata={"round": str(model.round)})
        _settle(partial, path)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise RunFolderError(
            f"round {model.round} cannot be kept ({error}); free space on the disk of {path.parent}, then resume: "
            f"the last kept round is intact"
        ) from error


def load_round(path: Path) -> GlobalModel:
    """Read what ``save_round`` wrote.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            number = int(file.metadata()["round"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no kept round ({error}); resume from an earlier one") from error
    return GlobalModel(number, weights)


def save_model(folder: Path, model: GlobalModel, card: Mapping[str, Any]) -> None:
    """Write ``model`` as ``folder/model.safetensors`` and ``card`` as ``folder/model.json``, with the weights' digest.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        weights, described = folder / f"{WEIGHTS}.partial", folder / f"{CARD}.partial"
        save_file({name: tensor.contiguous() for name, tensor in model.weights.items()}, weights)
        content = {**card, "round": model.round, "sha256": digest(weights)}
        described.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _settle(weights, folder / WEIGHTS)
        _settle(described, folder / CARD)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"the model cannot be written ({error}); free space on the disk of {folder}") from error


def load_model(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Read what ``save_model`` wrote, after checking the weights against the card's digest.

    Raises:
        ModelError: the folder is not a model's, or its weights are not those of the card.
    """
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if digest(folder / WEIGHTS) != card["sha256"]:
            raise ModelError(f"the weights in {folder} are not those of its {CARD}; fetch the model again")
        return load_file(folder / WEIGHTS), card
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{folder} holds no model ({error}); give a run's model folder") from error


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _settle(partial: Path, final: Path) -> None:
    """Put a finished file in its place, on the disk before it is named."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(final)
