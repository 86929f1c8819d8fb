"""Bad cards and bad names of cards: one clear line, exit code 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kvsim.cli.main import run_command

SCENARIO = """\
workload:
  sources:
    - generator: lengths
      options:
        {requests: 3, input_tokens: 300, output_tokens: 8, arrivals: {process: constant, rate_per_s: 9}}
"""
GOOD: dict[str, Any] = {
    "name": "mine",
    "paper": {"title": "Mine"},
    "layers": ["eviction-policy"],
    "overlay": {"cache": {"eviction": "sieve"}},
    "modelled": ["something"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("s.yaml").write_text(SCENARIO)
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run_command(list(arguments))
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1, err
    assert not Path("results").exists()
    return err.rstrip("\n")


def with_card(capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    Path("mine.yaml").write_text(yaml.safe_dump(GOOD | changes))
    return fails(capsys, "run", "s.yaml", "--set", "method=mine.yaml")


def test_the_good_one_runs(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(GOOD))
    assert run_command(["run", "s.yaml", "--set", "method=mine.yaml", "--no-report", "--json"]) == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"overlai": {}}, "mine.yaml.overlai: unknown key; did you mean 'overlay'?"),
        ({"overlay": {"cache": {"evicton": "lru"}}}, "mine.yaml.overlay.cache.evicton: unknown key; did you mean 'eviction'?"),
        ({"overlay": {"cach": {}}}, "mine.yaml.overlay.cach: unknown key; did you mean 'cache'?"),
        ({"overlay": {"name": "x"}}, "mine.yaml.overlay: 'name' belongs to the scenario; a card cannot set it"),
        (
            {"overlay": {"cache": {"tiers": [{"name": "*", "stored_ratio": 1.5}]}}},
            "mine.yaml.overlay.cache.tiers.0.stored_ratio: must be at most 1.0, found 1.5",
        ),
        (
            {"overlay": {"engine": {"gpu_memory_utilization": 1.2}}},
            "mine.yaml.overlay.engine.gpu_memory_utilization: must be at most 1.0, found 1.2",
        ),
        ({"neutral": {"cache": {"block_tokens": 0}}}, "mine.yaml.neutral.cache.block_tokens: must be at least 1, found 0"),
        ({"kernels": ["rotate_key"]}, "mine.yaml.kernels.0: no kernel is called 'rotate_key'; did you mean 'rotate_keys'?"),
        ({"paper": {"title": "Mine", "arxiv": "24.1"}}, "mine.yaml.paper.arxiv: an arXiv id looks like 2404.12457, found '24.1'"),
        ({"modelled": None}, "mine.yaml.modelled: expected a list, found None"),
        ({"name": "My card"}, "mine.yaml.name: a card's name has small letters, digits and hyphens, found 'My card'"),
        (
            {"parameters": [{"key": "cache.evict", "range": [0, 1], "why": "open"}]},
            "mine.yaml: parameters.0.key: the overlay does not set 'cache.evict'",
        ),
        (
            {
                "overlay": {"cache": {"block_tokens": 64}},
                "parameters": [{"key": "cache.block_tokens", "range": [8, 32], "why": "open"}],
            },
            "mine.yaml: parameters.0.range: cache.block_tokens is 64, outside 8 to 32",
        ),
        (
            {"claims": [{"kind": "sped", "metric": "TTFT", "value": "2x"}]},
            "mine.yaml.claims.0.kind: unknown value 'sped'; did you mean 'speed'?",
        ),
    ],
)  # fmt: skip
def test_a_bad_card(capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str | None) -> None:
    found = with_card(capsys, **changes)
    if said is None:
        assert found.startswith("mine.yaml")
    else:
        assert found == said


def test_an_unknown_kernel_is_told_the_kernels_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables of points between those of a grid are none."""
    found = with_card(capsys, kernels=["zzzz"])
    assert found.startswith("mine.yaml.kernels.0: no kernel is called 'zzzz'; known: ")
    assert "rotate_keys" in found and "off_grid" not in found


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "method=kivi,snapkv",
            "--set method: 'kivi,snapkv' are 2 names; several cards are methods: [kivi, snapkv]",
        ),
        ("method=marconni", "--set method: no method is called 'marconni'; did you mean 'marconi'?"),
        ("method=nothing.yaml", None),
        (
            "method=triforce",
            "--set method: 'triforce' has no card: it needs speculative decoding",
        ),
        ("method=[marconi]", "--set method: expected text, found ['marconi']; methods takes a list"),
        ("methods=marconi", "--set methods: expected a list, found 'marconi'; 'method' takes one name"),
        ("methods=[marconi, marconi]", "--set methods: 'marconi' is named twice"),
    ],
)
def test_a_bad_name(capsys: pytest.CaptureFixture[str], override: str, said: str | None) -> None:
    found = fails(capsys, "run", "s.yaml", "--set", override)
    assert found.endswith("nothing.yaml: no such file") if said is None else found.startswith(said)


def test_the_file_names_a_card_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("s.yaml").write_text("method: marconni\n" + SCENARIO)
    said = "s.yaml.method: no method is called 'marconni'; did you mean 'marconi'?"
    assert fails(capsys, "run", "s.yaml") == said
    Path("s.yaml").write_text("method: marconi\nmethods: [ragcache]\n" + SCENARIO)
    assert fails(capsys, "run", "s.yaml") == "s.yaml.method: 'methods' is given as well; give one of the two"


def test_two_cards_in_conflict(capsys: pytest.CaptureFixture[str]) -> None:
    said = fails(capsys, "run", "s.yaml", "--set", "methods=[paging-succinct-predictions, ragcache]")
    assert "'paging-succinct-predictions'" in said and "'ragcache'" in said and "cache.eviction" in said
