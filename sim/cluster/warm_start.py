"""Caches that outlive a run: written to a file at its end, and what another run begins with."""

from __future__ import annotations

import gzip
import json
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvsim.cache.manager import CacheManager
from kvsim.cache.saved import fresh_ids
from kvsim.errors import ScenarioError
from kvsim.version import __version__
from kvsim.workloads.trace import Trace

FORMAT = 1


def save_cache(path: Path, managers: Sequence[CacheManager], trace: Trace) -> None:
    """Write what every replica's manager holds after a run: JSON, compressed.

    Raises:
        ScenarioError: the file cannot be written.
    """
    data = {
        "format": FORMAT,
        "kvsim_version": __version__,
        "block_tokens": managers[0].block_tokens,
        "sources": _sources(trace),
        "replicas": [manager.saved(_names(trace)) for manager in managers],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) as file,
        ):  # the same bytes every time
            file.write(json.dumps(data, separators=(",", ":")).encode())
    except OSError as error:
        raise ScenarioError(f"--save-cache {path}: cannot be written: {error.strerror}") from None


def check_can_save(managers: Sequence[CacheManager]) -> None:
    """Say before a run whether anything could be saved after it.

    Raises:
        ScenarioError: the manager keeps nothing that can be saved.
    """
    if any(manager.saved(str) is None for manager in managers):
        raise ScenarioError(
            "--save-cache: this cache manager keeps nothing that can be saved; set cache.manager=prefix_tree, or leave "
            "--save-cache out"
        )


def check_save_to(path: Path, force: bool) -> None:
    """Say before a run whether its caches can be saved to ``path``.

    Raises:
        ScenarioError: something is there, and not to be replaced.
    """
    if path.is_dir():
        raise ScenarioError(f"--save-cache {path}: is a folder; give the name of a file")
    if path.exists() and not force:
        raise ScenarioError(
            f"--save-cache {path}: already there; give --force to replace it, or another name"
        )


def restore_cache(path: Path, managers: Sequence[CacheManager], trace: Trace) -> dict[str, Any]:
    """Change, before the run. Replica i begins with what replica i of the saved run held, modulo their number.

    What it brought: ``tokens`` by tier (of all replicas), ``contents`` that were saved, and how many of them are
    ``known`` to the trace, each counted once.

    Raises:
        ScenarioError: no such file, or it was saved with other blocks or from other traces.
    """
    _check_can_start_warm(managers, trace)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ScenarioError(f"cache.warm_start: {path}: {error.strerror}") from None
    try:
        data = json.loads(gzip.decompress(raw))
        if data["format"] != FORMAT:
            raise ScenarioError(
                f"cache.warm_start: {path}: format {FORMAT} is expected, found {data['format']}"
            )
        size, sources, replicas = data["block_tokens"], data["sources"], data["replicas"]
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError):
        raise ScenarioError(
            f"cache.warm_start: {path}: not a file that kvsim run --save-cache wrote"
        ) from None
    if size != managers[0].block_tokens:
        raise ScenarioError(
            f"cache.warm_start: {path} has blocks of {size} tokens, this run blocks of {managers[0].block_tokens}; "
            f"set cache.block_tokens={size}"
        )
    for source, about in _sources(trace).items():
        if source in sources and sources[source] != about:
            raise ScenarioError(
                f"cache.warm_start: {path}: source '{source}' had another file or other parameters when it was saved, "
                "so equal contents cannot be told"
            )
    find = _finder(trace)
    known, new = set[str](), set[str]()

    def found(name: str) -> int | None:
        ident = find(name)
        (new if ident is None else known).add(name)
        return ident

    ident, tokens = fresh_ids(found), Counter[str]()
    for i, manager in enumerate(managers):
        tokens.update(manager.restore(replicas[i % len(replicas)], ident))
    return {"tokens": dict(tokens), "contents": len(known) + len(new), "known": len(known)}


def _check_can_start_warm(managers: Sequence[CacheManager], trace: Trace) -> None:
    if not trace.names_content:
        raise ScenarioError(
            "cache.warm_start: no prompt of this workload says what it contains, so nothing that was saved can be "
            "reused; leave it out"
        )
    for manager in managers:
        if type(manager).restore is CacheManager.restore:
            raise ScenarioError(
                "cache.warm_start: this cache manager keeps nothing between requests; take prefix_tree"
            )
        if manager.needs_future:
            raise ScenarioError(
                "cache.warm_start: an eviction policy that knows the future cannot rank what is older"
            )


def _sources(trace: Trace) -> dict[str, Any]:
    """What each source's content ids count in."""
    names = [name for name, _ in trace.id_starts]
    abouts = [{"sha256": s["sha256"]} if "sha256" in s else dict(s) for s in trace.sources]
    return dict(zip(names, abouts, strict=True)) if len(names) == len(abouts) else {}


def _names(trace: Trace) -> Callable[[int], str]:
    starts = trace.id_starts or (("", 0),)
    firsts = [first for _, first in starts]

    def name(ident: int) -> str:
        if ident < 0:
            return f"-{-ident}"  # private to a request
        source, first = starts[bisect_right(firsts, ident) - 1]
        return f"{source}/{ident - first}"

    return name


def _finder(trace: Trace) -> Callable[[str], int | None]:
    starts: Mapping[str, int] = dict(trace.id_starts or (("", 0),))

    def find(name: str) -> int | None:
        source, slash, number = name.rpartition("/")
        return starts[source] + int(number) if slash and source in starts else None

    return find
