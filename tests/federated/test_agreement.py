from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedgan.federated.aggregation import GanFedAvg
from fedgan.federated.agreement import agreements, apart, remember
from fedgan.federated.tensors import Entry, Role, Side
from fedgan.records import GlobalModel, ScanCounts, SiteFailure, SiteUpdate, digest_of

ENTRIES = {"g": Entry(Role.WEIGHT, Side.GENERATOR, "g"), "c": Entry(Role.WEIGHT, Side.CRITIC, "c")}
SIZE = 4000


def common(seed=0):
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))


def update(site, g, c=None):
    return SiteUpdate(site, 0, "", {"g": g, "c": torch.zeros(SIZE) if c is None else c}, ScanCounts(1), {})


def honest(site, number=0):
    """Return a step that half agrees with every other honest site's."""
    rng = torch.Generator().manual_seed(100 * number + ord(site))
    return update(site, common(number) + torch.randn(SIZE, generator=rng), common(number + 50))


def attacker(kind, number=0):
    step = honest("Z", number)
    if kind == "flipped":
        return update("Z", -step.delta["g"], -step.delta["c"])
    rng = torch.Generator().manual_seed(10_000 + number)
    return update("Z", torch.randn(SIZE, generator=rng), torch.randn(SIZE, generator=rng))


def after(rounds):
    """Return who is apart after rounds of updates."""
    memory, found = {}, {}
    for updates in rounds:
        found = agreements(updates, ENTRIES)
        memory |= remember(memory, found)
    return apart(memory, found)


@pytest.mark.parametrize("kind", ["flipped", "random"])
def test_who_leads_where_nobody_goes_is_apart_from_the_first_round(kind):
    assert after([[honest("A"), honest("B"), honest("C"), attacker(kind)]]) == {"Z"}


@pytest.mark.parametrize("player", ["g", "c"])
def test_who_flips_one_player_alone_is_apart_too(player):
    liar = honest("Z")
    flipped = replace(liar, delta={**liar.delta, player: -liar.delta[player]})

    assert after([[honest("A"), honest("B"), honest("C"), flipped]]) == {"Z"}


def test_who_has_scans_of_one_class_only_may_lead_elsewhere_with_one_player():
    model = GlobalModel(0, {"g": torch.zeros(SIZE), "c": torch.zeros(SIZE)})
    rule = GanFedAvg(ENTRIES, lambda counts: {"g": (counts.labelled,), "c": (counts.labelled,)})
    other = honest("Z")
    updates = [replace(honest(site), digest=model.digest, counts=ScanCounts(1, 1)) for site in "ABC"]
    one_class = replace(other, digest=model.digest, delta={**other.delta, "g": -other.delta["g"]})

    def judged_again(update):
        remembering, _ = rule.judge(model, [*updates, update])
        return rule.judge(remembering, [*updates, update])[1][3]

    assert judged_again(one_class) == one_class
    assert judged_again(replace(one_class, counts=ScanCounts(1, 1))) == SiteFailure("Z", 0, "Apart")


def test_honest_sites_are_never_apart():
    assert after([[honest(site, number) for site in "ABCD"] for number in range(5)]) == set()


def test_sites_that_have_settled_are_not_told_apart():
    settled = [[attacker("random", number) for number in range(4)]]
    names = [update(site, *step.delta.values()) for site, step in zip("ABCD", settled[0], strict=True)]

    assert after([names]) == set()


def test_one_round_does_not_undo_what_earlier_ones_showed():
    rounds = [[honest(site, number) for site in "ABCD"] for number in range(4)]
    last = [honest("A", 9), honest("B", 9), honest("C", 9), update("D", attacker("random").delta["g"], common(1))]

    assert after([*rounds, last]) == set()


def test_a_hospital_unlike_most_needs_two_like_itself():
    drawn = {site: torch.Generator().manual_seed(ord(site)) for site in "XYV"}
    unlike = [update(site, common(7) + torch.randn(SIZE, generator=rng)) for site, rng in drawn.items()]

    assert after([[honest(site) for site in "ABC"] + unlike]) == set()


def test_of_three_sites_none_can_be_told_apart():
    assert agreements([honest("A"), honest("B"), attacker("flipped")], ENTRIES) == {}


@given(st.permutations(["A", "B", "C", "D"]))
def test_agreements_do_not_depend_on_the_order_of_arrival(order):
    found = agreements([honest(site) for site in order], ENTRIES)

    assert found == agreements([honest(site) for site in "ABCD"], ENTRIES)


def test_a_site_that_is_apart_is_remembered_and_refused_if_it_is_so_again():
    model = GlobalModel(0, {"g": torch.zeros(SIZE), "c": torch.zeros(SIZE)})
    rule = GanFedAvg(ENTRIES, lambda counts: {"g": (counts.labelled,), "c": (counts.labelled,)})
    digest = digest_of(model.weights)
    updates = [
        SiteUpdate(each.site, 0, digest, each.delta, each.counts, {})
        for each in (honest("A"), honest("B"), honest("C"), attacker("flipped"))
    ]

    remembering, at_first = rule.judge(model, updates)
    _, then = rule.judge(remembering, updates)

    assert at_first == updates
    assert "agreement/generator/Z" in remembering.memory
    assert then == [*updates[:3], SiteFailure("Z", 0, "Apart")]
    _, all_of_them = GanFedAvg(ENTRIES, rule.driven_by, refuse_apart=False).judge(remembering, updates)
    assert all_of_them == updates
