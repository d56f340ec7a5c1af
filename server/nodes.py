"""Who takes part, as the federation's own files say at each moment: never what a message says."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from server.home import Home
from server.presence import PRESENCE, activations
from server.registry import Registry


class EnrolledNodes(Mapping[int, str]):
    """Flower's nodes of approved sites, with the sites' names; who is revoked is no longer among them."""

    def __init__(self, home: Home) -> None:
        """Take the federation in ``home``."""
        self._registry = Registry(home.sites)

    def _now(self) -> dict[int, str]:
        now = datetime.now(UTC)
        return {
            entry.node: entry.site
            for entry in self._registry.roll.sites.values()
            if entry.node is not None and (signed := entry.signed) and signed.not_valid_after_utc > now
        }

    def __getitem__(self, node: int) -> str:
        """Return whose node it is."""
        return self._now()[node]

    def __iter__(self) -> Iterator[int]:
        """Yield the nodes."""
        return iter(self._now())

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._now())


class Returns:
    """Tells whether a site has come in anew: what it had been sent before is lost."""

    def __init__(self, home: Home) -> None:
        """Take the federation in ``home``."""
        self._path = home.path / PRESENCE

    def __call__(self, site: str, since: float) -> bool:
        """Return whether ``site`` has come in after ``since``, in seconds since 1970."""
        last = activations(self._path).get(site)
        return last is not None and last.at > since
