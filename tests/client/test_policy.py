"""The hospital's policy wins: what it does not allow is refused by name, and holds from the next task on."""

import pytest
import yaml

from client.policy import (
    DEFAULT,
    Policy,
    approved_bundles,
    check_steps,
    check_terms,
    opted_out,
    read_policy,
    write_default,
)
from client.scans import load_scans
from fedgan.bundle import bundle_digest
from fedgan.errors import (
    CohortError,
    DiseaseRefused,
    ModelRefused,
    PrivacyRefused,
    SettingsError,
    TaskTooLong,
)

MODELS = {"kinds": ["taggan", "sagan"], "width": 64, "blocks": 16, "batch_size": 64, "critic_steps": 10}


def test_the_default_is_written_once_and_can_be_read(tmp_path):
    path = tmp_path / "policy.yaml"

    first, again = write_default(path, "A"), write_default(path, "A")

    assert (first, again) == (True, False)
    assert path.stat().st_mode & 0o777 == 0o600
    assert "fed-client --site A check" in path.read_text()
    assert read_policy(path).scans.root == tmp_path / "scans"


def test_the_default_names_every_setting_and_no_other():
    assert set(yaml.safe_load(DEFAULT)) == set(Policy.model_fields)


def test_the_default_allows_a_usual_task(site_home, terms):
    policy = read_policy(site_home() / "policy.yaml")

    check_terms(policy, terms())
    check_steps(policy, 100)


@pytest.mark.parametrize(
    ("changes", "overrides", "refusal"),
    [
        ({"models": {**MODELS, "kinds": ["sagan"]}}, [], ModelRefused),
        ({"models": {**MODELS, "width": 3}}, [], ModelRefused),
        ({}, ["model.critic_width=1000000"], ModelRefused),
        ({}, ["model.batch_size=65"], ModelRefused),
        ({}, ["model.critic_steps=11"], ModelRefused),
        ({}, ["model=sagan", "model.critic=patch", "model.blocks=17"], ModelRefused),
        ({"diseases": ["pneumonia"]}, [], DiseaseRefused),
        ({"privacy": {"epsilon": 8.0, "delta": 1e-5}}, [], PrivacyRefused),
        ({"privacy": {"epsilon": 8.0, "delta": 1e-5}}, ["privacy=site"], PrivacyRefused),
    ],
)
def test_what_the_policy_does_not_allow_is_refused(site_home, terms, changes, overrides, refusal):
    policy = read_policy(site_home(**changes) / "policy.yaml")

    with pytest.raises(refusal):
        check_terms(policy, terms(*overrides))


def test_a_round_longer_than_allowed_is_refused(site_home):
    policy = read_policy(site_home() / "policy.yaml")

    with pytest.raises(TaskTooLong, match="2000"):
        check_steps(policy, 2001)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "tpu"},
        {"bundles": ["0f"]},
        {"more": 1},
        {"models": {**MODELS, "kinds": []}},
        {"scans": {"kind": "x"}},
    ],
)
def test_a_policy_that_cannot_be_understood_allows_nothing(site_home, changes):
    home = site_home(**changes)

    with pytest.raises(SettingsError):
        read_policy(home / "policy.yaml")


def test_only_the_installed_bundle_is_approved_unless_others_are_named(site_home):
    by_default = approved_bundles(read_policy(site_home() / "policy.yaml"))
    named = approved_bundles(read_policy(site_home(bundles=["0" * 64]) / "policy.yaml"))

    assert by_default == {bundle_digest()}
    assert named == {"0" * 64}


def test_the_scans_of_patients_who_opted_out_are_never_loaded(site_home, terms):
    home = site_home(opt_out="opt-out.txt")
    (home / "opt-out.txt").write_text("# since May\nA-0003\n\n A-0005 \nsomebody else\n")
    policy = read_policy(home / "policy.yaml")

    scans = load_scans("A", policy.scans, terms().data, opted_out(policy), left_out=print)

    assert len(set(scans.patients)) == 14
    assert not {"A-0003", "A-0005"} & set(scans.patients)


def test_a_site_counts_at_the_delta_at_which_a_run_promises_by_default(site_home, terms):
    policy = read_policy(site_home() / "policy.yaml")

    assert terms("privacy=patient").privacy.delta == policy.privacy.delta


def test_without_the_list_of_those_who_opted_out_nothing_is_loaded(site_home):
    policy = read_policy(site_home(opt_out="opt-out.txt") / "policy.yaml")

    with pytest.raises(SettingsError, match="opt_out"):
        opted_out(policy)


def test_a_site_whose_patients_all_opted_out_says_so(site_home, terms):
    policy = read_policy(site_home() / "policy.yaml")
    everybody = frozenset(f"A-{number:04d}" for number in range(16))

    with pytest.raises(CohortError, match="opted out"):
        load_scans("A", policy.scans, terms().data, everybody, left_out=print)
