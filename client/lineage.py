"""Installed releases in words, for a site's people: where a model comes from, and whether that can be trusted."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from client.models import Models
from fedgan.errors import ReleaseRefused
from fedgan.results.metrics import SiteContribution
from fedgan.results.release import Card, Release


def lines_of(release: Release) -> Iterator[str]:
    """Yield where the release that maps are drawn with comes from."""
    card = release.card
    yield f"{_name(card)}, installed for drawing maps"
    yield f"  signature   good: card and weights are what key {card.key[:16]} signed"
    yield f"  lineage     federation {card.federation}, {_before(card)}; {_result(card)}"
    yield f"  digests     card {release.digest[:16]}, weights {card.weights[:16]}, settings {card.settings[:16]}"
    yield f"  draws       {_drawn(card)}"
    if card.metrics:
        yield f"  validation  {_figures(card.metrics)}, means over sites"
    if (told := card.site_level) is not None:
        yield f"  privacy     site-level epsilon {told.epsilon:.2f} at delta {told.delta:g}: of sites, not of patients"
    versions = ", ".join(f"{name} {version}" for name, version in card.versions.items())
    yield f"  made with   {versions}, code {card.code[:16]}, data schema {card.data_schema[:16]}"
    yield "  made by" if card.sites else "  made by     sites that are not named"
    width = max(map(len, card.sites), default=0)
    for site, part in card.sites.items():
        yield f"    {site:<{width}}  {_part(part)}; {_privacy(card, site)}"


def line_of(models: Models, folder: Path) -> str:
    """Return what another release is that is kept, and whether it can be trusted."""
    try:
        return f"{_name(models.verify(folder).card)}, signature good"
    except ReleaseRefused as refusal:
        return f"Release {int(folder.name)}, NOT to be trusted: {refusal}"


def _name(card: Card) -> str:
    made = f"round {card.round} of {card.rounds} of run {card.run}"
    return f"Release {card.serial} of {card.date:%Y-%m-%d %H:%M} UTC: {made}"


def _result(card: Card) -> str:
    return "the result of its run" if card.chosen else "a round on the way of its run"


def _before(card: Card) -> str:
    return f"after the release of card {card.previous[:16]}" if card.previous else "its first release"


def _drawn(card: Card) -> str:
    told = card.drawing
    return f"{told['model']['kind']}, {', '.join(told['diseases'])}, {told['size']} x {told['size']} pixels"


def _part(part: SiteContribution) -> str:
    shares = ", ".join(f"{network} {share:.0%}" for network, share in part.shares.items())
    missed = f", missing in {sum(part.failed.values())}" if part.failed else ""
    return f"in {part.trained} round(s){missed}; {shares or 'no share'}"


def _privacy(card: Card, site: str) -> str:
    epsilon, delta = card.epsilon.get(site), card.delta.get(site)
    if epsilon is None:
        return "no privacy promised"
    return f"epsilon {epsilon:.2f} at {'a delta that is not told' if delta is None else f'delta {delta:g}'}"


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in sorted(metrics.items()))
