"""Reads a scenario file: YAML, then method cards, then ``key=value`` overrides, then the schema, then what it refers to."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from kvsim.errors import ScenarioError, did_you_mean
from kvsim.scenario.problems import problem_lines
from kvsim.scenario.read import Loader, read_yaml
from kvsim.scenario.references import check_references
from kvsim.scenario.schema import Scenario

METHODS = ("method", "methods")


def load_scenario(path: str | Path, overrides: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file with ``overrides`` such as "cluster.replicas=4" applied.

    Raises:
        ScenarioError: the first problem found, as one line; ``str(error.__notes__)`` has the others, if any.
    """
    path = Path(path)
    return parse_scenario(
        read_yaml(path), overrides, base=path.resolve().parent, where=path.name, stem=path.stem
    )


def parse_scenario(
    data: Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    base: Path | None = None,
    where: str = "scenario",
    stem: str = "scenario",
) -> Scenario:
    """The scenario that ``data`` (as YAML gives it; left as it is) describes; relative paths start at ``base``.

    A card that ``data`` names gives way to what ``data`` says; one that an override names is laid over ``data``. The other
    overrides come last. ``stem`` is the name if there is none.

    Raises:
        ScenarioError: as :func:`load_scenario`.
    """
    plain = copy.deepcopy(dict(data))
    naming = [override for override in overrides if override.partition("=")[0].strip() in METHODS]
    if naming:
        plain = {key: value for key, value in plain.items() if key not in METHODS}
    changed = apply_overrides(plain, naming)
    cards: Sequence[Any] = ()
    if any(key in plain for key in METHODS):
        from kvsim.methods.load import lay_methods

        plain, cards = lay_methods(
            plain, base or Path.cwd(), "--set " if naming else f"{where}.", bool(naming)
        )
    rest = [override for override in overrides if override not in naming]
    if cards:
        from kvsim.methods.overlay import without_options_of

        plain = without_options_of([card.overlay for card in cards], plain, rest)
    given = copy.deepcopy(plain) if rest else plain
    changed |= apply_overrides(plain, rest)
    try:
        scenario = Scenario.model_validate({"name": stem, **plain})
    except ValidationError as error:
        own = _problems({"name": stem, **given})
        lines = [
            _line(key, text, where, changed, (key, text) in own)
            for key, text in problem_lines(error, Scenario)
        ]
        first = ScenarioError(lines[0])
        for line in lines[1:]:
            first.add_note(line)
        raise first from None
    if base is not None:
        scenario._base = base
    if cards:
        from kvsim.methods.load import facts

        scenario._methods = tuple(facts(card, scenario) for card in cards)
    problem = check_references(scenario)
    if problem is not None:
        raise ScenarioError(_line(*problem, where, changed))
    return scenario


def _problems(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    try:
        Scenario.model_validate(data)
    except ValidationError as error:
        return problem_lines(error, Scenario)
    return []


def _line(key: str, text: str, where: str, changed: Mapping[str, str], own: bool = True) -> str:
    """``own``: it was so before the overrides."""
    for place, typed in changed.items():
        if key == place or key.startswith(f"{place}."):
            return f"--set {typed}{key.removeprefix(place)}: {text}"
        if not own and key and place.startswith(f"{key}."):  # what is said of a whole part
            unknown = text.startswith("unknown key")
            here = ".".join(typed.split(".")[: len(key.split("."))]) if unknown else typed
            return f"--set {here}: {text}"
    return f"{where}.{key}: {text}" if key else f"{where}: {text}"


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Each ``key=value`` put into ``data``: the keys as they were typed, by the place in ``data`` (indices for names)."""
    return {apply_override(data, override): override.partition("=")[0].strip() for override in overrides}


def apply_override(data: dict[str, Any], override: str) -> str:
    """Put ``key=value`` into ``data`` and return its place, with list entries by their index; the key may name them.

    Raises:
        ScenarioError: no "=", bad YAML, or a place that does not exist.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ScenarioError(f"--set {override}: expected key=value, such as cluster.replicas=4")
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:
        raise ScenarioError(f"--set {key}: cannot read {text!r} as YAML; quote it") from None
    place: Any = data
    steps = key.split(".")
    found: list[str] = []
    for depth, step in enumerate(steps):
        index = _index(place, step, steps, depth, key)
        found.append(str(index))
        if depth == len(steps) - 1:
            place[index] = value
        else:
            if isinstance(place, dict) and place.get(index) is None:
                place[index] = {}
            place = place[index]
    return ".".join(found)


def _index(place: Any, step: str, steps: list[str], depth: int, key: str) -> int | str:
    parent = ".".join(steps[:depth])
    if isinstance(place, dict):
        return step
    if not isinstance(place, list):
        raise ScenarioError(f"--set {key}: '{parent}' is {place!r} and has no keys; set '{parent}' itself")
    if step.isdigit() and int(step) < len(place):
        return int(step)
    names = [entry.get("name") for entry in place if isinstance(entry, dict)]
    if step in names:
        return names.index(step)
    known = [str(i) for i in range(len(place))] + [name for name in names if name]
    raise ScenarioError(f"--set {key}: '{parent}' has no entry '{step}'{did_you_mean(step, known)}")
