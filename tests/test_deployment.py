"""What a run between hospitals is told, and what of it the hospitals are."""

import pytest

from fedgan import config
from fedgan.errors import SettingsError
from fedgan.settings import Deployment, Simulation, Terms, terms_of
from fedgan.wire import MOST_TERMS_BYTES

CHOICES = [
    (group, name) for group, names in config.groups().items() if group not in ("data", "experiment") for name in names
]


def composed(*overrides):
    return config.load("server", Deployment, overrides)


def refusal(*overrides):
    with pytest.raises(SettingsError) as refused:
        composed(*overrides)
    return str(refused.value).splitlines()[1:]


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_that_a_coordinator_has_composes_and_comes_back_from_yaml(group, name):
    settings = composed(f"{group}={name}")

    assert config.read(config.dump(settings), Deployment) == settings


def test_the_defaults_train_what_the_simulation_trains():
    here, there = composed().model_dump(), config.load("simulate", Simulation, []).model_dump()

    same = set(Terms.model_fields) - {"name", "data"}
    assert {name: here[name] for name in same} == {name: there[name] for name in same}
    assert all(there["data"].get(name, "range") == value for name, value in here["data"].items())


def test_terms_say_how_to_train_and_nothing_of_the_coordinators_own():
    settings = composed("name=first", "rounds=3", "data.diseases=[glioma]", "model.width=4")

    terms = terms_of(settings)

    assert (terms.name, terms.rounds, terms.data.diseases, terms.model.width) == ("first", 3, ("glioma",), 4)
    assert not hasattr(terms, "quorum")
    assert not hasattr(terms, "runs")


def test_terms_travel_as_yaml_far_below_their_bound():
    terms = terms_of(composed("name=first"))

    text = config.dump(terms)

    assert config.read(text, Terms) == terms
    assert len(text.encode()) < MOST_TERMS_BYTES / 8


def test_a_run_without_a_name_has_no_terms():
    with pytest.raises(SettingsError, match="name: sites must be told"):
        terms_of(composed())


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data=lgg", "data: no choice here"),
        ("data.root=folder", "data.root: unknown setting"),
        ("experiment=tiny", "experiment: no choice here"),
        ("device=cpu", "device: unknown setting"),
        ("deadline_s=0", "deadline_s: Input should be greater than 0"),
        ("model.critic=global", "model.critic: unknown setting here; it belongs to model=sagan"),
    ],
)
def test_what_only_a_simulation_or_a_site_decides_is_refused(override, said):
    (line,) = refusal(override)

    assert line.startswith(f"  {said}")
