"""The claims that come with kvsim: each runs, and docs/reproduce.md has what comes out."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from kvsim.cli.reproduce import span
from kvsim.methods.systems import list_methods
from kvsim.study.claims import claim_files, load_claim
from kvsim.study.reproduce import VERDICTS, reproduce

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "scenarios" / "papers"
PAGE = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
ROWS = {
    row[0]: row[1:]
    for row in re.findall(
        r"^\| \[([\w-]+)\]\(.*?\) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \| (\d+) of (\d+) \| (.*?) \|$",
        PAGE,
        re.MULTILINE,
    )
}
NEAR = 0.1  # of figures in the docs, which move a little with every change of a price


def test_the_page_has_every_claim_and_the_three_counts() -> None:
    assert set(ROWS) == set(claim_files(FOLDER))
    counts = Counter(row[-1] for row in ROWS.values())
    assert "**" + ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS) + ".**" in PAGE


@pytest.mark.parametrize("name", sorted(claim_files(FOLDER)))
def test_the_page_says_what_comes_out(name: str) -> None:
    claim = load_claim(FOLDER / f"{name}.yaml")
    assert claim.system in system_names()
    result = reproduce(claim, FOLDER)
    system, claimed, simulated, median, _, num_points, verdict = ROWS[name]
    unit = result["unit"]
    assert (system, claimed, int(num_points), verdict) == (
        claim.system, span(result["claimed"], unit), result["num_points"], result["verdict"],
    )  # fmt: skip
    found = f"{span(result['simulated'], unit)} {span([result['median']], unit)}"
    assert numbers(f"{simulated} {median}") == pytest.approx(numbers(found), rel=NEAR)


@cache
def system_names() -> set[str]:
    return {row["name"] for row in list_methods()}


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[\d.]+", text.replace(",", ""))]
