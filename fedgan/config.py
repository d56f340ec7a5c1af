"""Hydra's only importer: ``configs/`` and the command line become frozen settings, or one list of every mistake.

Values come from YAML, types and bounds from ``fedgan.settings``. A folder below ``configs/`` is a group and a file in
it one choice (``data=lgg``); settings that differ by choice are told apart by their ``kind``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from fedgan.errors import SettingsError

Settings = TypeVar("Settings", bound=BaseModel)
Values = Mapping[str, Any]

_PACKAGE = Path(__file__).resolve().parent
_CONFIGS = (_PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE) / "configs"
_REQUIRED = "???"  # how Hydra writes a value that has no default


def load(root: str, kind: type[Settings], overrides: Sequence[str]) -> Settings:
    """Compose ``configs/<root>.yaml`` with ``overrides`` (``KEY=VALUE``, later ones win) into settings.

    Raises:
        SettingsError: anything is missing, unknown, malformed or out of bounds; the message lists it all.
    """
    lines, problems = _screen(root, overrides)
    try:
        values, _ = _compose(root, lines)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: a list's item that is no number
        problems[""] = " ".join(str(error).split())
        raise SettingsError(_listing(root, problems)) from error
    return _validate(root, kind, values, problems)


def read(source: str | Path, kind: type[Settings]) -> Settings:
    """Return the settings that ``dump`` wrote: in the file of a ``Path``, or in the text itself.

    Raises:
        SettingsError: the file cannot be read, is not YAML, or does not hold these settings.
    """
    where = str(source) if isinstance(source, Path) else "settings"
    try:
        values = yaml.safe_load(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SettingsError(f"{where}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise SettingsError(f"{where}: holds no settings; is it the config.yaml of a run?")
    return _validate(where, kind, values, {})


def dump(settings: BaseModel) -> str:
    """Return ``settings`` as YAML that ``read`` takes back unchanged."""
    return str(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


def groups() -> dict[str, list[str]]:
    """Return the choices of every group, by the group's name."""
    folders = sorted(path for path in _CONFIGS.iterdir() if path.is_dir())
    return {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}


