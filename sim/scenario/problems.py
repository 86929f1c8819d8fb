"""Turns what pydantic finds wrong into lines that say where, what was found and what to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from kvsim.errors import did_you_mean

Location = Sequence[int | str]

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "text",
    "dict": "keys and values",
    "model": "keys and values",
    "list": "a list",
    "tuple": "a list",
}
_BOUNDS = {"greater_than": "greater than", "greater_than_equal": "at least", "less_than_equal": "at most"}
_TAGS = (
    "preset",
    "inline",
    "measured",
    "a name",
    "lowered",
    "recalled",
    "folded",
)  # what a discriminated union adds to a location


def problem_lines(
    error: ValidationError, root: type[BaseModel], missing: bool = True
) -> list[tuple[str, str]]:
    """(dotted key, what is wrong) of every problem, unknown keys first: they often cause the others.

    Without ``missing``, keys that are not there are no problem.
    """
    found = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    if not missing:
        found = [item for item in found if item["type"] != "missing"]
    # a list whose entries are all wrong is also reported as empty
    found = [item for item in found if item["type"] != "too_short" or not item["input"]]
    # a key that is misspelt is also missing: one mistake, one line
    misspelt = {item["loc"][:-1] for item in found if item["type"] == "extra_forbidden"}
    found = [item for item in found if item["type"] != "missing" or item["loc"][:-1] not in misspelt]
    return [(_dotted(item["loc"]), _text(item, root)) for item in found]


def _dotted(location: Location) -> str:
    return ".".join(str(step) for step in location if step not in _TAGS)


def _text(item: Any, root: type[BaseModel]) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key{did_you_mean(str(item['loc'][-1]), _keys_at(root, item['loc'][:-1]))}"
    if kind == "missing":
        return "missing; this key has no default"
    if kind == "literal_error":
        choices = [choice.strip("'") for choice in context["expected"].replace(" or ", ", ").split(", ")]
        hint = (
            did_you_mean(str(value), choices) if isinstance(value, str) else f"; known: {', '.join(choices)}"
        )
        return f"unknown value {value!r}{hint}"
    if kind in _BOUNDS:
        bound = next(context[key] for key in ("gt", "ge", "le") if key in context)
        return f"must be {_BOUNDS[kind]} {bound}, found {value!r}"
    if kind == "too_short":
        return "the list is empty; give at least one entry"
    if kind == "unit":
        return str(item["msg"])
    if kind == "value_error":
        return str(context["error"])
    expected = _EXPECTED.get(kind.split("_")[0])
    return f"expected {expected}, found {value!r}" if expected else f"{item['msg']}, found {value!r}"


def _keys_at(root: type[BaseModel], location: Location) -> list[str]:
    """Keys that the model at ``location`` knows; follows lists, options and unions down from ``root``."""
    models = [root]
    for step in location:
        if isinstance(step, int) or step in _TAGS:
            continue
        fields = [model.model_fields[step].annotation for model in models if step in model.model_fields]
        models = [model for field in fields for model in _models_in(field)]
    return [key for model in models for key in model.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
