"""Who made a model, and how much of it: the shares of all rounds up to the one that is the result."""

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean

from fedgan.results.metrics import Round, SiteContribution


def contributions(rounds: Sequence[Round]) -> dict[str, SiteContribution]:
    """Return each site's contribution over ``rounds``, by name; a site that no round heard of is not among them."""
    sites = sorted({site for kept in rounds for site in (*kept.trained, *kept.failed, *kept.planned_shares)})
    return {site: _of_site(site, rounds) for site in sites}


def _of_site(site: str, rounds: Sequence[Round]) -> SiteContribution:
    return SiteContribution(
        trained=sum(site in kept.trained for kept in rounds),
        failed=dict(Counter(kept.failed[site] for kept in rounds if site in kept.failed)),
        shares=_means([kept.shares for kept in rounds], site),
        planned_shares=_means([kept.planned_shares for kept in rounds], site),
        traffic={
            way: fmean(carried)
            for way in ("to_site", "from_site")
            if (carried := [kept.traffic[site][way] for kept in rounds if site in kept.traffic])
        },
    )


def _means(of_rounds: Sequence[Mapping[str, Mapping[str, float]]], site: str) -> dict[str, float]:
    """Return a site's mean share of each network that any site can train, 0 where it had none.

    The mean is over the rounds after which the network was sent.
    """
    trained = dict.fromkeys(
        network
        for shares in of_rounds
        for of_site in shares.values()
        for network, share in of_site.items()
        if share > 0
    )

    def of_site_in(network: str) -> list[float]:
        sent = [shares for shares in of_rounds if any(network in of_site for of_site in shares.values())]
        return [shares.get(site, {}).get(network, 0.0) for shares in sent]

    return {network: fmean(of_site_in(network)) for network in trained}
