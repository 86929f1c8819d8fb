"""Tables that are added to a profile: what was there stays byte for byte, what comes keeps its own origin."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from kvsim.calibrate.add_tables import add_tables
from kvsim.calibrate.write import write_profile
from kvsim.cost.profile import SHIPPED, load_profile
from kvsim.errors import CalibrationError


def profile(folder: Path, name: str, tables: list[str], device: str = "GPU A", torch: str = "1") -> Path:
    header = {
        "name": name,
        "gpu": {"name": "gpu", "device": device},
        "source": "kvsim calibrate",
        "software": {"torch": torch},
    }
    columns = {"rows": np.array([1, 2]), "latency_us": np.array([3.0, 4.0])}
    return write_profile(folder, header, {table: ({"date": f"of {name}"}, columns) for table in tables})


def test_tables_come_as_they_are_and_say_their_software(tmp_path: Path) -> None:
    old = profile(tmp_path / "old", "old", ["a"])
    new = profile(tmp_path / "new", "new", ["b", "c"], torch="2")
    before = (tmp_path / "old" / "old.a.parquet").read_bytes()
    assert add_tables(load_profile(new), load_profile(old)) == ["b", "c"]
    found = load_profile(old)
    assert found.table_names == ("a", "b", "c")
    assert found.table("b").columns["latency_us"].tolist() == [3.0, 4.0]
    tables = found.header["tables"]
    assert tables["b"]["file"] == "old.b.parquet"
    assert tables["b"]["date"] == "of new"
    assert tables["b"]["software"] == {"torch": "2"}
    assert "software" not in tables["a"]
    assert (tmp_path / "old" / "old.a.parquet").read_bytes() == before


def test_what_cannot_be_added_is_said(tmp_path: Path) -> None:
    old = load_profile(profile(tmp_path, "old", ["a"]))
    with pytest.raises(CalibrationError, match=r"old\.yaml has a already"):
        add_tables(load_profile(profile(tmp_path, "same", ["a", "b"])), old)
    with pytest.raises(CalibrationError, match=r"measured on GPU B; .*old\.yaml is of GPU A"):
        add_tables(load_profile(profile(tmp_path, "other", ["b"], device="GPU B")), old)
    assert load_profile(old.path).table_names == ("a",)


def test_a_shipped_header_is_written_as_it_was(tmp_path: Path) -> None:
    for file in SHIPPED.glob("h100-sxm-measured*"):
        shutil.copyfile(file, tmp_path / file.name)
    known = load_profile(tmp_path / "h100-sxm-measured.yaml")
    before = known.path.read_text()
    new = profile(tmp_path, "new", ["one_more"], device=known.header["gpu"]["device"])
    add_tables(load_profile(new), known)
    after = known.path.read_text()
    assert after.startswith(before)
    assert "one_more" in after[len(before) :]
