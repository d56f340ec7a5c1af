from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from fedgan.assembly import aggregation_in, networks_for, sharing_in
from fedgan.config import load
from fedgan.federated.aggregation import FedAvg, GanFedAvg
from fedgan.federated.compression import take_step
from fedgan.federated.rules import median, trimmed_mean
from fedgan.federated.server_step import Adaptive, Momentum, Plain
from fedgan.federated.shares import ShareRule
from fedgan.federated.sharing import Sharing
from fedgan.federated.site import weights_of
from fedgan.federated.spectral import as_matrix
from fedgan.federated.tensors import Entry, Role, Side, entries
from fedgan.gan.build import build_networks
from fedgan.records import GlobalModel, ScanCounts, SiteFailure, SiteUpdate, digest_of
from fedgan.settings import Simulation

PROPORTIONAL = ShareRule()
WEIGHT = Entry(Role.WEIGHT, Side.GENERATOR, "generator")
VALUES = st.floats(-100, 100, width=32)
MOVES = [Plain(), Momentum(1.0, 0.9), Adaptive(0.1, (0.5, 0.99), 1e-3)]


def aggregation(entries=None, **terms):
    return GanFedAvg(
        entries or {"w": WEIGHT},
        lambda counts: {
            "generator": (counts.abnormal, counts.normal),
            "critic": (counts.normal if counts.abnormal else 0,),
        },
        **terms,
    )


def update(site, delta, *, normal=1, abnormal=1, by_disease=()):
    tensors = {name: torch.as_tensor(values) for name, values in delta.items()}
    return SiteUpdate(site, 0, "", tensors, ScanCounts(normal, abnormal, 0, by_disease), {})


def model(**weights):
    return GlobalModel(0, {name: torch.as_tensor(values) for name, values in weights.items()})


def after(rule, before, updates):
    return rule.aggregate(before, updates)[0].weights


def one_round(rule, before, updates):
    """Judge and combine as the coordinator does; return the next model, the answers and how much each site counted."""
    remembering, answers = rule.judge(
        before, [replace(update, round=before.round, digest=before.digest) for update in updates]
    )
    moved, contribution = rule.aggregate(remembering, [answer for answer in answers if isinstance(answer, SiteUpdate)])
    return moved, answers, contribution


def ulps(first, second):
    """Return how many numbers of its type lie between two tensors at most."""
    return int((first.view(torch.int32).long() - second.view(torch.int32).long()).abs().max())


@given(st.lists(VALUES, min_size=1, max_size=5), st.lists(st.integers(1, 10**6), min_size=1, max_size=7))
def test_equal_updates_average_to_themselves(values, scans):
    before = model(w=torch.zeros(len(values)))

    moved = after(
        aggregation(), before, [update(f"S{n}", {"w": values}, normal=count) for n, count in enumerate(scans)]
    )

    assert ulps(moved["w"], torch.tensor(values) + 0.0) <= 1


@given(st.permutations(["A", "B", "C", "D"]))
def test_the_order_of_arrival_changes_nothing(order):
    deltas = {"A": (0.1, 0.7), "B": (1e8, -0.3), "C": (-1e8, 0.2), "D": (3e-7, 1.1)}
    updates = {site: update(site, {"w": deltas[site]}, normal=1 + number) for number, site in enumerate("ABCD")}

    moved = after(aggregation(), model(w=[1.0, 1.0]), [updates[site] for site in order])

    assert torch.equal(moved["w"], after(aggregation(), model(w=[1.0, 1.0]), list(updates.values()))["w"])


