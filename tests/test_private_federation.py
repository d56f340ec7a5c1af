"""A private run between three hospitals, one with hardly any privacy left to spend: real processes, real TLS."""

import json
import time
from contextlib import ExitStack

import pytest
import yaml

from client.policy import read_policy
from client.privacy import ledger_of
from fedgan.audit import broken_links
from fedgan.config import load
from fedgan.privacy.accounting import Releases, epsilon_of
from fedgan.privacy.build import Length, build_mechanism
from fedgan.processes import free_port, wait_until_open
from fedgan.results.metrics import Metrics
from fedgan.settings import Deployment, PatientPrivacy
from server.demo import DISEASE, SITES, SIZE, WAIT_S, Stage, allow, enrol, has_last
from server.home import Home

pytestmark = pytest.mark.slow

ROUNDS, SHORT = 3, "C"
"""Of the run; and the site whose ceiling lies between what one round costs and what two do."""

SETTINGS = (
    "name=private",
    "quorum=2",
    f"rounds={ROUNDS}",
    "local_steps=2",
    f"data.size={SIZE}",
    f"data.diseases=[{DISEASE}]",
    "model=tagsagan_private",
    "privacy=patient",
    "privacy.cohort=40",
    "privacy.patients=4",
    "privacy.delta=0.002",
)


@pytest.fixture(scope="module")
def asked() -> tuple[Deployment, Releases]:
    """Return the run's settings, and what a round of it releases."""
    settings = load("server", Deployment, SETTINGS)
    assert isinstance(settings.privacy, PatientPrivacy)
    steps, critic_steps = settings.local_steps, settings.model.critic_steps
    mechanism = build_mechanism(settings.privacy, Length(settings.rounds, steps, critic_steps))
    return settings, mechanism.releases(steps)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, asked):
    """Return the folder in which three sites trained, what was said there, and the ceiling of the short site."""
    settings, one_round = asked
    delta = settings.privacy.delta
    ceiling = sum(epsilon_of([one_round] * rounds, delta=delta) for rounds in (1, 2)) / 2
    said = []
    stage = Stage(tmp_path_factory.mktemp("private") / "played", said.append)
    home = Home(stage.folder / "federation")
    stage.command("fed-server", "init", "--sites", ",".join(SITES), "--address", f"127.0.0.1:{free_port()}")
    with ExitStack() as running:
        link = running.enter_context(stage.keep("up", "fed-server", "up"))
        for port in (home.federation.port, home.federation.link_port):
            wait_until_open(port, link, stage.folder / "up.log")
        enrol(stage, home, SITES)
        for site in SITES:
            allow(stage, site)
            promise(stage, site, epsilon=ceiling if site == SHORT else 2 * settings.privacy.epsilon, delta=delta)
            running.enter_context(stage.keep(f"site-{site}", "fed-client", "--site", site))
        stage.command("fed-server", *SETTINGS)
        deadline = time.monotonic() + WAIT_S
        while not all(has_last(home, stage.folder / f"site-{site}") for site in SITES):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        stage.command("fed-client", "--site", SHORT, "model")
    stage.command("fed-client", "--site", SHORT, "privacy")
    return stage.folder, said, ceiling


def promise(stage, site, *, epsilon, delta):
    """Write into a site's policy what its patients may be exposed to."""
    file = stage.folder / f"site-{site}" / "policy.yaml"
    policy = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**policy, "privacy": {"epsilon": epsilon, "delta": delta}}), encoding="utf-8")


def ledger_at(folder, site):
    home = folder / f"site-{site}"
    return ledger_of(site, home, read_policy(home / "policy.yaml"))


