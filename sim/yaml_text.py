"""YAML as kvsim ships and writes it."""

from __future__ import annotations

import pickle
from functools import lru_cache
from typing import Any

import yaml

SafeLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's own, by libyaml where that is built in: ten times as fast."""


def parse_yaml(text: str, loader: Any = SafeLoader) -> Any:
    """What the first document of ``text`` says, the caller's own. A text that came before is not parsed again: a run reads
    the same presets several times, a sweep at every point.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return pickle.loads(_parsed(text, loader))


@lru_cache(maxsize=256)
def _parsed(text: str, loader: Any) -> bytes:
    return pickle.dumps(yaml.load(text, Loader=loader))
