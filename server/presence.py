"""When each site last came in: written by the fence, read by the round loop, which so knows that a site is back."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedgan.atomic import write_atomically
from fedgan.errors import HomeError
from fedgan.settings.types import Frozen

PRESENCE = "link/presence.json"
"""Where in a home the file is."""


class Activation(Frozen):
    """A site's SuperNode has been let in, or turned out not to have got what it was sent."""

    at: float
    """When, in seconds since 1970 (UTC)."""
    times: int
    """How often since the federation began: a site whose number has grown was away in between."""


_FILE = TypeAdapter(dict[str, Activation])


def activations(path: Path) -> Mapping[str, Activation]:
    """Return the last activation of each site that has come in.

    Raises:
        HomeError: the file is damaged.
    """
    try:
        return _FILE.validate_json(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        raise HomeError(f"{path} is damaged; delete it, and it is written anew as sites come in") from error


def note_activation(path: Path, site: str, at: float) -> None:
    """Write down that ``site`` has come in.

    Raises:
        HomeError: the file is damaged or cannot be written.
    """
    known = dict(activations(path))
    times = known[site].times + 1 if site in known else 1
    known[site] = Activation(at=at, times=times)
    write_atomically(path, json.dumps({name: one.model_dump() for name, one in known.items()}) + "\n")
