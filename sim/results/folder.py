"""The result folder: appears complete or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kvsim.errors import ScenarioError
from kvsim.results.columns import request_columns
from kvsim.results.machine import machine_facts
from kvsim.results.outcome import Outcome
from kvsim.results.parquet import write_requests, write_timeline
from kvsim.results.summary import summarise

SUMMARY, REQUESTS, TIMELINE = "summary.json", "requests.parquet", "timeline.parquet"
SCENARIO, RUN, REPORT = "scenario.resolved.yaml", "run.json", "report.html"


def check_output_folder(path: Path | str, force: bool = False) -> None:
    """Say before a simulation whether its results can be written to ``path``.

    A new or empty folder can, one with results (a summary.json) needs ``force``, any other is never touched.

    Raises:
        ScenarioError: in one line, what is in the way and what to do.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(os.listdir(path))
        if found and SUMMARY not in found:
            some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise ScenarioError(f"{path}: holds other files ({some}); results go to a new or empty folder")
        if found and not force:
            raise ScenarioError(
                f"{path}: already holds results; give --force to replace them, or another folder"
            )
    check_can_write(path)


def check_can_write(path: Path) -> None:
    """The folder ``path`` can be written, or made.

    Raises:
        ScenarioError: in one line, what is in the way.
    """
    if not path.is_dir() and (path.exists() or path.is_symlink()):
        raise ScenarioError(f"{path}: is a file; results go to a folder")
    nearest = next(folder for folder in path.resolve().parents if folder.exists())
    if not nearest.is_dir():
        raise ScenarioError(f"{path}: {nearest} is a file, not a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ScenarioError(f"{path}: no permission to write in {nearest}")


def write_results(
    outcome: Outcome, out_dir: Path | str, force: bool = False, finish: Callable[[Path], object] | None = None
) -> dict[str, Any]:
    """Write the folder of a run and give its summary.

    Everything is written into a hidden sibling, which then takes the place of ``out_dir`` in one rename; with
    ``force`` the old results go only after that. ``finish`` is called with the sibling before the rename and
    may add files (a report); if it fails, nothing appears.

    Raises:
        ScenarioError: as :func:`check_output_folder`, or the disk says no.
    """
    out = Path(out_dir)
    check_output_folder(out, force)
    out = out.resolve()
    new = out.parent / f".{out.name}.new-{secrets.token_hex(4)}"
    try:
        new.mkdir(parents=True)
        summary = _write_files(outcome, new)
        if finish is not None:
            finish(new)
        _replace(new, out)
    except OSError as error:
        raise ScenarioError(f"{out}: cannot be written ({error})") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return summary


def _write_files(outcome: Outcome, folder: Path) -> dict[str, Any]:
    columns = request_columns(outcome.recorder.requests, len(outcome.tier_names))
    summary = summarise(outcome, columns)
    write_requests(columns, outcome, folder / REQUESTS)
    write_timeline(outcome, folder / TIMELINE)
    _write_json(summary, folder / SUMMARY)
    _write_json(machine_facts() | {"loop_wall_s": outcome.loop_wall_s}, folder / RUN)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump(_plain(outcome.scenario), Dumper=dumper, sort_keys=False, allow_unicode=True, width=110)
    (folder / SCENARIO).write_text(text, encoding="utf-8")
    return summary


def _write_json(value: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Only what YAML can say: mappings to dict, tuples to list, paths to str."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _replace(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out``; if that fails, ``out`` is as it was."""
    if not out.exists():
        new.rename(out)
        return
    old = out.parent / f".{out.name}.old-{secrets.token_hex(4)}"
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
