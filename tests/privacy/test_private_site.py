"""A site that keeps a promise to its patients: what leaves it, what it charges, and when it stops."""

import sqlite3
from dataclasses import asdict, replace

import pytest
import torch

from fedgan.assembly import build_site, networks_for
from fedgan.errors import SettingsError
from fedgan.federated.site import weights_of
from fedgan.privacy.ledger import Ledger
from fedgan.records import GlobalModel, RoundTask, ScanCounts, SiteFailure, SiteUpdate, digest_of
from fedgan.simulation import load_cohorts, simulated_site

PRIVATE = ("privacy=patient", "privacy.cohort=12", "privacy.patients=4", "privacy.delta=0.005")


@pytest.fixture
def site_of(tiny, tmp_path):
    def build(*overrides, name="A"):
        settings = tiny(*PRIVATE, *overrides)
        networks = networks_for(settings)
        return simulated_site(settings, name, load_cohorts(settings)[name], networks, memory=tmp_path / name)

    return build


def task(site, number=0, local_steps=2):
    return RoundTask(GlobalModel(number, weights_of(site.networks)), local_steps)


def test_nothing_leaves_but_noisy_steps_and_the_epsilon_that_is_spent(site_of):
    site = site_of()

    update = site.answer(task(site))

    ledger = site.recipe.promise.ledger
    assert update.metrics == {"privacy/epsilon": ledger.spent(), "privacy/delta": ledger.delta}
    assert update.counts == ScanCounts(1, 1, 1, (1, 1))
    assert all(torch.isfinite(delta).all() for delta in update.delta.values())


def test_no_patient_is_looked_at_to_see_whether_the_trained_weights_draw_a_map(site_of):
    seen = []
    sites = [site_of("local_steps=1", f"seed={seed}") for seed in (0, 1)]
    sites[1].train_cohort = sites[1].train_cohort.take([])  # nobody at all

    for site in sites:
        validate = site.recipe.validate
        site.recipe = replace(
            site.recipe, validate=lambda networks, cohort, of=validate: seen.append(cohort) or of(networks, cohort)
        )
        assert isinstance(site.answer(task(site, local_steps=1)), SiteUpdate)

    one, other = ({**asdict(cohort), "images": cohort.images.tolist()} for cohort in seen)
    assert str(one) == str(other)
    assert not seen[0].images.any()


def test_the_counts_say_nothing_of_the_cohort(site_of):
    assert site_of("data.patients=30").counts == site_of(name="B").counts


def test_a_private_answer_cannot_be_replayed_and_is_charged_each_time(site_of):
    site = site_of()
    asked = task(site)

    first, second = (site.answer(asked) for _ in range(2))

    name = "forward_generator.out.weight"
    assert not torch.equal(first.delta[name], second.delta[name])
    assert first.metrics["privacy/epsilon"] < second.metrics["privacy/epsilon"]


def test_the_ledger_is_charged_for_every_step_that_either_player_takes(site_of):
    site = site_of("aggregation.moments=both", "model.critic_steps=2", "rounds=9")
    asked = task(site, local_steps=3)

    update = site.answer(asked)

    reserved, settled = site.recipe.promise.ledger.lines()
    _, kept = site.memory.recall(1)
    taken = [
        {int(kept[name]) for name in kept if name.startswith(f"moments/{side}/") and name.endswith("/step")}
        for side in ("critics", "generators")
    ]
    assert taken == [{6}, {3}]
    assert reserved.steps == 9
    assert reserved.model == digest_of(asked.model.weights)
    assert settled.model == digest_of(update.delta)


def test_a_whole_run_costs_what_was_promised_and_the_round_after_it_is_refused_by_name(site_of, caplog):
    site = site_of("privacy.epsilon=2")

    answers = [site.answer(task(site, number)) for number in range(3)]

    assert 1.9 < answers[1].metrics["privacy/epsilon"] <= 2
    assert answers[2] == SiteFailure("A", 2, "BudgetExhausted")
    assert "left; this round would make it" in caplog.text


def test_a_site_whose_ceiling_is_lower_than_the_run_needs_stops_before_it_trains(site_of):
    site = site_of("privacy.epsilon=8", "privacy.ceiling=0.5")
    before = weights_of(site.networks)

    answer = site.answer(task(site))

    assert answer == SiteFailure("A", 0, "BudgetExhausted")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(site.networks).items())


def test_a_crash_in_training_keeps_the_charge(site_of):
    site = site_of()

    def crash(step, losses):
        raise KeyboardInterrupt

    site.on_step = crash
    with pytest.raises(KeyboardInterrupt):
        site.answer(task(site))

    assert [line.settles for line in site_of().recipe.promise.ledger.lines()] == [None]


def test_a_ledger_that_cannot_be_trusted_keeps_the_site_from_training(site_of):
    site = site_of()
    site.answer(task(site))
    database = sqlite3.connect(site.recipe.promise.ledger.path)
    database.executescript("DROP TRIGGER nothing_goes; DELETE FROM lines")
    database.close()

    assert site.answer(task(site, 1)) == SiteFailure("A", 1, "LedgerError")


def test_a_task_without_steps_is_answered_with_nothing(site_of):
    update = site_of().answer(task(site_of(), local_steps=0))

    assert (update.delta, update.metrics) == ({}, {})


@pytest.mark.parametrize(
    ("override", "needed"),
    [
        ("select=best", "select=last"),
        ("compare=true", "compare=false"),
        ("precision=bfloat16", "precision=float32 or auto"),
        ("aggregation.share=generator", "aggregation.share=both"),
        ("privacy.delta=0.01", "is no promise to each of 12 patients"),
        ("privacy.patients=13", "patients 13 is larger than cohort 12"),
    ],
)
def test_settings_that_contradict_the_promise_are_refused(tiny, override, needed):
    with pytest.raises(SettingsError, match=needed):
        tiny(*PRIVATE, override)


def test_a_private_site_without_a_place_for_its_ledger_is_refused(tiny):
    settings = tiny(*PRIVATE)

    with pytest.raises(SettingsError, match="site A keeps no ledger of what it spends"):
        build_site(settings, "A", load_cohorts(settings)["A"], networks_for(settings))


def test_a_simulated_run_keeps_an_account_for_each_site_and_reports_it(tiny_overrides, tmp_path):
    from fedgan.cli import main  # noqa: PLC0415 - with the command line come the engines

    code = main([*tiny_overrides, *PRIVATE, "name=private"])

    run = tmp_path / "private"
    report = (run / "report.html").read_text(encoding="utf-8")
    ledgers = [
        Ledger(
            run / "sites" / site / "privacy" / "ledger.sqlite",
            anchor=run / "sites" / site / "ledger.anchor",
            site=site,
            ceiling=8,
            delta=0.005,
        )
        for site in "AB"
    ]
    assert code == 0
    assert [len(ledger.lines()) for ledger in ledgers] == [4, 4]
    assert "Privacy spent" in report
    assert f"{ledgers[0].spent():.4g}" in report
