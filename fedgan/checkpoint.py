"""A global model on disk: named tensors (safetensors) and JSON, written atomically; never pickle."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedgan.errors import ModelError, RunFolderError
from fedgan.model_files import CARD, WEIGHTS
from fedgan.records import GlobalModel, Weights

MEMORY = "memory/"
"""Begins the names of what the coordinator remembers, beside the weights in a kept round."""


def save_round(path: Path, model: GlobalModel) -> None:
    """Write ``model`` to the one file ``path``; a crash leaves the old file or the new one, never half.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written; what was kept before stays.
    """
    try:
        remembered = {f"{MEMORY}{name}": tensor for name, tensor in model.memory.items()}
        _write(path, {**model.weights, **remembered}, {"round": str(model.round)})
    except (OSError, SafetensorError) as error:
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
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is no kept round ({error}); delete it, then resume from the one before") from error
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(MEMORY)}
    memory = {name.removeprefix(MEMORY): tensor for name, tensor in tensors.items() if name.startswith(MEMORY)}
    return GlobalModel(number, weights, memory)


def save_model(folder: Path, model: GlobalModel, card: Mapping[str, Any]) -> None:
    """Write ``model`` with its ``card`` as ``model.safetensors``, and the card alone, for people, as ``model.json``.

    The card lies in the header of the weights' file, so that the two change together or not at all.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    content = json.dumps({**card, "round": model.round}, indent=2, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / WEIGHTS, model.weights, {"card": content})
        partial = folder / f"{CARD}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / CARD)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"the model cannot be written ({error}); free space on the disk of {folder}") from error


def load_model(folder: Path) -> tuple[Weights, dict[str, Any]]:
    """Read what ``save_model`` wrote: the weights and their card.

    Raises:
        ModelError: the folder holds no model, or a damaged one.
    """
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            card: dict[str, Any] = json.loads(file.metadata()["card"])
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} holds no model ({error}); give a run's model folder") from error


def _write(path: Path, weights: Weights, metadata: dict[str, str]) -> None:
    """Write a safetensors file so that a crash leaves the old one or the new one, and a full disk no remains."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, partial, metadata=metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