@given(st.lists(st.tuples(VALUES, st.integers(1, 1000)), min_size=1, max_size=6), VALUES)
def test_splitting_a_site_into_halves_changes_nothing(sites, before):
    whole = [update(f"S{n}", {"w": [step]}, normal=2 * half, abnormal=2 * half) for n, (step, half) in enumerate(sites)]
    first = whole[0]
    counts = ScanCounts(first.counts.normal // 2, first.counts.abnormal // 2)
    halves = [replace(first, site="S0a", counts=counts), replace(first, site="S0b", counts=counts), *whole[1:]]

    unsplit, split = (after(aggregation(), model(w=[before]), updates) for updates in (whole, halves))

    cancelled = torch.allclose(unsplit["w"], split["w"], rtol=0, atol=1e-13 * max(abs(before), 100))
    assert ulps(unsplit["w"] + 0.0, split["w"] + 0.0) <= 1 or cancelled


def test_the_model_that_was_asked_about_stays_as_it_is():
    before = model(w=[1.0])

    after(aggregation(), before, [update("A", {"w": [4.0]})])

    assert before.weights["w"].tolist() == [1.0]


def test_each_term_of_a_network_counts_by_the_scans_that_train_it():
    both = {"w": WEIGHT, "c": Entry(Role.WEIGHT, Side.CRITIC, "critic")}
    updates = [
        update("A", {"w": [4.0], "c": [4.0]}, normal=10, abnormal=30),
        update("B", {"w": [0.0], "c": [0.0]}, normal=30, abnormal=10),
        update("normals only", {"w": [0.0], "c": [0.0]}, normal=40, abnormal=0),
    ]

    moved, contribution = aggregation(both).aggregate(model(w=[0.0], c=[0.0]), updates)

    assert moved.weights["w"].item() == pytest.approx(4 * (30 / 40 + 10 / 80) / 2)
    assert moved.weights["c"].item() == pytest.approx(1.0)
    assert contribution.shares["normals only"] == pytest.approx({"generator": (0 + 40 / 80) / 2, "critic": 0.0})


@given(
    sites=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).filter(any), min_size=1, max_size=6),
    cap=st.floats(0.2, 1),
    floor=st.floats(0, 0.2),
)
def test_no_site_has_more_of_a_network_than_the_cap_nor_less_than_the_floor(sites, cap, floor):
    updates = [
        update(f"{number}", {"w": [0.0]}, normal=normal, abnormal=abnormal)
        for number, (normal, abnormal) in enumerate(sites)
    ]

    _, contribution = aggregation(share_rule=ShareRule(cap=cap, floor=floor)).aggregate(model(w=[0.0]), updates)

    found = [of_site["generator"] for of_site in contribution.shares.values()]
    assert sum(found) == pytest.approx(1)
    assert max(found) <= max(cap, 1 / len(sites)) + 1e-9
    assert min(found) >= min(floor, 1 / len(sites)) - 1e-9


def test_a_term_that_no_site_can_train_takes_nothing_from_the_others():
    updates = [update("A", {"w": [4.0]}, normal=10, abnormal=0), update("B", {"w": [0.0]}, normal=30, abnormal=0)]

    moved = after(aggregation(), model(w=[0.0]), updates)

    assert moved["w"].item() == pytest.approx(1.0)


def test_a_network_that_no_site_can_train_stays_as_it_is():
    critic = {"c": Entry(Role.WEIGHT, Side.CRITIC, "critic")}

    moved = after(aggregation(critic), model(c=[1.0]), [update("A", {"c": [5.0]}, abnormal=0)])

    assert moved["c"].tolist() == [1.0]


def test_a_row_of_the_label_head_counts_by_its_own_disease():
    head = {"w": replace(WEIGHT, by_disease=True)}
    updates = [
        update("A", {"w": [[1.0], [1.0], [1.0]]}, by_disease=(3, 0, 0)),
        update("B", {"w": [[5.0], [5.0], [5.0]]}, by_disease=(1, 2, 0)),
    ]

    moved = after(aggregation(head), model(w=[[0.0], [0.0], [7.0]]), updates)

    assert moved["w"].flatten().tolist() == [2.0, 5.0, 7.0]


def test_the_variance_between_sites_is_part_of_the_pooled_variance():
    statistics = {name: replace(WEIGHT, role=Role.STATISTIC) for name in ("n.running_mean", "n.running_var")}
    first, second = torch.randn(50, 3, dtype=torch.float64), 2 + torch.randn(150, 3, dtype=torch.float64)
    before = model(**{"n.running_mean": torch.zeros(3), "n.running_var": torch.ones(3)})
    updates = [
        update(
            site,
            {"n.running_mean": scans.mean(0).float(), "n.running_var": (scans.var(0, correction=0) - 1).float()},
            normal=len(scans),
            abnormal=0,
        )
        for site, scans in (("A", first), ("B", second))
    ]

    moved = after(aggregation(statistics), before, updates)

    everything = torch.cat([first, second])
    assert moved["n.running_mean"] == pytest.approx(everything.mean(0).float().numpy(), abs=1e-5)
    assert moved["n.running_var"] == pytest.approx(everything.var(0, correction=0).float().numpy(), abs=1e-5)


