from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write(name, row, ...): a file of these lines; dicts become JSON, a name in .gz is zipped."""

    def write(name: str, *lines: str | dict[str, Any]) -> Path:
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        data = text.encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return write


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of shipped traces."""
    return Path(__file__).parents[2] / "scenarios" / "data"
