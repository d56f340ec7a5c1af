"""Long polling: a site's question for tasks waits at the fence until tasks have been sent.

Flower's SuperNode asks every three seconds, and would lose as many in every round; nothing else in it needs changing.
The process that sends tasks says so in a file, which the fence sees; and the other way round, the fence says in a file
that an answer has arrived, for which that process would otherwise have to ask all the time.
"""

import asyncio
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from fedgan.atomic import write_atomically

SENT = "link/sent"
"""Where in a home the file is, which has the number of bytes of the model that was sent last."""

ANSWERED = "link/answered"
"""Where in a home the file is that is written whenever all of an answer has arrived."""

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


def note_answered(path: Path) -> None:
    """Write down that all of an answer has arrived, if that can be: who waits for it also looks by itself."""
    with suppress(OSError):
        path.touch(mode=0o600)
        os.utime(path, ns=(time.time_ns(),) * 2)  # the file system's own clock may not tell two answers apart


class Answers:
    """Waits for answers, told of each that has arrived."""

    def __init__(self, answered: Path) -> None:
        """Take the file that is written when an answer has arrived."""
        self._answered = answered
        self._known = changed_ns(answered)

    def wait(self, most_s: float) -> None:
        """Wait until an answer has arrived since the last time, and no longer than ``most_s``."""
        deadline = time.monotonic() + most_s
        while (known := changed_ns(self._answered)) == self._known and (left_s := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_S, left_s))
        self._known = known


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


def changed_ns(path: Path) -> int:
    """Return when a file was last written; 0 if there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
