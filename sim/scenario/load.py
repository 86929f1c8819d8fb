"""Reads a scenario file: YAML, then ``key=value`` overrides, then the schema, then what it refers to."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.scenario.problems import problem_lines
from kvsim.scenario.references import check_references
from kvsim.scenario.schema import Scenario


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice and reads 1e9 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file with ``overrides`` such as "cluster.replicas=4" applied.

    Raises:
        ScenarioError: the first problem found, as one line; ``str(error.__notes__)`` has the others, if any.
    """
    path = Path(path)
    data = read_yaml(path)
    changed = [apply_override(data, override) for override in overrides]
    return parse_scenario(data, base=path.resolve().parent, where=path.name, stem=path.stem, changed=changed)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        ScenarioError: no such file, bad YAML (with its line), or no mapping.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ScenarioError(f"{path}{line}: bad YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ScenarioError(f"{path}: bad YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise ScenarioError(
            f"{path}: expected keys and values, found {'nothing' if data is None else repr(data)[:60]}"
        )
    return data


def parse_scenario(
    data: Mapping[str, Any],
    *,
    base: Path | None = None,
    where: str = "scenario",
    stem: str = "scenario",
    changed: Sequence[str] = (),
) -> Scenario:
    """The scenario that ``data`` (as YAML gives it) describes; relative paths start at ``base``.

    ``stem`` is the name if it has none; ``changed`` lists keys that came from the command line, for messages.

    Raises:
        ScenarioError: as :func:`load_scenario`.
    """
    try:
        scenario = Scenario.model_validate({"name": stem, **data})
    except ValidationError as error:
        lines = [_line(key, text, where, changed) for key, text in problem_lines(error, Scenario)]
        first = ScenarioError(lines[0])
        for line in lines[1:]:
            first.add_note(line)
        raise first from None
    if base is not None:
        scenario._base = base
    problem = check_references(scenario)
    if problem is not None:
        raise ScenarioError(_line(*problem, where, changed))
    return scenario


def _line(key: str, text: str, where: str, changed: Sequence[str]) -> str:
    from_command = any(key == other or key.startswith(f"{other}.") for other in changed)
    place = f"--set {key}" if from_command else f"{where}.{key}" if key else where
    return f"{place}: {text}"


def apply_override(data: dict[str, Any], override: str) -> str:
    """Put ``key=value`` into ``data`` and return the key; a list entry goes by its index or name.

    Raises:
        ScenarioError: no "=", bad YAML, or a place that does not exist.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"--set {override}: expected key=value, such as cluster.replicas=4")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        raise ScenarioError(f"--set {key}: cannot read {text!r} as YAML; quote it") from None
    place: Any = data
    steps = key.split(".")
    for depth, step in enumerate(steps):
        index = _index(place, step, steps, depth, key)
        if depth == len(steps) - 1:
            place[index] = value
        else:
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            place = place[index]
    return key


def _index(place: Any, step: str, steps: list[str], depth: int, key: str) -> int | str:
    parent = ".".join(steps[:depth])
    if isinstance(place, dict):
        return step
    if not isinstance(place, list):
        raise ScenarioError(f"--set {key}: '{parent}' is {place!r} and has no keys")
    if step.isdigit() and int(step) < len(place):
        return int(step)
    names = [entry.get("name") for entry in place if isinstance(entry, dict)]
    if step in names:
        return names.index(step)
    known = [str(i) for i in range(len(place))] + [name for name in names if name]
    raise ScenarioError(f"--set {key}: '{parent}' has no entry '{step}'{did_you_mean(step, known)}")
