"""What happens at a site, a line each for whoever watches: read from the audit, to which all its processes write."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WHY = "logs/worker.log says why"

EXPLAINED = {"BudgetExhausted": "the privacy budget is exhausted; fed-client privacy says what is spent and left"}
"""Refusals that the site's people must understand without a log."""


class Events:
    """The lines that were added to the audit since it was last asked."""

    def __init__(self, audit: Path) -> None:
        """Begin after what is in ``audit`` now."""
        self._audit = audit
        self._read = audit.stat().st_size if audit.exists() else 0
        self._rounds: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """Yield what has happened since."""
        if not self._audit.exists():
            return
        with self._audit.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # it is being written
                self._read += len(line)
                yield from self._told(json.loads(line))

    def _told(self, event: dict[str, Any]) -> Iterator[str]:
        number = str(event.get("task", ""))
        match event["event"]:
            case "joined":
                yield "connected; waiting for a task"
            case "task":
                asked = f"round {event['round']}" if "round" in event else f"scores of round {event['scores']}"
                self._rounds[number] = f"{asked} of {event['run']}"
                yield f"task {number}: {self._rounds[number]}"
            case "answered":
                done = self._rounds.pop(number, f"round {event['round']}")
                yield f"task {number}: {done} answered after {event['seconds']} s; waiting for the next"
            case "answer refused":
                yield f"refused what the coordinator sends ({event['reason']}); tell the coordinator"
            case "refused" if "bundle" in event:
                yield f"refused code that the policy does not approve (SHA-256 {event['bundle']})"
            case "refused":
                self._rounds.pop(number, None)
                yield f"task {number}: refused ({event['reason']}); {EXPLAINED.get(event['reason'], WHY)}"