def experiments() -> dict[str, str]:
    """Return what each experiment is for, by its name: the comment at the head of its file."""
    heads = {}
    for name in groups().get("experiment", []):
        lines = (_CONFIGS / "experiment" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        heads[name] = next((line[1:].strip() for line in lines if line.startswith("# ") and "@package" not in line), "")
    return heads


def describe(root: str, kind: type[BaseModel]) -> list[tuple[str, str, str]]:
    """Return key, default and meaning of every group and setting that ``configs/<root>.yaml`` can have.

    A setting that the default choices lack shows the default of the first choice that has it, and which these are.
    """
    values, choices = _compose(root, [])
    defaults = _flat(values)
    rows = [
        (group, str(choices[group] or "null"), "One of " + ", ".join(names) + ".")
        for group, names in groups().items()
        if group in choices
    ]
    for key, field in _fields(kind):
        owners = {} if key in defaults else _owners(key)
        default = defaults[key] if key in defaults else next(iter(owners.values()), _REQUIRED)
        rows.append((key, "required" if default == _REQUIRED else _shown(default), _meaning(field, list(owners))))
    return rows


def _compose(root: str, lines: list[str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return the values Hydra composes, and the choice it took in each group."""
    with initialize_config_dir(str(_CONFIGS), version_base="1.3"):
        config = compose(root, lines, return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return cast("dict[str, Any]", OmegaConf.to_container(ours, resolve=True)), choices


def _screen(root: str, overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides as Hydra shall apply them, and what is wrong with the others, by key.

    Every value is forced in (``++``), known or not: the settings know what is unknown, and say so of all at once.
    """
    choices = _groups_of(root)
    parser = OverridesParser.create()
    chosen: dict[str, str] = {}
    given: list[tuple[str, str]] = []
    problems: dict[str, str] = {}
    for text in overrides:
        override = _parsed(text, parser)
        if override is None:
            problems.update([_malformed(text, parser)])
            continue
        key, line = override.key_or_group, text.lstrip("+")
        if problem := _refusal(override, choices):
            problems[key or text] = problem
        elif key not in choices:
            given.append((key, f"++{line}"))
        elif override.value() is None:
            chosen.pop(key, None)
        else:
            chosen[key] = line
    # What was set below a choice that cannot be made can be judged only after it; an experiment makes any choice.
    unsettled = tuple(f"{group}." for group in choices if group in problems or "experiment" in problems)
    return [*chosen.values(), *(line for key, line in given if not key.startswith(unsettled))], problems


def _groups_of(root: str) -> dict[str, list[str]]:
    """Return the choices of every group: none of a group that ``configs/<root>.yaml`` does not choose from."""
    file = _CONFIGS / f"{root}.yaml"
    chosen = yaml.safe_load(file.read_text(encoding="utf-8"))["defaults"] if file.is_file() else []
    named = {group for choice in chosen if isinstance(choice, dict) for group in choice}
    return {group: names if group in named else [] for group, names in groups().items()}


def _parsed(text: str, parser: OverridesParser) -> Override | None:
    try:
        return parser.parse_overrides([text])[0]
    except (HydraException, ValueError):  # ValueError: a number of more digits than Python reads
        return None


def _malformed(text: str, parser: OverridesParser) -> tuple[str, str]:
    """Return the key of an override that Hydra cannot read, and what to write instead."""
    key, equals, value = text.partition("=")
    quoted = f"{key}='{value}'"
    if not equals:
        return text, f"no value; give {text}=VALUE"
    if _parsed(quoted, parser) is None:
        return text, "not a setting; write KEY=VALUE"
    return key, f'cannot be read; quote the value, and all of it for the shell: "{quoted}"'


def _refusal(override: Override, choices: Mapping[str, list[str]]) -> str | None:
    """Return why ``override`` cannot be applied, or None if it can."""
    key, value = override.key_or_group, override.value()
    if not key or override.package is not None:
        return "not a setting; write KEY=VALUE"
    if override.is_delete():
        return f"cannot be removed; give {key}=VALUE"
    if override.is_sweep_override():
        return f"takes one value at a time; write a list in brackets: '{key}=[A,B]'"
    if key.replace("/", ".").split(".")[0] == "hydra":
        return "unknown setting"
    if key not in choices or value in choices[key] or (key == "experiment" and value is None):
        return None
    return f"unknown choice {value}; choose one of {', '.join(choices[key])}" if choices[key] else "no choice here"


def _validate(where: str, kind: type[Settings], values: Values, problems: Mapping[str, str]) -> Settings:
    """Return the settings, or refuse them with ``problems`` and all that the types find.

    Checked as strict JSON, so that ``true`` is no number and ``"3"`` no count, but a path may be written as text.
    """
    fields = dict(_fields(kind))
    found = dict(problems)
    found |= {key: _required(key, fields) for key, value in _flat(values).items() if value == _REQUIRED}
    try:
        settings = kind.model_validate_json(json.dumps(values, default=str), strict=True)
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            key = _key(mistake["loc"], values)
            if not any(other.startswith(f"{key}.") for other in found):  # else what is wrong is inside, and said
                found.setdefault(key, _say(key, mistake, fields))
    else:
        if not found:
            return settings
    raise SettingsError(_listing(where, found))


def _listing(where: str, problems: Mapping[str, str]) -> str:
    lines = (f"  {key}: {problem}" if key else f"  {problem}" for key, problem in problems.items())
    return "\n".join((f"{where}: {len(problems)} bad setting(s)", *lines))


def _key(loc: tuple[int | str, ...], values: Any) -> str:  # noqa: ANN401  walks into any value
    """Return pydantic's location as a dotted key, without the ``kind`` by which it tells choices apart."""
    parts = []
    kind = None
    for part in loc:
        if kind is not None and part == kind:
            kind = None
            continue
        parts.append(str(part))
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            values = None
        kind = values.get("kind") if isinstance(values, Mapping) else None
    return ".".join(parts)


def _say(key: str, mistake: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    """Put one of pydantic's findings in the operator's words."""
    if mistake["type"] == "missing":
        return _required(key, fields)
    if mistake["type"] == "extra_forbidden":
        return _unknown(key, list(fields))
    if mistake["type"] == "union_tag_invalid":
        return f"unknown kind; choose one of {mistake['ctx']['expected_tags']}"
    said, given = mistake["msg"].removeprefix("Value error, "), mistake["input"]
    return said if isinstance(given, Mapping) else f"{said} (got {json.dumps(given, default=str, ensure_ascii=False)})"


def _required(key: str, fields: Mapping[str, FieldInfo]) -> str:
    return f"required; give {key}={'FOLDER' if key in fields and fields[key].annotation is Path else 'VALUE'}"


def _unknown(key: str, known: list[str]) -> str:
    """Say that there is no such setting, and which may have been meant."""
    if key in known and (owners := _owners(key)):
        return f"unknown setting here; it belongs to {' or '.join(owners)}"
    parents = {setting.rpartition(".")[0] for setting in known} - {""}
    leaf = key.rpartition(".")[2]
    near = [setting for setting in known if setting.rpartition(".")[2] == leaf]
    near = near or get_close_matches(key, [*known, *parents], n=1, cutoff=0.8)
    near = near or [setting for setting in known if get_close_matches(leaf, [setting.rpartition(".")[2]], cutoff=0.8)]
    return f"unknown setting; did you mean {' or '.join(near[:3])}?" if near else "unknown setting"


def _owners(key: str) -> dict[str, Any]:
    """Return the default of setting ``key`` in each choice that has it, as in ``{"data=lgg": "???"}``."""
    group, _, rest = key.partition(".")
    files = {name: _CONFIGS / group / f"{name}.yaml" for name in groups().get(group, [])}
    found = {f"{group}={name}": _flat(yaml.safe_load(file.read_text(encoding="utf-8"))) for name, file in files.items()}
    return {choice: values[rest] for choice, values in found.items() if rest in values}


def _flat(values: Values, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested ``values`` by dotted key.

    >>> _flat({"data": {"kind": "phantoms", "size": 64}, "seed": 0})
    {'data.kind': 'phantoms', 'data.size': 64, 'seed': 0}
    """
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{prefix}{name}"
        leaves |= _flat(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return leaves


def _fields(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield every setting of ``kind`` by dotted key, those of all choices; ``kind`` itself comes with the choice."""
    for name, field in kind.model_fields.items():
        members = get_args(field.annotation) or (field.annotation,)
        nested = [member for member in members if isinstance(member, type) and issubclass(member, BaseModel)]
        if not nested and name != "kind":
            yield f"{prefix}{name}", field
        seen: set[str] = set()
        for member in nested:
            rows = [row for row in _fields(member, f"{prefix}{name}.") if row[0] not in seen]
            seen |= {key for key, _ in rows}
            yield from rows


def _meaning(field: FieldInfo, owners: Sequence[str]) -> str:
    told = [" ".join(field.description.split())] if field.description else []
    if get_origin(field.annotation) is Literal:
        told.append(f"One of {', '.join(map(str, get_args(field.annotation)))}.")
    if owners:
        told.append(f"Only with {' or '.join(owners)}.")
    return " ".join(told)


def _shown(value: Any) -> str:  # noqa: ANN401  a setting's value is any YAML value
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
