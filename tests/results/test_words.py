"""Numbers and sentences as people read them: units, warnings, the terminal summary."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from kvsim.results import reading
from kvsim.results.recorder import Recorder
from kvsim.results.summary import summarise
from kvsim.results.table import MIN_WIDTH, print_summary, summary_console
from kvsim.results.units import duration, number, percent, size, usd


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (duration(None), "–"),
        (duration(0), "0 s"),
        (duration(42e-9), "0.0420 µs"),
        (duration(0.0009999), "1.00 ms"),
        (duration(0.31), "310 ms"),
        (duration(1.198), "1.20 s"),
        (duration(600), "10 min"),
        (duration(9000), "2.50 h"),
        (percent(0.123), "12 %"),
        (percent(0.0123), "1.2 %"),
        (percent(0.0001), "< 0.1 %"),
        (percent(0.0), "0 %"),
        (percent(1.0), "100 %"),
        (number(1234), "1,234"),
        (number(2.5e6), "2.50 M"),
        (number(999_600), "1.00 M"),
        (number(3.2e10), "32 G"),
        (size(131_072), "131 kB"),
        (size(80e9), "80 GB"),
        (usd(1234.5), "$1,234.50"),
        (usd(0.02), "$0.02"),
    ],
)
def test_units(shown, expected):
    assert shown == expected


def test_sentences(small_outcome):
    summary = summarise(small_outcome())
    assert reading.ttft_sentence(summary) == (
        "Half of the requests see their first token within 310 ms; the slowest 5 % spend 55 % of their wait"
        " in the queue."
    )
    assert (
        reading.cache_sentence(summary)
        == "Of all prompt tokens 4.0 % in hbm, 11 % in ddr; 2.5 % more reused approximately."
    )


def test_warnings(small_outcome):
    outcome = replace(small_outcome(), used_ns={("gemm", "measured"): 3, ("gemm", "extrapolated"): 1})
    assert reading.warnings_of(summarise(outcome)) == [
        "1 of 5 requests was rejected: prompt longer than the model's context (1).",
        "1 of 5 requests was unfinished at the end: the latencies leave them out and look better than they"
        " are.",
        "25 % of the simulated time is extrapolated beyond the profile: calibrate those sizes.",
        "2 preemptions: KV memory runs out while requests decode.",
        "Too short for TTFT p50, p90, p95, p99, TPOT p50, p90, p95, p99 and E2E p50, p90, p95, p99: fewer than 10"
        " independent requests lie beyond; percentile_intervals in summary.json says how far they may be off.",
    ]


def test_who_is_pushed_out_is_no_sign_of_little_memory(small_outcome):
    summary = summarise(replace(small_outcome(), num_pushed_out=2))
    assert summary["pushed_out"] == 2
    assert not [words for words in reading.warnings_of(summary) if "KV memory" in words]


def test_overload_is_said(small_outcome):
    summary = summarise(replace(small_outcome(), busy_ns=(10**10, 10**10)))
    summary["ttft_parts_s"]["mean"]["queue_s"] = 100.0
    assert "exceeds what they can serve" in reading.warnings_of(summary)[-1]


def printed(summary) -> str:
    stream = io.StringIO()
    print_summary(summary, Console(file=stream, width=100))
    return stream.getvalue()


def test_terminal(small_outcome):
    text = printed(summarise(small_outcome()))
    assert "3 of 5 requests in 10 s on 2 replicas × 4 H100 SXM" in text
    for line in (
        "time to first token    460 ms  310 ms  790 ms  850 ms  898 ms",
        "TTFT goes to        queue 43 % · KV load 3.6 % · prefill 51 % · host 2.2 %",
        "cache hits          15 % of prompt tokens · hbm 4.0 % · ddr 11 % · approximate reuse 2.5 %",
        "busy                replicas 50 % · host read 5.0 %",
        "warning: 1 of 5 requests was rejected",
    ):
        assert line in text, text


def test_a_pipe_wraps_nothing(small_outcome, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "40")
    summary = summarise(small_outcome())
    summary["utilisation"]["links"] = [
        {"name": f"pcie-gen5-x16-{i}", "direction": "write", "busy_ratio": 0.5} for i in range(20)
    ]
    print_summary(summary, summary_console())
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("busy") for line in lines) == 1
    assert next(line for line in lines if line.startswith("busy")).count("write 50 %") == 20
    assert all(line == "" or not line.startswith(" ") or "mean" in line for line in lines)


def test_a_narrow_terminal_cuts_nothing(small_outcome, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    console = summary_console()
    assert console.is_terminal and console.width == MIN_WIDTH
    print_summary(summarise(small_outcome()), console)
    assert "…" not in capsys.readouterr().out


def test_terminal_escapes_and_survives_an_empty_run(small_outcome):
    recorder = Recorder()
    recorder.rejected.append((0, "[bold]too long[/bold]"))
    empty = replace(
        small_outcome(),
        recorder=recorder,
        makespan_ns=0,
        requests_submitted=1,
        requests_unfinished=0,
        used_ns={},
        links=(),
    )
    text = printed(summarise(empty))
    assert "[bold]too long[/bold]" in text
    assert "No request finished" in text
