"""What ``docker/`` says: the stages of the Dockerfile, and the services of the compose file."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PROJECT = Path(__file__).resolve().parents[2]
DOCKER = PROJECT / "docker"


@dataclass(frozen=True)
class Stage:
    """One stage of the Dockerfile."""

    base: str
    own: tuple[tuple[str, str], ...]
    """Its own instructions, as keyword and rest."""
    inherited: tuple[tuple[str, str], ...] = ()
    """Those of the stages that it goes on from."""

    def all(self, keyword: str) -> list[str]:
        """Return the rests of all instructions of a keyword."""
        return [rest for word, rest in (*self.inherited, *self.own) if word == keyword]

    def words(self, keyword: str) -> list[str]:
        """Return the words of the last instruction of a keyword, which must be JSON."""
        return list(json.loads(self.all(keyword)[-1]))

    @property
    def user(self) -> tuple[int, int]:
        """Return the numbers of user and group."""
        user, group = map(int, self.all("USER")[-1].split(":"))
        return user, group

    @property
    def folder(self) -> str:
        """Return the working folder."""
        return self.all("WORKDIR")[-1]

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment."""
        return assignments(self.all("ENV"))

    @property
    def health(self) -> list[str]:
        """Return the command that tells whether it is well."""
        return list(json.loads(self.all("HEALTHCHECK")[-1].partition("CMD ")[2]))


def assignments(rests: list[str]) -> dict[str, str]:
    """Return the names and values of ``NAME=VALUE``."""
    return dict(pair.split("=", 1) for rest in rests for pair in shlex.split(rest) if "=" in pair)


def read_stages() -> dict[str, Stage]:
    """Return the stages by name; what comes before the first has no name."""
    lines = (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if line and not line.startswith("#")).replace("\\\n", "")
    found: dict[str, Stage] = {}
    for part in re.split(r"^(?=FROM )", text, flags=re.MULTILINE):
        (first, rest), *own = (line.split(" ", 1) for line in part.splitlines())
        base, _, name = rest.partition(" AS ") if first == "FROM" else ("", "", "")
        before = found.get(base)
        inherited = (*before.inherited, *before.own) if before else ()
        found[name] = Stage(base, tuple((word, rest.strip()) for word, rest in own or [(first, rest)]), inherited)
    return found


@dataclass(frozen=True)
class Service:
    """One service of the compose file."""

    asked: dict[str, Any]
    image: Stage

    @property
    def command(self) -> list[str]:
        """Return what it runs: its own entrypoint takes the image's command away, as compose has it."""
        if "entrypoint" in self.asked:
            return [*self.asked["entrypoint"], *self.asked.get("command", [])]
        return [*self.image.words("ENTRYPOINT"), *self.asked.get("command", self.image.words("CMD"))]

    @property
    def mounts(self) -> list[tuple[str, str, bool]]:
        """Return what is mounted where, and whether it may only be read."""
        plain = (re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).split(":") for volume in self.asked["volumes"])
        return [(parts[0], parts[1], parts[2:] == ["ro"]) for parts in plain]


STAGES = read_stages()
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = {name: Service(asked, STAGES[asked["build"]["target"]]) for name, asked in COMPOSE["services"].items()}
