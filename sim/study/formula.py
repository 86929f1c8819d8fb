"""Sums and products of named numbers, as claims on kernels write their sizes."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping

from kvsim.errors import ScenarioError, did_you_mean

_OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def evaluate(formula: str | float, names: Mapping[str, float]) -> float:
    """``formula`` with ``names`` put in: numbers, names, + - * / and brackets.

    Raises:
        ScenarioError: anything else.
    """
    try:
        return _value(ast.parse(str(formula), mode="eval").body, names)
    except (SyntaxError, TypeError):
        raise ScenarioError(f"'{formula}' is no formula; write numbers and names with + - * / ( )") from None


def _value(node: ast.expr, names: Mapping[str, float]) -> float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise ScenarioError(f"no axis is called '{node.id}'{did_you_mean(node.id, names)}")
        return names[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        result: float = _OPERATIONS[type(node.op)](_value(node.left, names), _value(node.right, names))
        return result
    raise TypeError
