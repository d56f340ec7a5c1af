"""Long polling: a site's question for tasks waits at the fence until tasks have been sent.

Flower's SuperNode asks every three seconds, and would lose as many in every round; nothing else in it needs changing.
The process that sends tasks says so in a file, which the fence sees; and the other way round, the fence says in a file
that all of an answer has arrived, for which that process would otherwise have to ask all the time.
"""

import asyncio
import time
from collections import Counter
from pathlib import Path

from fedgan.atomic import write_atomically
from fedgan.bell import changed_ns

SENT = "link/sent"
"""Where in a home the file is, which has the number of bytes of the model that was sent last."""

ANSWERED = "link/answered"
"""Where in a home the bell is that rings when all of a site's answer has arrived."""

HOLD_S = 8.0
"""How long a question waits: Flower's SuperNode gives up after thirty, of which the database may take twenty."""

LOOK_S = 0.1


def note_sent(path: Path, num_bytes: int) -> None:
    """Write down that tasks have been sent, with a model of so many bytes.

    Raises:
        HomeError: the file cannot be written.
    """
    write_atomically(path, f"{num_bytes}\n")


def bytes_sent(path: Path) -> int | None:
    """Return of how many bytes the model is that was sent last, if that is known."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None


class LongPoll:
    """Holds each site's question until tasks have been sent since its last one; of one event loop."""

    def __init__(self, sent: Path) -> None:
        """Take the file that is written when tasks have been sent."""
        self._sent = sent
        self._known: dict[str, int] = {}
        self._questions: Counter[str] = Counter()
        self._closed = False

    async def wait(self, site: str) -> bool:
        """Wait until the site's question should be asked; return whether it still should.

        It should not if the site has asked again or has come in anew, as after a crash, or if the fence closes: the
        task would go to nobody.
        """
        self._questions[site] += 1
        question, deadline = self._questions[site], time.monotonic() + HOLD_S
        while self._known.get(site) == (sent := changed_ns(self._sent)) and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_S)
            if self._closed or self._questions[site] != question:
                return False
        self._known[site] = sent
        return not self._closed

    def forget(self, site: str) -> None:
        """Let no earlier question of a site stand, and the next one not wait."""
        self._questions[site] += 1
        self._known.pop(site, None)

    def close(self) -> None:
        """Let no question wait any longer."""
        self._closed = True
