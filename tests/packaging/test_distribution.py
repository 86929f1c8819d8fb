"""The installed distribution is whole: packages, data, the command, and what a run may import."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from importlib.metadata import entry_points, requires
from pathlib import Path

import pytest

NEVER_IN_A_RUN = ("torch", "triton", "plotly", "scipy", "pandas", "ray", "vllm")
SCENARIO = """\
cluster: {replicas: 2, router: prefix_aware}
cache:
  manager: prefix_tree
  tiers: [{name: ddr, capacity: 64 GB}, {name: disk, link: nvme, capacity: 1 TB}]
workload:
  sources:
    - generator: chat
      options:
        {sessions: 5, turns: 3, user_tokens: 200, output_tokens: 20, arrivals: {process: constant, rate_per_s: 5}}
"""


ROOTS = ("kvsim", "kvsim.calibrate", "kvsim.workloads", "kvsim.reports")


def _folders(name: str) -> list[Path]:
    return [Path(folder) for folder in importlib.import_module(name).__path__]


def _modules() -> list[str]:
    """Names of all modules. From each root: in an editable install three of them do not lie below the first."""
    return sorted(
        {
            module.name
            for root in ROOTS
            for module in pkgutil.walk_packages([str(folder) for folder in _folders(root)], f"{root}.")
        }
    )


def test_the_four_folders_are_one_package() -> None:
    names = _modules()
    for name in (
        "kvsim.engine.replica",
        "kvsim.cost.profiles",
        "kvsim.calibrate.importers",
        "kvsim.workloads.trace",
    ):
        assert name in names
    assert "kvsim.reports.html" in names


def test_every_folder_with_modules_is_a_package() -> None:
    """A folder without __init__.py would be left out of the wheel, and still work in an editable install."""
    for root in ROOTS:
        for folder in _folders(root):
            for module in folder.glob("*/**/*.py"):
                assert (module.parent / "__init__.py").is_file(), f"{module.parent} has no __init__.py"


def _needs_a_gpu_package(error: ImportError) -> bool:
    return (error.name or "").split(".")[0] in ("torch", "triton", "vllm", "ray")


@pytest.mark.parametrize("name", _modules())
def test_every_module_imports(name: str) -> None:
    if name.endswith("__main__"):
        return
    try:
        importlib.import_module(name)
    except ImportError as error:
        if not _needs_a_gpu_package(error):
            raise


def test_data_is_there() -> None:
    assert any((folder / "py.typed").is_file() for folder in _folders("kvsim"))
    for package, pattern, least in (
        ("kvsim.model", "presets/*.yaml", 5),
        ("kvsim.hardware", "presets/*.yaml", 3),
        ("kvsim.engine", "profiles/*.yaml", 2),
        ("kvsim.cost", "profiles/*.yaml", 3),
        ("kvsim.cost", "profiles/*.parquet", 18),
        ("kvsim.methods", "catalog/*.yaml", 5),
        ("kvsim.methods", "systems.yaml", 1),
    ):
        found = [path.name for folder in _folders(package) for path in folder.glob(pattern)]
        assert len(found) >= least, f"{package}: only {found}"


def test_shipped_profiles_stay_small() -> None:
    (folder,) = _folders("kvsim.cost.profiles")
    assert sum(path.stat().st_size for path in folder.iterdir() if path.is_file()) < 8e6


def test_the_base_install_asks_for_no_gpu_package() -> None:
    base = [line for line in requires("kvsim") or [] if "extra ==" not in line]
    assert base and not [
        line for line in base if line.startswith(("torch", "triton", "ray", "pandas", "vllm"))
    ]


def test_the_command_is_installed() -> None:
    (command,) = entry_points(group="console_scripts", name="kvsim")
    assert command.value == "kvsim.cli.main:main"
    found = subprocess.run([sys.executable, "-m", "kvsim.cli.main", "--help"], capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert "Example: kvsim run" in found.stdout


def test_a_run_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SCENARIO)
    code = (
        "import json, sys; from kvsim.cli.main import run_command;"
        "code = run_command(['run', 'small.yaml', '--no-report', '--json']);"
        f"heavy = sorted(set({NEVER_IN_A_RUN!r}) & set(sys.modules));"
        "print(json.dumps([code, heavy]), file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert json.loads(found.stderr.splitlines()[-1]) == [0, []]
    assert json.loads(found.stdout)["requests_completed"] == 15
