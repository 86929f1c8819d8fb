"""run.json: what describes the machine and the day of a run, so that everything else can be compared."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from kvsim.version import __version__

PACKAGES = ("numpy", "simpy", "pyarrow", "pydantic", "pyyaml")


def machine_facts() -> dict[str, Any]:
    """Interpreter, platform, CPU count, package versions and the time in UTC; no host or user name."""
    return {
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "packages": {"kvsim": __version__} | {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
