"""In what scenarios differ, key by key, with every default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.scenario.schema import Scenario

ABSENT = "–"
NO_DIFFERENCE = ("name", "description", "seed")
"""Keys that do not make two scenarios differ: what they are called, and the seed, which a comparison sets."""


def key_differences(scenarios: Sequence[Scenario]) -> list[dict[str, Any]]:
    """Each ``key`` that is not the same in all, and its ``values`` in the order of ``scenarios`` as text.

    A part that some scenario does not have at all (a tier, a source) is one row, with what it says beyond defaults.
    """
    whole = [_by_name(scenario.resolved()) for scenario in scenarios]
    said = [_by_name(scenario.model_dump(mode="json", exclude_defaults=True)) for scenario in scenarios]
    rows = _differences(whole, said)
    return [
        {"key": key, "values": values} for key, values in rows if key.partition(".")[0] not in NO_DIFFERENCE
    ]


def _differences(whole: Sequence[Any], said: Sequence[Any], key: str = "") -> Iterator[tuple[str, list[str]]]:
    if all(isinstance(value, Mapping) for value in whole):
        for name in dict.fromkeys(name for value in whole for name in value):
            parts = [value.get(name, ABSENT) for value in whole]
            words = [value.get(name) if isinstance(value, Mapping) else None for value in said]
            yield from _differences(parts, words, f"{key}.{name}" if key else str(name))
    elif any(value != whole[0] for value in whole):
        yield key, [_text(value, word) for value, word in zip(whole, said, strict=True)]


def _text(value: Any, said: Any) -> str:
    if isinstance(value, Mapping):
        value = said if said is not None else {}
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _by_name(value: Any) -> Any:
    """``value`` with lists of mappings that have names of their own as mappings by these."""
    if isinstance(value, Mapping):
        return {name: _by_name(part) for name, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
        names = [_name(entry) for entry in value]
        if all(names) and len(set(names)) == len(names):
            return {name: _by_name(entry) for name, entry in zip(names, value, strict=True)}
    return {} if value == [] else value


def _name(entry: Mapping[str, Any]) -> str:
    """Of a tier its name, of a source what it is called if it has none."""
    return str(entry.get("name") or entry.get("generator") or Path(entry.get("file") or "").name)
