"""Reads YAML as scenarios and method cards are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from kvsim.errors import ScenarioError
from kvsim.yaml_text import SafeLoader, parse_yaml


class Strict:
    """YAML that refuses a key given twice and reads 1e9 as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[attr-defined]
            if isinstance(key, str) and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark
                )
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep=deep)  # type: ignore[misc,no-any-return]


class Loader(Strict, yaml.SafeLoader):
    """Says best what is wrong, and where."""


class FastLoader(Strict, SafeLoader):  # type: ignore[misc]
    """The same, with the parser that is fastest here."""


for _loader in (Loader, FastLoader):
    _loader.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping at the top of a YAML file.

    Raises:
        ScenarioError: no such file, bad YAML (with its line), or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        try:
            data = parse_yaml(text, FastLoader)
        except yaml.YAMLError:
            data = yaml.load(text, Loader=Loader)
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