def test_counters_stay_integers():
    counter = {"n": replace(WEIGHT, role=Role.COUNTER)}

    moved = after(aggregation(counter), model(n=5), [update("A", {"n": 3}), update("B", {"n": 40})])

    assert (moved["n"].dtype, moved["n"].item()) == (torch.int64, 45)


@given(st.integers(0, 2**31), st.sampled_from(MOVES))
@settings(max_examples=10)
def test_no_server_step_makes_a_variance_negative_in_a_hundred_rounds(seed, move):
    norm = {
        "w": WEIGHT,
        "n.running_mean": replace(WEIGHT, role=Role.STATISTIC),
        "n.running_var": replace(WEIGHT, role=Role.STATISTIC),
        "n.num_batches_tracked": replace(WEIGHT, role=Role.COUNTER),
    }
    rng = torch.Generator().manual_seed(seed)
    state = model(
        **{"w": torch.zeros(4), "n.running_mean": torch.zeros(4), "n.running_var": torch.ones(4)},
        **{"n.num_batches_tracked": 0},
    )
    rule = aggregation(norm, move=move)

    for _ in range(100):
        shrunk = torch.rand(2, 4, generator=rng) * state.weights["n.running_var"]
        state, _ = rule.aggregate(
            state,
            [
                update(
                    site,
                    {
                        "w": torch.randn(4, generator=rng),
                        "n.running_mean": torch.randn(4, generator=rng),
                        "n.running_var": -shrunk[number],
                        "n.num_batches_tracked": 7,
                    },
                )
                for number, site in enumerate("AB")
            ],
        )

        assert bool((state.weights["n.running_var"] >= 0).all())
    assert state.weights["n.num_batches_tracked"].item() == 700
    assert bool(state.weights["w"].isfinite().all())


def test_momentum_goes_on_where_a_kept_round_left_it():
    rule, updates = aggregation(move=Momentum(1.0, 0.5)), [update("A", {"w": [1.0]})]

    first, _ = rule.aggregate(model(w=[0.0]), updates)
    second, _ = rule.aggregate(GlobalModel(1, first.weights, first.memory), updates)

    assert [first.weights["w"].item(), second.weights["w"].item()] == [1.0, 2.5]


def test_the_first_adaptive_step_is_measured_by_itself():
    moved = after(
        aggregation(move=Adaptive(0.1, (0.0, 0.0), 1e-6)), model(w=[0.0, 0.0]), [update("A", {"w": [3, -8.0]})]
    )

    assert moved["w"].tolist() == pytest.approx([0.1, -0.1], rel=1e-3)


def test_the_average_that_draws_maps_follows_slowly_if_asked_to():
    average = {"w": replace(WEIGHT, role=Role.AVERAGE)}

    moved = after(
        aggregation(average, average_decay=0.75, move=Momentum(9, 0)), model(w=[0.0]), [update("A", {"w": [4.0]})]
    )

    assert moved["w"].item() == 1.0