def events_in(home):
    return [json.loads(line) for line in (home / "audit.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_site_at_its_ceiling_halts_and_the_round_goes_on_without_it(trained):
    folder, _, _ = trained

    run = folder / "federation/runs/private"
    metrics = Metrics.model_validate_json((run / "metrics.json").read_bytes())
    kept = [event for event in events_in(run) if event["event"] == "round kept"]
    assert [entry.trained for entry in metrics.rounds] == [("A", "B", "C"), ("A", "B"), ("A", "B")]
    assert metrics.contributions[SHORT].failed == {"BudgetExhausted": ROUNDS - 1}
    assert [event["failed"] for event in kept] == [{}] + [{SHORT: "BudgetExhausted"}] * (ROUNDS - 1)
    assert [event["event"] for event in events_in(folder / "site-A")].count("task") == ROUNDS  # none to be scored


def test_the_report_says_who_halted_and_what_each_site_has_spent(trained):
    folder, _, _ = trained

    report = (folder / "federation/runs/private/report.html").read_text(encoding="utf-8")
    assert f"BudgetExhausted {ROUNDS - 1}" in report
    assert "Privacy spent" in report
    assert "own delta: A 0.002, B 0.002, C 0.002." in report
    assert all(f"{ledger_at(folder, site).spent():.4g}" in report for site in SITES)


def test_the_coordinator_remembers_beyond_the_run_what_each_site_has_spent_at_its_delta(trained, asked):
    folder, _, _ = trained

    known = json.loads((folder / "federation/spent.json").read_text(encoding="utf-8"))

    delta = str(asked[0].privacy.delta)
    assert known == {site: {delta: ledger_at(folder, site).spent()} for site in SITES}


def test_no_ledger_shows_more_than_its_ceiling_and_each_shows_what_its_site_trained(trained, asked):
    folder, _, ceiling = trained
    settings, one_round = asked

    spent = {site: ledger_at(folder, site).spent() for site in SITES}

    charged = {site: ROUNDS for site in SITES} | {SHORT: 1}
    delta = settings.privacy.delta
    assert spent == {site: epsilon_of([one_round] * rounds, delta=delta) for site, rounds in charged.items()}
    assert spent[SHORT] <= ceiling
    assert spent["A"] <= settings.privacy.epsilon


def test_the_site_is_told_what_is_spent_and_left_and_that_another_round_would_be_refused(trained):
    folder, said, ceiling = trained

    spent = ledger_at(folder, SHORT).spent()
    log = (folder / f"site-{SHORT}/logs/worker.log").read_text(encoding="utf-8")
    screen = (folder / f"site-{SHORT}.log").read_text(encoding="utf-8")
    told = said[said.index(f"$ fed-client --site {SHORT} privacy") + 1 :]
    left = f"{ceiling - spent:.3g} left"
    assert f"epsilon {spent:.3g} of {ceiling:g} spent, {left}" in told[0]
    assert "over the ceiling: it would be refused" in told[-1]
    assert f"{spent:.3g} is spent and {left}; this round would make it" in log
    assert "the privacy budget is exhausted" in screen


def test_the_released_card_says_what_the_run_has_cost_each_site(trained):
    folder, said, _ = trained

    card = json.loads((folder / f"site-{SHORT}/models/current/card.json").read_text(encoding="utf-8"))
    assert card["epsilon"] == {site: ledger_at(folder, site).spent() for site in SITES}
    assert any(f"missing in {ROUNDS - 1}" in line and line.strip().startswith(SHORT) for line in said)


def test_no_count_loss_or_score_of_a_private_site_is_in_what_the_coordinator_keeps(trained):
    folder, _, _ = trained

    run = folder / "federation/runs/private"
    metrics = Metrics.model_validate_json((run / "metrics.json").read_bytes())
    said = [
        values for entry in metrics.rounds for found in (entry.losses, entry.validation) for values in found.values()
    ]
    assert not any(said)
    assert metrics.contributions[SHORT].planned_shares == metrics.contributions["A"].planned_shares
    assert [broken_links(path) for path in folder.rglob("audit.jsonl")] == [[]] * (len(SITES) + 2)
