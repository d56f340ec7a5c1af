"""Whom no other sites agree with: updates of the usual length that lead elsewhere, as noise or a flipped sign does.

Sites' steps have less and less in common as training settles, so no single round is a witness: what is looked at is
the mean over the rounds so far of how well a site's steps agree with the second-best agreeing other site. One
accomplice is not enough to be agreed with, and a hospital unlike most needs only two like itself. Sites are refused who
were apart by the rounds before too: among few sites an honest one is, now and then, for one round.
"""

from collections.abc import Collection, Mapping, Sequence
from statistics import median

import torch
from torch import Tensor

from fedgan.federated.compression import names_in, part_of, reader
from fedgan.federated.tensors import Entry
from fedgan.records import SiteUpdate, Weights
from fedgan.streams import generator_for

SAMPLE = 2**17
"""Numbers of each group of tensors that are looked at, from places that no site can know before it has answered."""

AT_ONCE = 2**13
"""Numbers of each update that are multiplied at a time: so few that those of fifty stay near the processor."""

FEWEST = 4
"""Sites without which none can be told from the others: three honest ones and one that is not."""

CLEAR = 0.05
"""Median agreement below which sites have too little in common to tell who is apart."""

APART, FAR_APART = 0.25, 0.1
"""Share of the median agreement below which a site is apart, and so far apart that one group of tensors is enough."""

AGREEMENT = "agreement/"
"""Begins the names of what the coordinator remembers of it: by group and site, a sum over rounds and their number."""


def agreements(updates: Sequence[SiteUpdate], entries: Mapping[str, Entry]) -> dict[str, dict[str, float]]:
    """Return how well each site's step agrees with that of the second-best agreeing other one: a cosine.

    For each of ``Entry.moves_with`` by itself; what fewer than four sites move is left out.
    """
    found: dict[str, dict[str, float]] = {}
    updates = sorted(updates, key=lambda update: update.site)
    for group in dict.fromkeys(group for entry in entries.values() if (group := entry.moves_with)):
        products = _products(updates, entries, group)
        moving = [number for number in range(len(updates)) if products[number, number] > 0]
        if len(moving) >= FEWEST:
            lengths = products.diagonal()[moving].sqrt()
            cosines = products[moving][:, moving] / lengths / lengths[:, None]
            second = cosines.fill_diagonal_(-2).sort(dim=1, descending=True).values[:, 1]
            found[group] = {updates[number].site: float(second[row]) for row, number in enumerate(moving)}
    return found


def _products(updates: Sequence[SiteUpdate], entries: Mapping[str, Entry], group: str) -> Tensor:
    """Return the inner products of the updates' steps of one group of tensors, over a sample of its numbers: (K, K)."""
    if not updates:
        return torch.zeros(0, 0, dtype=torch.float64)
    names = [name for name in names_in(updates[0].delta) if entries[name].moves_with == group]
    sizes = {name: updates[0].delta[name].numel() for name in names}
    share = min(1.0, SAMPLE / max(1, sum(sizes.values())))
    # The sites' own first numbers choose the places: nobody knows them before all have answered.
    told = [float(part_of(update.delta, name, slice(0, 1)).sum()) for update in updates for name in names[:1]]
    rng = generator_for(0, "places", group, *[number.hex() for number in told])
    spans = {}
    for name, size in sizes.items():
        length = max(1, round(share * size))
        start = int(torch.randint(size - length + 1, (), generator=rng))
        spans[name] = range(start, start + length)
    return inner_products([update.delta for update in updates], spans)


def inner_products(deltas: Sequence[Weights], spans: Mapping[str, range]) -> Tensor:
    """Return the inner products of several updates' steps, in float64, over ``spans`` of flat tensors: (K, K)."""
    products = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for name, span in spans.items():
        readers = [reader(delta, name) for delta in deltas]
        for start in span[::AT_ONCE]:
            part = slice(start, min(start + AT_ONCE, span.stop))
            steps = torch.stack([read(part) for read in readers]).double()
            products += steps @ steps.T
    return products


def remember(memory: Weights, found: Mapping[str, Mapping[str, float]]) -> dict[str, Tensor]:
    """Return what to remember of the agreements that were ``found`` in a round, with those of the rounds before."""
    kept = {}
    for group, of_sites in found.items():
        for site, cosine in of_sites.items():
            key = f"{AGREEMENT}{group}/{site}"
            kept[key] = memory.get(key, torch.zeros(2, dtype=torch.float64)) + torch.tensor([cosine, 1.0]).double()
    return kept


def apart(memory: Weights, found: Mapping[str, Mapping[str, float]], one_class: Collection[str] = ()) -> set[str]:
    """Return the sites of this round that are apart in all groups of tensors that can be judged, or far apart in one.

    Who has scans of ``one_class`` only honestly leads elsewhere with one player, and must be apart in all. They are
    judged by what the ``memory`` holds of them, with this round or without.
    """
    agreeing: dict[str, list[float]] = {}
    for group, of_sites in found.items():
        keys = {site: f"{AGREEMENT}{group}/{site}" for site in of_sites}
        told = {site: memory[key].tolist() for site, key in keys.items() if key in memory}
        means = {site: total / rounds for site, (total, rounds) in told.items()}
        usual = median(means.values()) if len(means) >= FEWEST else 0.0
        if usual >= CLEAR:
            for site, mean in means.items():
                agreeing.setdefault(site, []).append(mean / usual)
    in_all = {site for site, of_groups in agreeing.items() if max(of_groups) < APART}
    far_in_one = {site for site, of_groups in agreeing.items() if min(of_groups) < FAR_APART}
    return in_all | (far_in_one - set(one_class))
