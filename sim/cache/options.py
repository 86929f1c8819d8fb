"""``cache.options``: what a manager may be told, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from kvsim.errors import ScenarioError
from kvsim.scenario.problems import problem_lines

Options = TypeVar("Options", bound=BaseModel)


def read_options(kind: type[Options], given: Mapping[str, Any] | None) -> Options:
    """``given`` as the options of a manager that has this ``kind`` of them.

    Raises:
        ScenarioError: one line that names the key.
    """
    try:
        return kind(**(given or {}))
    except ValidationError as error:
        where, what = problem_lines(error, kind)[0]
        raise ScenarioError(f"cache.options{'.' * bool(where)}{where}: {what}") from None
