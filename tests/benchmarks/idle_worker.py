"""The worker of a site of ``idle_sites.py``: ``idle_worker.py NAME HOME SOCKET`` answers without training."""

import sys

from client import resident, worker
from fedgan.records import RoundTask, ScanCounts, SiteUpdate, digest_of


class Idle:
    """Answers at once: each tensor moved by a little of itself, by another part at each site."""

    def __init__(self, name: str) -> None:
        """Take the site's name, a capital letter."""
        self.name = name

    def answer(self, task: RoundTask) -> SiteUpdate:
        """Return an update of its own."""
        before, factor = task.model.weights, 1e-4 * (ord(self.name) - ord("A") + 1)
        delta = {tensor: value * factor for tensor, value in before.items()} if task.local_steps else {}
        return SiteUpdate(self.name, task.model.round, digest_of(before), delta, ScanCounts(10, 10, 0, (10,)), {})


if __name__ == "__main__":
    name = sys.argv[1]
    resident.networks_for = lambda *_: None  # type: ignore[assignment]
    resident.build_site = lambda *_, **__: Idle(name)  # type: ignore[assignment]
    sys.exit(worker.main())
