"""What a user can get wrong: one line that says where, what was found and what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvsim.cli.main import run_command
from kvsim.errors import TraceError
from kvsim.workloads import read
from kvsim.workloads.operations import mix
from kvsim.workloads.writer import write_kvsim_jsonl

CURVE = "curve: [{threshold: 0.8, hit_ratio: 0.6, error_ratio: 0.2}, {threshold: 0.9, hit_ratio: 0.4, error_ratio: 0.1}]"
WHERE = "cluster.response_cache"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("{respones: 3}", f"{WHERE}.respones: unknown key; did you mean 'responses'?"),
        ("{hits: similar}", f"{WHERE}.hits: unknown value 'similar'; did you mean 'similarity'?"),
        ("{responses: 0}", f"{WHERE}.responses: must be at least 1, found 0"),
        ("{lookup: 5}", f"{WHERE}.lookup: 5 has no unit; write '5 s' or '5 ms'"),
        ("{responses: 3, capacity: 1 MB}", "give 'responses' or 'capacity', not both"),
        (
            "{eviction: belady}",
            f"{WHERE}.eviction: 'belady' does not work on responses; known: lru, fifo, lfu, gdsf, lec, ttl",
        ),
        ("{eviction: lex}", f"{WHERE}.eviction: no eviction policy is called 'lex'; did you mean 'lec'?"),
        ("{eviction: {seconds: 3}}", "'policy' is missing; write a name, or {policy: ttl, seconds: 300}"),
        ("{threshold: 0.9}", "hits: exact has no 'threshold'"),
        ("{hits: similarity, source: x}", "hits: similarity needs a 'threshold'"),
        (
            "{hits: similarity, threshold: 0.9}",
            "hits: similarity needs 'source': whose similarities or curve these are",
        ),
        (
            "{hits: similarity, threshold: 0.9, source: x}",
            f"{WHERE}.hits: 'similarity' needs a trace with similar_to, similarity and correct; see docs/responses.md",
        ),
        (
            "{hits: similarity, threshold: 0.9, source: x, explore: 0.1}",
            "explore goes with threshold: learned",
        ),
        ("{hits: curve, threshold: 0.9, source: x}", "'curve' and hits: curve go together"),
        (
            f"{{hits: curve, threshold: 0.7, source: x, {CURVE}}}",
            "threshold 0.7 lies outside the curve, 0.8 to 0.9",
        ),
        (
            f"{{hits: curve, threshold: learned, source: x, {CURVE}}}",
            "threshold: learned needs hits: similarity; a curve is read at a number",
        ),
        (
            f"{{hits: curve, threshold: 0.9, source: x, responses: 9, {CURVE}}}",
            "a curve holds for the cache it was measured on; leave responses, capacity, eviction and scope out",
        ),
        (
            "{hits: curve, threshold: 0.8, source: x, curve: [{threshold: 0.8, hit_ratio: 0.1, error_ratio: 0.2}]}",
            "error_ratio 0.2 is more than hit_ratio 0.1; both are shares of all requests",
        ),
        (
            "{lookup: [{entries: 9, time: 1 ms}, {entries: 3, time: 1 ms}]}",
            f"{WHERE}.lookup: the points have to ascend, found 9, 3",
        ),
        ("{scope: tenant}", f"{WHERE}.scope: 'tenant' shares nothing, as the workload names no tenant"),
    ],
)
def test_settings(setting: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = tmp_path / "small.yaml"
    scenario.write_text(
        "workload: {sources: [{generator: queries, options: {requests: 5, queries: 2, input_tokens: 20,"
        " output_tokens: 2, arrivals: {process: constant, rate_per_s: 1}}}]}\n"
    )
    code = run_command(["run", str(scenario), "--set", f"cluster.response_cache={setting}"])
    said = capsys.readouterr().err.strip()
    assert code == 2 and "\n" not in said and said.endswith(line), said
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


ROW = {"arrival_s": 0, "input_tokens": 4, "output_tokens": 2}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"similar_to": "a", "similarity": 0.5},
            "t.jsonl:2: 'similar_to' without 'correct'; give similar_to, similarity, correct together",
        ),
        (
            {"similar_to": "a", "similarity": 1.5, "correct": True},
            "t.jsonl:2: similarity is 1.5; it has to be a number from 0 to 1",
        ),
        (
            {"similar_to": "a", "similarity": 1, "correct": 1},
            "t.jsonl:2: correct is 1; it has to be true or false",
        ),
        (
            {"similar_to": "c", "similarity": 1, "correct": True},
            "t.jsonl: request 1, counted from 0, is similar_to 'c', which no request has as its query",
        ),
        ({"similarty": 1}, "t.jsonl:2: unknown field 'similarty'; did you mean 'similarity'?"),
    ],
)
def test_traces(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({**ROW, "query": "a"}, {**ROW, **fields})))
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).endswith(message)


def test_queries_survive_writing_mixing_and_slicing(tmp_path: Path) -> None:
    rows = [
        {**ROW, "query": "a"},
        {**ROW, "arrival_s": 2, "query": "b", "similar_to": "a", "similarity": 0.25, "correct": True},
        {**ROW, "arrival_s": 1, "similar_to": "b", "similarity": 0.5, "correct": False},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = read(tmp_path / "t.jsonl")
    write_kvsim_jsonl(trace, tmp_path / "again.jsonl")
    (tmp_path / "plain.jsonl").write_text(json.dumps({**ROW, "arrival_s": 9}) + "\n" + json.dumps(ROW) + "\n")
    for found in (trace, read(tmp_path / "again.jsonl")):
        assert found.queries is not None
        a, none, b = found.queries.query.tolist()
        assert (a, none) != (b, b) and none == -1
        assert found.queries.similar_to.tolist() == [-1, b, a]
        assert found.queries.similarity.tolist() == [0, 0.5, 0.25]
        assert found.queries.correct.tolist() == [False, False, True]
    both = mix({"x": trace, "y": read(tmp_path / "plain.jsonl"), "z": trace})
    assert both.queries is not None
    named = both.queries.query.tolist()
    assert sorted(named) == [-1, -1, -1, 0, 1, 2, 3] and len(both) == 7, (
        "queries of two sources are different"
    )
    part = both.take(both.arrival_ns.argsort(kind="stable")[:4])
    assert part.queries is not None and len(part.queries.query) == 4
