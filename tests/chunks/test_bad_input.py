"""Options that cannot be used: one line that says where, what was found and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvsim.cli.main import run_command


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("{share: 1.2}", "cache.options.share: must be at most 1.0, found 1.2"),
        ("{shar: 0.2}", "cache.options.shar: unknown key; did you mean 'share'?"),
        ("{hit: recomput}", "cache.options.hit: unknown value 'recomput'; did you mean 'recompute'?"),
        ("{kinds: [chunks]}", "cache.options.kinds.0: unknown value 'chunks'; did you mean 'chunk'?"),
        ("{hit: attach, share: 0.2}", "cache.options: share needs hit: recompute; change one of the two"),
        ("{kept: 0.5}", "cache.options: kept below 1 needs hit: attach or rotate; change one of the two"),
        (
            "{made: alone, where: same_context}",
            "cache.options: where: same_context needs made: in_context; change one of the two",
        ),
        ("{slo: 1 s}", "cache.options: slo needs levels; change one of the two"),
        ("{hbm: 3}", "cache.options.hbm: 3 has no unit; write '3 GB' or '3 GiB'"),
        ("{preload: dd}", "cache.options.preload: nothing is called 'dd'; did you mean 'ddr'?"),
        (
            "{hit: attach, levels: [{name: a, ratio: 0.2}, {name: b, ratio: 0.3}]}",
            "cache.options: levels: ratios have to fall, finest first; found 0.2, 0.3",
        ),
    ],
)
def test_options(options: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(["--set", f"cache.options={options}"], line, tmp_path, capsys)


@pytest.mark.parametrize(
    ("tier", "line"),
    [
        ("write=back", "cache.tiers.0.write: manager 'chunks' writes through or on_eviction, found 'back'"),
        (
            "eviction=belady",
            "cache.tiers.0.eviction: this policy ranks prefixes; manager 'chunks' cannot use it for entries",
        ),
    ],
)
def test_tiers(tier: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(["--set", f"cache.tiers.ddr.{tier}"], line, tmp_path, capsys)


def test_more_than_hbm_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = run(["--set", "cache.options={hbm: 90 GB}"], tmp_path, capsys)
    assert code == 2
    assert err.startswith("cache.options.hbm: 90,000,000,000 bytes are more than the ")


def run(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    scenario = tmp_path / "small.yaml"
    scenario.write_text(
        "cache: {manager: chunks, tiers: [{name: ddr, capacity: 1 GB}]}\n"
        "workload:\n  sources:\n    - generator: lengths\n      options: {requests: 3, input_tokens: 90, output_tokens: 2,"
        " arrivals: {process: poisson, rate_per_s: 1}}\n"
    )
    code = run_command(["run", str(scenario), "--no-report", "--out", str(tmp_path / "out"), *arguments])
    return code, capsys.readouterr().err.strip()


def check(arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments, tmp_path, capsys) == (2, line)