class Critics(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Conv2d(1, 1, 3)
        self.critic = nn.Sequential(spectral_norm(nn.Conv2d(1, 8, 4)), spectral_norm(nn.ConvTranspose2d(8, 6, 3)))

    def generators(self):
        return self.generator.parameters()

    def critics(self):
        return self.critic.parameters()

    def averages(self):
        return {}

    def by_disease(self):
        return ()


def effective_norms(weights, found):
    """Return the largest singular value of each weight as its layer uses it: divided by what the vectors say."""
    norms = []
    for name, entry in found.items():
        if entry.role is Role.VECTOR and name.endswith("u"):
            matrix = as_matrix(weights[entry.normalises], entry.axis).double()
            left, right = weights[name].double(), weights[f"{name[:-1]}v"].double()
            norms.append(float(torch.linalg.svdvals(matrix)[0] / (left @ matrix @ right)))
    return norms


@given(st.integers(0, 2**31))
@settings(max_examples=10)
def test_averaged_weights_keep_the_lipschitz_bound_that_averaged_vectors_break(seed):
    torch.manual_seed(seed)
    sites = [Critics().requires_grad_(False) for _ in range(3)]
    for site in sites:
        for _ in range(5):
            site.critic(torch.randn(2, 1, 8, 8))
    start, found = weights_of(Critics()), entries(Critics())
    updates = [
        update(f"S{n}", {name: after - start[name] for name, after in weights_of(site).items()})
        for n, site in enumerate(sites)
    ]

    aware = after(aggregation(found), GlobalModel(0, start), updates)
    naive = after(FedAvg(found), GlobalModel(0, start), updates)

    assert effective_norms(aware, found) == pytest.approx([1.0, 1.0], abs=1e-3)
    assert max(effective_norms(naive, found)) > 1.01


def test_a_layer_with_the_new_vectors_uses_a_weight_of_norm_one():
    critics = Critics()
    found, before = entries(critics), weights_of(critics)
    delta = {name: torch.randn_like(tensor) for name, tensor in before.items()}

    critics.load_state_dict(after(aggregation(found), GlobalModel(0, before), [update("A", delta)]))

    used = critics.eval().critic[0].weight.flatten(1)
    assert torch.linalg.svdvals(used)[0].item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("move", [Plain(), Momentum(1.0, 0.9)])
@pytest.mark.parametrize("preset", ["tagsagan", "tagsagan_private"])
def test_our_discriminators_keep_norm_one_over_rounds_of_sites_that_differ(preset, move):
    told = load("simulate", Simulation, [f"model={preset}", "model.spectral_norm=true"]).model
    networks = [build_networks(told, num_diseases=2, seed=seed, device=torch.device("cpu")) for seed in range(4)]
    held, sites = networks[0], [weights_of(site) for site in networks[1:]]
    found, state = entries(held), GlobalModel(0, weights_of(held))
    rule = replace(aggregation(found, move=move), driven_by=held.driven_by)
    counts = ScanCounts(4, 4, 0, (2, 2))

    for number in range(3):
        deltas = [{name: 0.1**number * (weights[name] - state.weights[name]) for name in found} for weights in sites]
        state, _ = rule.aggregate(
            state, [SiteUpdate(site, number, "", delta, counts, {}) for site, delta in zip("ABC", deltas, strict=True)]
        )
        held.load_state_dict(state.weights)

        used = [module.weight for module in held.eval().modules() if is_parametrized(module, "weight")]
        largest = [torch.linalg.svdvals(weight.flatten(1))[0].item() for weight in used]
        assert len(used) >= 8
        assert largest == pytest.approx([1.0] * len(used), abs=1e-3)


def test_a_median_is_not_moved_by_a_site_that_claims_a_million_scans():
    updates = [update(site, {"w": [1.0]}) for site in "AB"] + [update("C", {"w": [1e6]}, normal=10**6)]

    assert after(aggregation(rule=median), model(w=[0.0]), updates)["w"].item() == 1.0


def test_multi_krum_leaves_out_the_site_that_lies_apart():
    steps = {"A": 1.0, "B": 1.1, "C": 0.9, "D": 1.0, "E": -5.0}

    moved, answers, contribution = one_round(
        aggregation(suspects=0.2), model(w=[0.0]), [update(site, {"w": [step]}) for site, step in steps.items()]
    )

    assert moved.weights["w"].item() == pytest.approx(1.0)
    assert answers[4] == SiteFailure("E", 0, "Distant")
    assert "E" not in contribution.shares
    assert contribution.planned["E"] == {"generator": pytest.approx(0.2)}


def test_a_long_update_is_shortened_to_the_median_if_asked_to():
    updates = [update(site, {"w": [step]}) for site, step in (("A", 1.0), ("B", 1.0), ("C", 4.0))]

    moved, contribution = aggregation(clip=1.0).aggregate(model(w=[0.0]), updates)

    assert moved.weights["w"].item() == pytest.approx(1.0)
    assert [contribution.shares[site]["generator"] for site in "ABC"] == pytest.approx([1 / 3, 1 / 3, 1 / 12])


@pytest.mark.parametrize("rule", [median, partial(trimmed_mean, cut=0.2)], ids=["median", "trimmed"])
def test_sites_count_alike_by_a_rule_that_looks_at_no_shares(rule):
    updates = [update("A", {"w": [1.0]}), update("B", {"w": [1.0]}, normal=90), update("C", {"w": [1.0]}, normal=9)]

    _, _, contribution = one_round(aggregation(rule=rule, share_rule=ShareRule(cap=0.9)), model(w=[0.0]), updates)

    assert contribution.shares == contribution.planned
    assert [contribution.shares[site]["generator"] for site in "ABC"] == pytest.approx([1 / 3] * 3)


def test_only_networks_that_were_sent_are_counted():
    both = {"w": WEIGHT, "c": Entry(Role.WEIGHT, Side.CRITIC, "critic")}
    rule = aggregation(both, sharing=Sharing(9, {"w": 1, "c": 2}))

    first, _, without = one_round(rule, model(w=[0.0], c=[0.0]), [update("A", {"w": [1.0]})])
    _, _, with_critic = one_round(rule, first, [update("A", {"w": [1.0], "c": [1.0]})])

    assert without.shares == without.planned == {"A": {"generator": 1.0}}
    assert with_critic.shares == with_critic.planned == {"A": {"generator": 1.0, "critic": 1.0}}


def test_a_site_that_is_missing_stays_planned_for():
    rule = aggregation()
    first, _, _ = one_round(
        rule, model(w=[0.0]), [update("A", {"w": [1.0]}), update("B", {"w": [1.0]}, normal=3, abnormal=3)]
    )

    _, _, contribution = one_round(rule, first, [update("A", {"w": [1.0]})])

    assert contribution.shares == {"A": {"generator": 1.0}}
    assert contribution.planned == {"A": {"generator": 0.25}, "B": {"generator": 0.75}}


@pytest.mark.parametrize("chosen", ["gan_fedavg", "median", "trimmed", "krum", "fedavg"])
@pytest.mark.parametrize("method", ["tagsagan", "sagan"])
def test_every_choice_combines_every_model_of_ours(chosen, method, tiny):
    told = tiny(f"aggregation={chosen}", f"model={method}", "model.width=4", "model.critic_width=4")
    networks = networks_for(told)
    rule = aggregation_in(told, networks)
    before = GlobalModel(0, weights_of(networks))
    sent = sharing_in(told, networks).sent_after(0)
    delta = {name: torch.full_like(tensor, 0.5) for name, tensor in before.weights.items() if name in sent}
    counts = ScanCounts(4, 4, 0, (2, 2))
    updates = [SiteUpdate(site, 0, digest_of(before.weights), delta, counts, {}) for site in "ABC"]

    moved, answers, _ = one_round(rule, before, updates)

    trained = networks.driven_by(counts)
    assert answers[:2] == updates[:2]
    assert answers[2] == (SiteFailure("C", 0, "Distant") if chosen == "krum" else updates[2])
    for name, entry in entries(networks).items():
        expected = 0.5 if chosen == "fedavg" or any(trained[entry.network]) else 0.0
        assert torch.allclose(moved.weights[name], before.weights[name] + expected, atol=1e-6), name


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_the_model_moves_by_what_travels_and_makes_up_for_what_did_not_fit(kind):
    exact, coarse = aggregation(), aggregation(model_encodings={"w": kind})
    truth = sent = model(w=torch.zeros(300))
    rng = torch.Generator().manual_seed(0)

    for number in range(5):
        updates = [update("A", {"w": torch.randn(300, generator=rng)})]
        before = sent
        truth, _ = exact.aggregate(truth, updates)
        sent, _ = coarse.aggregate(sent, updates)

        assert sent.round == number + 1
        assert sent.step.base == digest_of(before.weights)
        assert torch.equal(take_step(before.weights, sent.step.moved)["w"], sent.weights["w"])

    assert not torch.equal(truth.weights["w"], sent.weights["w"])
    assert torch.allclose(truth.weights["w"], sent.weights["w"], atol=0.02)
    assert torch.allclose(truth.weights["w"], sent.weights["w"] + sent.memory["lost/w"], atol=1e-5)


def test_a_step_names_what_it_replaces_and_leaves_out_what_stayed():
    counted = {
        "w": WEIGHT,
        "n": replace(WEIGHT, role=Role.COUNTER),
        "idle": Entry(Role.WEIGHT, Side.CRITIC, "critic"),
    }
    rule = aggregation(counted, model_encodings={"w": "int8"})

    after, _ = rule.aggregate(
        model(w=[0.0], n=1, idle=[2.0]), [update("A", {"w": [1.0], "n": 2, "idle": [0.0]}, abnormal=0)]
    )

    assert set(after.step.moved) == {"w", "w/scale"}
    assert {name: tensor.item() for name, tensor in after.step.replaced.items()} == {"n": 3}


def test_the_settings_choose_the_server_optimizer(tiny):
    told = tiny("server_optimizer=fedadam", "server_optimizer.rate=0.5")

    networks = networks_for(told)
    rule = aggregation_in(told, networks)

    assert rule.move == Adaptive(0.5, (0.5, 0.99), 0.001)
