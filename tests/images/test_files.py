"""What the images' files say, without performing them."""

import tomllib

import pytest
import yaml
from recipes import DOCKER, PROJECT, SERVICES, STAGES

from client.policy import DEFAULT, Policy, read_policy

ABOUT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMAGES = {name: STAGES[name] for name in ("server", "client")}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_an_image_runs_a_command_of_ours_as_nobody_special(image):
    assert min(image.user) >= 1000
    assert image.words("ENTRYPOINT")[0] in ABOUT["scripts"]
    assert image.variables["PYTHONSAFEPATH"] == "1"
    assert image.health


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_only_the_home_and_the_temporary_folder_need_to_be_writable(image):
    assert image.words("VOLUME") == [image.variables["FEDGAN_HOME"], image.variables["HOME"]]


def test_versions_are_those_of_the_project():
    (torch,) = (name for name in ABOUT["dependencies"] if name.startswith("torch>"))

    assert any(f'"{torch}"' in run for run in STAGES["base"].all("RUN"))
    assert STAGES[""].own == (("ARG", f"PYTHON={ABOUT['requires-python'].removeprefix('>=')}"),)


def test_only_what_the_wheel_is_made_of_reaches_the_build():
    copied = {name for rest in STAGES["wheel"].all("COPY") for name in rest.split()[:-1]}
    lines = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()

    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert not any(stage.all("ADD") for stage in STAGES.values())


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_no_secret_is_an_argument_or_a_variable(stage):
    named = " ".join([*stage.all("ARG"), *stage.all("ENV")]).lower()

    assert not any(word in named for word in ("secret", "token", "password", "key"))


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)
def test_every_service_is_confined(service):
    asked = service.asked

    assert asked["read_only"] is True
    assert asked["cap_drop"] == ["ALL"]
    assert asked["security_opt"] == ["no-new-privileges:true"]
    assert not {"environment", "privileged", "cap_add", "pid", "network_mode", "user"} & asked.keys()


@pytest.mark.parametrize("site", ["site-a", "site-b", "enrol-a", "enrol-b"])
def test_a_site_writes_nothing_but_its_home(site):
    mounts = SERVICES[site].mounts

    assert [where for _, where, read_only in mounts if not read_only] == ["/var/lib/fedgan"]
    assert ("scans", "/scans", True) in mounts


def test_the_demonstrations_policy_is_the_default_but_for_its_scans():
    policy = read_policy(DOCKER / "phantoms.yaml").model_dump()

    usual = Policy.model_validate(yaml.safe_load(DEFAULT)).model_dump()
    assert {name for name in policy if policy[name] != usual[name]} == {"scans", "threads"}
