import shlex
import shutil
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hypothesis import given, settings
from hypothesis import strategies as st

from fedgan import config
from fedgan.errors import SettingsError
from fedgan.settings import Simulation

CHOICES = [(group, name) for group, names in config.groups().items() for name in names]
DATA_ROOT = ["data.root=folder"]
LGG = config.load("simulate", Simulation, ["data=lgg", *DATA_ROOT])


def refusal(*overrides):
    with pytest.raises(SettingsError) as refused:
        config.load("simulate", Simulation, overrides)
    head, *lines = str(refused.value).splitlines()
    assert head == f"simulate: {len(lines)} bad setting(s)"
    return [line.removeprefix("  ") for line in lines]


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Write an experiment beside the real configuration, in a copy of it."""
    shutil.copytree(config._CONFIGS, tmp_path / "configs")
    monkeypatch.setattr(config, "_CONFIGS", tmp_path / "configs")

    def write(name, text):
        (tmp_path / "configs" / "experiment" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")

    return write


def test_the_defaults_are_valid_settings():
    composed = config.load("simulate", Simulation, [])

    assert composed.data.kind == "phantoms"
    assert composed.model.kind == "taggan"


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_choice_of_every_group_composes_and_validates(group, name):
    # A choice may leave the folder of the data to the command line, and nothing else.
    try:
        config.load("simulate", Simulation, [f"{group}={name}"])
    except SettingsError as refused:
        assert str(refused).splitlines()[1:] == ["  data.root: required; give data.root=FOLDER"]
        config.load("simulate", Simulation, [f"{group}={name}", *DATA_ROOT])


def test_every_file_is_a_root_or_a_choice():
    files = {path.relative_to(config._CONFIGS).with_suffix("").as_posix() for path in config._CONFIGS.rglob("*.yaml")}

    assert files == {"simulate", "server", *(f"{group}/{name}" for group, name in CHOICES)}


def test_what_the_command_line_says_wins():
    composed = config.load("simulate", Simulation, ["data=lgg", "rounds=3", "rounds=4", *DATA_ROOT, "++seed=5"])

    assert (composed.rounds, composed.seed, composed.data.root) == (4, 5, Path("folder"))


def test_an_experiment_overrides_groups_and_values_and_the_command_line_overrides_it(experiment):
    experiment("study", "defaults:\n  - override /data: lgg\nrounds: 40\nlocal_steps: 30\ndata:\n  root: there\n")

    composed = config.load("simulate", Simulation, ["experiment=study", "rounds=2", "data.size=32"])

    assert (composed.data.kind, composed.data.diseases, composed.data.root) == ("manifest", ("glioma",), Path("there"))
    assert (composed.rounds, composed.local_steps, composed.data.size) == (2, 30, 32)


def test_a_group_chosen_on_the_command_line_wins_over_the_experiments_choice(experiment):
    experiment("study", "defaults:\n  - override /data: lgg\nrounds: 40\n")

    composed = config.load("simulate", Simulation, ["data=phantoms", "experiment=study"])

    assert (composed.data.kind, composed.rounds) == ("phantoms", 40)


def test_no_experiment_can_be_said_aloud():
    assert config.load("simulate", Simulation, ["experiment=null"]) == config.load("simulate", Simulation, [])


def test_loading_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    first = config.load("simulate", Simulation, ["rounds=3"])
    second = config.load("simulate", Simulation, [])

    assert (first.rounds, second.rounds) == (3, config.load("simulate", Simulation, ["quorum=1"]).rounds)
    assert not GlobalHydra().is_initialized()
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_are_listed_at_once():
    lines = refusal(
        "data=lgg", "local_steps=0", "model.wiidth=3", "model.learning_rate=fast", "rounds", "aggregation=sum"
    )

    assert lines == [
        "rounds: no value; give rounds=VALUE",
        "aggregation: unknown choice sum; choose one of fedavg, gan_fedavg, krum, median, trimmed",
        "data.root: required; give data.root=FOLDER",
        "local_steps: Input should be greater than 0 (got 0)",
        'model.learning_rate: Input should be a valid number (got "fast")',
        "model.wiidth: unknown setting; did you mean model.width?",
    ]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("rounds=0", "rounds: Input should be greater than 0 (got 0)"),
        ("rounds=true", "rounds: Input should be a valid integer (got true)"),
        ("rounds='3'", 'rounds: Input should be a valid integer (got "3")'),
        ("rounds.x=3", "rounds: Input should be a valid integer"),
        ("engine=flowr", "engine: Input should be 'process' or 'flower' (got \"flowr\")"),
        ("data.size=65", "data.size: Input should be 32, 64, 128 or 256 (got 65)"),
        ("model.weights.cycle=-1", "model.weights.cycle: Input should be greater than or equal to 0 (got -1)"),
        ("quorum=9", "quorum 9 is larger than the number of sites (3)"),
        ("patience=0", "patience: Input should be greater than 0 (got 0)"),
        ("false_positives=1", "false_positives: Input should be less than 1 (got 1)"),
        ("select=val", "select: Input should be 'best', 'aucp' or 'last' (got \"val\")"),
        ("roundz=3", "roundz: unknown setting; did you mean rounds?"),
        ("+typo=3", "typo: unknown setting"),
        ("hydra.run.dir=x", "hydra.run.dir: unknown setting"),
        ("modle=taggan", "modle: unknown setting; did you mean model?"),
        ("modle.width=3", "modle: unknown setting; did you mean model?"),
        ("critic_width=3", "critic_width: unknown setting; did you mean model.critic_width?"),
        ("model.weights.cycl=1", "model.weights.cycl: unknown setting; did you mean model.weights.cycle?"),
        ("model.kind=vagan", "model: unknown kind; choose one of 'taggan', 'sagan'"),
        ("model.grid=2", "model.grid: unknown setting here; it belongs to model=sagan or model=sagan_released"),
        ("data.kind=scans", "data: unknown kind; choose one of 'phantoms', 'manifest'"),
        ("data={size: 32}", "data: unknown choice {'size': 32}; choose one of cxr, lgg, manifest, phantoms"),
        ("model@other=taggan", "model: not a setting; write KEY=VALUE"),
        ("=3", "=3: not a setting; write KEY=VALUE"),
        ("a[0]=3", "a[0]=3: not a setting; write KEY=VALUE"),
        ("data.sites.first=A", "invalid literal for int() with base 10: 'first'"),
        ("model.lips=3", "model.lips: unknown setting"),
        ("~seed", "seed: cannot be removed; give seed=VALUE"),
        ("data.sites=A,B", "data.sites: takes one value at a time; write a list in brackets: 'data.sites=[A,B]'"),
        ("data.sites.9=A", "Error merging override ++data.sites.9=A"),
        ("rounds=${nothing}", "Interpolation key 'nothing' not found full_key: rounds object_type=dict"),
    ],
)
def test_one_mistake_is_said_in_one_line(override, line):
    assert refusal(override) == [line]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.grid=3", "model.grid: Input should be 1, 2 or 4 (got 3)"),
        ("model.weights.identity=-1", "model.weights.identity: Input should be greater than or equal to 0 (got -1)"),
        ("model.patch=2", "model.patch: unknown setting here; it belongs to model=taggan or model=tagsagan_private"),
        ("model.contex=8", "model.contex: unknown setting; did you mean model.context?"),
    ],
)
def test_the_settings_of_one_method_are_not_those_of_another(override, line):
    assert refusal("model=sagan", override) == [line]


def test_a_critic_of_whole_scans_needs_scans_of_64_pixels():
    assert refusal("model=sagan_released", "data.size=32") == [
        "model.critic=global needs scans of 64 x 64 or more; give data.size=64 or model.critic=patch"
    ]


def test_patience_without_a_score_to_go_by_is_refused():
    assert refusal("patience=2", "select=last") == [
        "patience goes by the score of select, and select=last has none; give select=best or patience=null"
    ]


def test_a_setting_of_another_choice_says_which_choice_has_it():
    (line,) = refusal("data.cache=folder")

    assert line.startswith("data.cache: unknown setting here; it belongs to data=cxr or data=lgg or data=manifest")


def test_what_hangs_on_a_choice_that_cannot_be_made_is_not_judged():
    assert refusal("data=brain", "data.root=folder") == [
        "data: unknown choice brain; choose one of cxr, lgg, manifest, phantoms"
    ]
    (line,) = refusal("experiment=study", "data.root=folder")
    assert line.startswith("experiment: unknown choice study; choose one of ")


def test_the_advice_for_a_value_that_cannot_be_read_works():
    (line,) = refusal("data=lgg", *DATA_ROOT, "data.where=matched == 0")

    assert line.startswith("data.where: cannot be read; quote the value, and all of it for the shell: ")
    (advised,) = shlex.split(line.partition("shell: ")[2])
    assert config.load("simulate", Simulation, ["data=lgg", *DATA_ROOT, advised]).data.where == "matched == 0"


def test_a_setting_with_the_name_of_its_choice_keeps_its_key():
    assert refusal("data=manifest", *DATA_ROOT, "data.manifest=3") == [
        "data.manifest: Input should be a valid string (got 3)"
    ]


def test_a_bad_item_of_a_list_is_named_by_its_place():
    (line,) = refusal("data.sites=[A,'B C',D]", "quorum=1")

    assert line.startswith("data.sites.1: String should match pattern")


@settings(max_examples=20, deadline=None)  # the time of one example says how busy the machine is
@given(key=st.sampled_from(["", "rounds", "data", "data.sites", "model", "experiment", "hydra"]), rest=st.text())
def test_whatever_is_typed_is_taken_or_refused_but_never_breaks(key, rest):
    try:
        taken = config.load("simulate", Simulation, [f"{key}={rest}"])
    except SettingsError as refused:
        assert "bad setting(s)\n  " in str(refused)
    else:
        assert config.read(config.dump(taken), Simulation) == taken


def test_an_unknown_root_is_refused():
    with pytest.raises(SettingsError, match="nowhere: 1 bad setting"):
        config.load("nowhere", Simulation, [])


@settings(deadline=None)  # the time of one example says how busy the machine is
@given(
    rounds=st.integers(1, 10**6),
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    where=st.none() | st.text(st.characters(exclude_categories=["C"])),
)
def test_dumped_settings_are_read_back_unchanged(rounds, rate, where):
    model = LGG.model.model_copy(update={"learning_rate": rate})
    data = LGG.data.model_copy(update={"where": where})
    before = LGG.model_copy(update={"rounds": rounds, "model": model, "data": data})

    after = config.read(config.dump(before), Simulation)

    assert after == before


def test_settings_are_read_from_a_file(tmp_path):
    composed = config.load("simulate", Simulation, ["name=study"])
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(composed), encoding="utf-8")

    assert config.read(path, Simulation) == composed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds: [", "cannot be read as YAML"),
        ("hello", "holds no settings"),
        ("", "holds no settings"),
        ("rounds: 3\nold: 1", "old: unknown setting\n"),
        ("rounds: 3", "seed: required; give seed=VALUE"),
    ],
)
def test_a_file_that_holds_no_settings_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")

    with pytest.raises(SettingsError) as refused:
        config.read(path, Simulation)

    assert str(refused.value).startswith(str(path))
    assert said in f"{refused.value}\n"


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="cannot be read"):
        config.read(tmp_path / "config.yaml", Simulation)


def test_the_help_knows_every_setting_its_default_and_its_meaning():
    rows = {key: (default, meaning) for key, default, meaning in config.describe("simulate", Simulation)}

    assert rows["data"] == ("phantoms", "One of cxr, lgg, manifest, phantoms.")
    assert rows["experiment"][0] == "null"
    assert rows["quorum"] == ("2", "Updates a round needs.")
    assert rows["engine"][1].endswith("One of process, flower.")
    assert rows["data.root"][0] == "required"
    assert rows["data.root"][1].endswith("Only with data=cxr or data=lgg or data=manifest.")
    assert set(config._flat(config.load("simulate", Simulation, []).model_dump())) <= rows.keys() | {
        "model.kind",
        "data.kind",
        "aggregation.kind",
        "server_optimizer.kind",
        "privacy.kind",
    }


def test_sites_that_keep_their_generators_keep_the_last_ones():
    assert refusal("aggregation.share=none") == [
        "with aggregation.share=discriminator or none each site keeps its last generator; give select=last"
    ]


def test_a_round_is_not_chosen_by_scores_of_generators_that_are_not_the_rounds():
    intervals = ["local_steps=50", "aggregation.generator_every=100"]

    (line,) = refusal(*intervals)
    chosen_last = config.load("simulate", Simulation, [*intervals, "select=last"])
    each_round = config.load("simulate", Simulation, ["local_steps=50", "aggregation.generator_every=50"])

    assert line.endswith("give select=last or generator_every=50")
    assert (chosen_last.select, each_round.select) == ("last", "best")


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_a_rule_that_bears_long_updates_as_they_are_shortens_none(rule):
    (line,) = refusal(f"aggregation={rule}", "aggregation.clip=2")

    assert f"clip does nothing with rule {rule}" in line


def test_intervals_are_whole_rounds():
    (line,) = refusal("aggregation.generator_every=60", "local_steps=50")

    assert line.endswith("aggregation.generator_every 60 is no multiple of local_steps (50)")


@pytest.mark.parametrize("override", ["server_optimizer=fedadam", "compress=int8"])
def test_what_needs_to_know_the_tensors_needs_the_aggregation_that_does(override):
    (line,) = refusal("aggregation=fedavg", override)

    assert "needs aggregation=gan_fedavg" in line


def test_each_experiment_says_what_it_is_for():
    assert config.experiments().keys() == set(config.groups()["experiment"])
    assert all(config.experiments().values())
