"""A model's files for whoever hands them on without opening them, and so without PyTorch; ``checkpoint`` opens them."""

import hashlib
from pathlib import Path

WEIGHTS, CARD = "model.safetensors", "model.json"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
