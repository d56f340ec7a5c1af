"""Flower's SuperLink as its own command starts it, except that its database deals with models of any size.

``python -m server.engine`` takes the words of ``flower-superlink``. SQLite lets one write at a time. Flower deletes a
message in one transaction, and where SQLite was built to overwrite all that it deletes, as Debian's is, that takes as
long as writing it; who waits for more than Flower's 5 s meanwhile is told that the database is locked.
"""

import sys
from importlib.metadata import entry_points
from typing import Any

from sqlalchemy import event
from sqlalchemy.pool import Pool

PRAGMAS = {
    "secure_delete": "FAST",  # overwrites what costs no writing more (https://www.sqlite.org/pragma.html)
    "cache_size": "-8000",  # KiB of each of up to 15 connections: more makes nothing faster, and is never given back
    "busy_timeout": "20000",  # ms; less than the 30 s after which Flower's own processes ask once more
}


def set_pragmas(connection: Any, *_: object) -> None:  # noqa: ANN401 - whichever driver SQLAlchemy has
    """Set what is our own; at every use of a connection, as Flower sets its own after it is made."""
    for name, value in PRAGMAS.items():
        connection.execute(f"PRAGMA {name} = {value}")


def main() -> int:
    """Run the SuperLink until it is told to end."""
    event.listen(Pool, "checkout", set_pragmas)
    (command,) = entry_points(group="console_scripts", name="flower-superlink")
    return int(command.load()() or 0)


if __name__ == "__main__":
    sys.exit(main())
