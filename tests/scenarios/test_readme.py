"""What the README shows works: its scenario loads, its plug-in groups exist, its commands are commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from kvsim.cli.main import run_command
from kvsim.scenario.load import load_scenario, parse_scenario
from kvsim.study.axes import parse_axes
from kvsim.study.points import grid_points

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)


def test_the_two_commands_are_one_line_each() -> None:
    install_and_run, install_and_test = (block.strip() for block in blocks("sh"))
    assert "\n" not in install_and_run + install_and_test
    assert install_and_run.startswith("python3 -m venv .venv && .venv/bin/pip install .")
    assert install_and_run.endswith(".venv/bin/kvsim run scenarios/rag_mix.yaml")
    assert install_and_test.endswith(".venv/bin/pytest -n 2")
    # .ci/run takes the second from here, by this pattern
    assert len(re.findall(r"^python3 -m venv .*pytest", README, re.MULTILINE)) == 1


def test_the_scenario_loads(tmp_path: Path) -> None:
    (tmp_path / "my_trace.jsonl").write_text(
        '{"arrival_s": 0.5, "input_tokens": 900, "output_tokens": 120}\n'
    )
    (text,) = blocks("yaml")
    scenario = parse_scenario(yaml.safe_load(text), base=tmp_path)
    assert [tier.name for tier in scenario.cache.tiers] == ["ddr", "disk"]


@pytest.mark.parametrize(
    "name",
    sorted(set(re.findall(r"`kvsim ((?:run|sweep|compare|explain memory|profiles import))\b", README))),
)
def test_its_commands_exist(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([*name.split(), "--help"]) == 0


def test_its_overrides_are_keys() -> None:
    overrides = re.findall(r"--set '?([\w.]+=[^'` ]+)", re.sub(r"`kvsim sweep .*?`", "", README))
    assert len(overrides) >= 2
    load_scenario(ROOT / "scenarios" / "rag_mix.yaml", overrides)


@pytest.mark.parametrize("text", [README, (ROOT / "docs" / "sweep.md").read_text(encoding="utf-8")])
def test_sweeps_are_grids(text: str) -> None:
    commands = re.findall(r"kvsim sweep ((?:--|[^`])*?--set [^`]*?)[`]", text)
    commands = [shlex.split(command.replace("\\\n", " ")) for command in commands if "KEY" not in command]
    assert commands
    for words in commands:
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        assert len(grid_points(ROOT / "scenarios" / "rag_mix.yaml", parse_axes(settings), {})) > 1


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if target.startswith(("docs/", "scenarios/")):
            assert (ROOT / target).exists(), target
