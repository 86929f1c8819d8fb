"""docs/workloads.md names every reader, generator and option, and what it shows can be read or generated."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.workloads import generate, generators, read, readers
from kvsim.workloads.generators.arrivals import processes
from kvsim.workloads.generators.draws import distributions
from kvsim.workloads.lengths import REQUIRED
from kvsim.workloads.readers.kvsim_jsonl import OPTIONAL

PAGE = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))
ARRIVALS = {"process": "poisson", "rate_per_s": 1}


def options(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]


@pytest.mark.parametrize(
    ("name", "function"), [*readers.items(), *generators.items()], ids=[*readers, *generators]
)
def test_a_reader_or_generator_and_its_options(name: str, function: Callable[..., Any]) -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", SECTIONS[name], re.MULTILINE)
    shown = {option: default for names, default in rows for option in re.findall(r"`(\w+)`", names)}
    for option in options(function):
        assert option.name in shown, f"{name}: {option.name} is not on the page"
        required = option.default is inspect.Parameter.empty
        assert (shown[option.name] == "required") == required, option.name
        if isinstance(option.default, float | int) and option.name != "seed":
            assert shown[option.name] == f"{option.default:g}", option.name


def test_the_page_names_nothing_else() -> None:
    assert set(SECTIONS) == {*readers, *generators}


@pytest.mark.parametrize("registry", [processes, distributions], ids=["processes", "distributions"])
def test_processes_and_distributions(registry: Any) -> None:
    for name, function in registry.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", PAGE, re.MULTILINE)
        assert all(f"`{option.name}`" in row for option in options(function)), row


def test_fields_of_kvsim_lines() -> None:
    assert all(f"`{field}`" in SECTIONS["kvsim"] for field in (*REQUIRED, *OPTIONAL))


def test_shipped_files(data: Path) -> None:
    for file in data.glob("*.gz"):
        (row,) = re.findall(rf"^\| .*`{re.escape(file.name)}`.* \| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
        needs_arrivals = row[1].startswith("`arrivals`")
        trace = read(file, **({"arrivals": ARRIVALS} if needs_arrivals else {}))
        assert trace.sources[0]["reader"] == row[0]


@pytest.mark.parametrize("name", readers)
def test_the_lines_of_a_reader_are_its_own(name: str, tmp_path: Path) -> None:
    (text,) = re.findall(r"```(?:json|csv)\n(.*?)```", SECTIONS[name], re.DOTALL)
    path = tmp_path / "trace"
    path.write_text(text)
    needed = {p.name for p in options(readers[name]) if p.default is inspect.Parameter.empty}
    trace = read(path, **{option: ARRIVALS for option in needed})
    trace.check_integrity()
    assert len(trace) and trace.sources[0]["reader"] == name


@pytest.mark.parametrize("name", generators)
def test_the_example_of_a_generator_runs(name: str, data: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", SECTIONS[name], re.DOTALL)
    source = yaml.safe_load(text)
    given = source["options"]
    if "trace" in given:
        given["trace"] = read(data.parent / given["trace"])
    trace = generate(source["generator"], **given)
    assert source["generator"] == name and len(trace)
