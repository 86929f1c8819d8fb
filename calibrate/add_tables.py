"""Tables of one profile added to another of the same GPU, as they are: nothing that was there is measured or written again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from kvsim.calibrate.write import write_header
from kvsim.cost.profile import Profile
from kvsim.errors import CalibrationError


def add_tables(new: Profile, to: Profile) -> list[str]:
    """Copy the tables of ``new`` beside ``to`` and name them in its header; the tables' names.

    A table says with which software it was measured, if the others were with another.

    Raises:
        CalibrationError: they are of different GPUs, or ``to`` has one of the tables already.
    """
    mine, theirs = (profile.header["gpu"].get("device", profile.gpu) for profile in (to, new))
    if mine != theirs:
        raise CalibrationError(f"{new.path}: measured on {theirs}; {to.path} is of {mine}")
    known = set(to.header["tables"])
    if both := [name for name in new.table_names if name in known]:
        raise CalibrationError(
            f"{to.path} has {', '.join(both)} already; measure others (kvsim calibrate --kernels), or remove these there"
        )
    tables = {name: _copied(new, to, name) for name in new.table_names}
    write_header(to.path, {**to.header, "tables": {**to.header["tables"], **tables}})
    return list(tables)


def _copied(new: Profile, to: Profile, name: str) -> dict[str, Any]:
    """What the header says of the table, now beside ``to``."""
    about: dict[str, Any] = dict(new.header["tables"][name])
    software = new.header.get("software")
    if software != to.header.get("software"):
        about.setdefault("software", dict(software or {}))
    about["file"] = _copy(new.path.parent / about["file"], to.path, name)
    if off_grid := about.get("off_grid"):
        file = _copy(new.path.parent / off_grid["file"], to.path, f"{name}.off_grid")
        about["off_grid"] = {**off_grid, "file": file}
    return about


def _copy(source: Path, to: Path, name: str) -> str:
    target = to.with_name(f"{to.stem}.{name}.parquet")
    shutil.copyfile(source, target)
    return target.name
