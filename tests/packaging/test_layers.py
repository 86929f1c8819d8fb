"""Which part may know of which: the engine knows no cache manager, and no published system, by name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

import kvsim.cache.load  # noqa: F401  (the managers register themselves)
from kvsim.cache.paged import cache_managers

# Names that are also plain words in the engine ("none", "paged blocks", chunks of a prefill) count only as strings in code.
PLAIN_WORDS = {"none", "contiguous", "paged", "chunks"}
SYSTEMS = (
    "cacheblend", "kivi", "h2o", "quest", "snapkv", "shadowkv", "streamingllm", "pyramidkv", "infinigen", "epic",
    "cachegen", "lmcache", "mooncake", "infllm", "retrievalattention", "turborag", "ragcache", "kvquant", "gear",
)  # fmt: skip


def _engine() -> list[Path]:
    return sorted(Path(str(files("kvsim.engine"))).rglob("*.py"))


def _strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.mark.parametrize("path", _engine(), ids=lambda path: path.name)
def test_the_engine_names_no_cache_manager_and_no_method(path: Path) -> None:
    managers = set(cache_managers.names())
    assert {"none", "contiguous", "paged", "prefix_tree"} <= managers
    text = path.read_text(encoding="utf-8")
    words = set(re.findall(r"[a-z0-9_]+", text.lower()))
    assert not words & (managers - PLAIN_WORDS)
    assert not words & set(SYSTEMS)
    assert not set(_strings(ast.parse(text))) & managers


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", _engine(), ids=lambda path: path.name)
def test_the_engine_imports_no_cache_manager(path: Path) -> None:
    of_cache = {name for name in _imports(path) if name.startswith("kvsim.cache")}
    assert of_cache <= {"kvsim.cache.manager"}


def test_reports_read_result_folders_never_live_objects() -> None:
    for path in Path(str(files("kvsim.reports"))).rglob("*.py"):
        for name in _imports(path):
            assert not re.match(r"kvsim\.(engine|cluster|cache)\b", name), f"{path.name} imports {name}"
