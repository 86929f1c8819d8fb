"""Each reader on a few lines: every column written by hand."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from kvsim.errors import TraceError
from kvsim.workloads import SEGMENT_KINDS, Trace, files, lengths, read, readers

MS = 1_000_000
S = 1_000_000_000
CONSTANT = {"process": "constant", "rate_per_s": 1.0}


def prompts(trace: Trace) -> list[list[tuple[int, int, str]]]:
    """Per request its segments as (id, tokens, kind)."""
    segments = [
        (content, tokens, SEGMENT_KINDS[kind])
        for content, tokens, kind in zip(
            trace.segment_id.tolist(), trace.segment_tokens.tolist(), trace.segment_kind.tolist(), strict=True
        )
    ]
    offsets = trace.segment_offsets.tolist()
    return [segments[start:stop] for start, stop in pairwise(offsets)]


def test_kvsim_lengths_only(write):
    path = write(
        "t.jsonl",
        {"arrival_s": 0.372746, "input_tokens": 395, "output_tokens": 112},
        {"arrival_s": 1, "input_tokens": 8, "output_tokens": 1, "hash_ids": None, "session": None},
    )
    trace = read(path)
    trace.check_integrity()
    assert trace.name == "t.jsonl"
    assert trace.arrival_ns.tolist() == [372_746_000, 1 * S]
    assert trace.input_tokens.tolist() == [395, 8]
    assert trace.output_tokens.tolist() == [112, 1]
    assert trace.session.tolist() == trace.tenant.tolist() == trace.after.tolist() == [-1, -1]
    assert trace.content(0) == ([-2, -3], [395, 507])
    assert trace.content(1) == ([-4, -5], [8, 9])
    assert trace.kinds(1) == [SEGMENT_KINDS.index("user")]
    assert trace.sources[0]["file"] == "t.jsonl" and len(trace.sources[0]["sha256"]) == 64


@pytest.mark.parametrize("most", [15, 30])  # beyond 15 digits numpy's own reader takes them
def test_numbers_are_read_as_float_reads_them(most: int):
    draw = random.Random(3)
    whole = [draw.randrange(10 ** draw.randint(1, 9)) for _ in range(2_000)]
    decimals = [draw.randint(0, most - len(str(number))) for number in whole]
    texts = [
        f"{number}.{''.join(draw.choices('0123456789', k=places))}" if places else f"{number}"
        for number, places in zip(whole, decimals, strict=True)
    ]
    found = lengths.read_numbers(b"".join(b"%b " % text.encode() for text in texts))
    assert found.tolist() == [float(text) for text in texts]


def test_kvsim_lengths_are_read_many_lines_at_once(write, monkeypatch):
    """To the same numbers as line by line, which a further field enforces; lines of either kind may mix."""
    monkeypatch.setattr(files, "BLOCK_BYTES", 200)
    rng = random.Random(1)
    rows = [
        {"arrival_s": rng.choice([i, i + rng.random(), 1e-9 * i]), "input_tokens": 1 + i, "output_tokens": 2}
        for i in range(100)
    ]
    bulk, read_at_once = [], lengths.LengthLines.read

    def counting(self, block, start):
        found = read_at_once(self, block, start)
        bulk.append(0 if found is None else len(found[1]))
        return found

    monkeypatch.setattr(lengths.LengthLines, "read", counting)
    noted = [{**row, "note": 1} for row in rows]
    found = [
        read(write(f"{name}.jsonl", *lines))
        for name, lines in (
            ("fast", rows),
            ("slow", noted),
            ("both", rows[:13] + noted[13:50] + rows[50:]),
            ("turned", [dict(reversed(row.items())) for row in rows]),
        )
    ]
    assert sum(bulk) > 100, "hardly a line was read with others"
    for column in (
        "arrival_ns",
        "input_tokens",
        "output_tokens",
        "segment_offsets",
        "session",
        "after",
        "think_ns",
    ):
        fast, *others = (getattr(trace, column).tolist() for trace in found)
        assert others == [fast, fast, fast]


@pytest.mark.parametrize(
    "bad",
    [
        '{"arrival_s": 1, "input_tokens": 2.5, "output_tokens": 1}',
        '{"arrival_s": 1}, {"input_tokens": 1}',
        '{"arrival_s": 01, "input_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": 1., "input_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": -1, "input_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": 1, "input_tokens": 0, "output_tokens": 1}',
        '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1000000001}',
        '{"arrival_s": 4000000000, "input_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1} x',
        '{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1}{"arrival_s": 1, "input_tokens": 1, "output_tokens": 1}',
        '{"arrival_s": 1, "arrival_s": 1, "output_tokens": 1}',
        "[]",
    ],
)
def test_kvsim_names_the_line_among_many(write, bad):
    good = {"arrival_s": 1, "input_tokens": 1, "output_tokens": 1}
    for start in (good, '{"arrival_s": 1, "arrival_s": 1, "input_tokens": 1, "output_tokens": 1}'):
        with pytest.raises(TraceError, match=r"t\.jsonl:3: "):
            read(write("t.jsonl", start, good, bad, good))


def test_kvsim_largest_numbers_and_no_last_line_end(tmp_path):
    """What bulk reading leaves to the way line by line."""
    path = tmp_path / "t.jsonl"
    line = '{"arrival_s": 2000000000.5, "input_tokens": 1000000000, "output_tokens": 1}'
    path.write_bytes(
        b"\xef\xbb\xbf" + "\r\n".join([line, "", line.replace("2000000000.5", "2e9"), line]).encode()
    )
    trace = read(path)
    assert trace.arrival_ns.tolist() == [2_000_000_000 * S, *[2_000_000_000 * S + S // 2] * 2]
    assert trace.input_tokens.tolist() == [1_000_000_000] * 3


def test_kvsim_segments_win_and_the_rest_is_private(write):
    path = write(
        "t.jsonl.gz",
        {
            "arrival_s": 2,
            "input_tokens": 10,
            "output_tokens": 3,
            "segments": [["sys", 4, "system"], [7, 5]],
            "block_tokens": 4,
            "hash_ids": [1, 2, 3],
            "session": 5,
            "tenant": "acme",
        },
        {"arrival_s": 1, "input_tokens": 4, "output_tokens": 2, "segments": [["sys", 4, "system"]]},
    )
    trace = read(path)
    assert trace.arrival_ns.tolist() == [1 * S, 2 * S]  # sorted
    assert prompts(trace) == [[(0, 4, "system")], [(0, 4, "system"), (1, 5, "user")]]
    assert trace.content(0) == ([0, -3], [4, 6])
    assert trace.content(1) == ([0, 1, -4, -5], [4, 9, 10, 13])
    assert trace.session.tolist() == [-1, 0] and trace.session_names == ("5",)
    assert trace.tenant.tolist() == [-1, 0] and trace.tenant_names == ("acme",)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (
            {"hash_ids": [10, 11, 12]},
            [(0, 16, "user"), (1, 16, "user"), (2, 8, "user")],
        ),  # the last is partial
        ({"hash_ids": ["a", "b"]}, [(0, 16, "user"), (1, 16, "user")]),  # 8 tokens stay private
        ({"hash_ids": [1, 2, 3, 4, 5]}, [(0, 16, "user"), (1, 16, "user"), (2, 8, "user")]),  # cut
        ({"hash_ids_rle": [[7, 2], [1, 9]]}, [(0, 16, "user"), (1, 16, "user"), (2, 8, "user")]),
        ({"hash_ids": []}, []),
    ],
)
def test_kvsim_block_ids(write, ids, expected):
    row = {"arrival_s": 0, "input_tokens": 40, "output_tokens": 1, "block_tokens": 16, **ids}
    trace = read(write("t.jsonl", row))
    trace.check_integrity()
    assert prompts(trace) == [expected]


def test_kvsim_closed_loop_and_continued_answer(write):
    path = write(
        "t.jsonl",
        {"arrival_s": 5, "input_tokens": 9, "output_tokens": 1, "after": 1, "think_s": 2.5},
        {"arrival_s": 1, "input_tokens": 4, "output_tokens": 2, "output_id": "answer"},
        {
            "arrival_s": 5,
            "input_tokens": 6,
            "output_tokens": 1,
            "after": 1,
            "segments": [["q", 4], ["answer", 2]],
        },
    )
    trace = read(path)
    trace.check_integrity()
    assert trace.after.tolist() == [-1, 0, 0]
    assert trace.think_ns.tolist() == [0, 2_500_000_000, 0]
    assert trace.output_id.tolist() == [0, -1, -1]
    assert trace.content(2) == ([1, 0, -7], [4, 6, 7])


def test_mooncake(write):
    path = write(
        "m.jsonl",
        {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [0, 1]},
        {"timestamp": 3000, "input_length": 1024, "output_length": 6, "hash_ids": [0, 46]},
    )
    trace = read(path)
    assert trace.sources[0]["reader"] == "mooncake"
    assert trace.arrival_ns.tolist() == [0, 3 * S]
    assert prompts(trace) == [[(0, 512, "user"), (1, 488, "user")], [(0, 512, "user"), (2, 512, "user")]]


def test_azure_keeps_the_seventh_decimal(write):
    path = write(
        "a.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16 18:15:50.9951691,396,109",
        "2023-11-16T19:15:51.6805900+01:00,879,55",
    )
    trace = read(path)
    assert trace.arrival_ns.tolist() == [0, 4_314_579_100, 5 * S]
    assert trace.input_tokens.tolist() == [374, 396, 879]
    assert trace.output_tokens.tolist() == [44, 109, 55]
    assert len(trace.segment_id) == 0


def test_servegen(write):
    path = write(
        "s.csv.gz", "timestamp_s,tenant,input_length,output_length,reason_ratio", "0.019,65,2165,663,0.5"
    )
    trace = read(path)
    assert trace.arrival_ns.tolist() == [19 * MS]
    assert (trace.input_tokens.item(), trace.output_tokens.item(), trace.tenant_names) == (2165, 663, ("65",))


def test_ragpulse_order_kinds_and_scopes(write):
    row = {
        "timestamp": 27000,
        "session": "s-1",
        "input_length": 60,
        "output_length": 9,
        "user": [[1, 7]],
        "web": [[1, 6]],
        "history": [[1, 5]],
        "passages": [[1, 20], [2, 3]],
        "sys": [[1, 11]],
    }
    trace = read(write("r.jsonl", row))
    trace.check_integrity()
    assert trace.arrival_ns.tolist() == [27 * S]
    assert prompts(trace) == [
        [
            (0, 11, "system"),
            (1, 20, "chunk"),
            (2, 3, "chunk"),
            (3, 5, "history"),
            (4, 6, "chunk"),
            (5, 7, "user"),
        ]
    ]
    assert trace.content(0)[1] == [11, 31, 34, 39, 45, 52, 60, 69]  # 8 unexplained tokens, then the answer


def test_sharegpt_prompts_grow(write):
    path = write(
        "s.jsonl", {"session": 0, "turns": [[34, 244], [36, 319]]}, {"session": 1, "turns": [[0, 9], [2, 4]]}
    )
    trace = read(path, arrivals=CONSTANT, think_s=5)
    trace.check_integrity()
    assert trace.arrival_ns.tolist() == [0, 1 * S, 5 * S, 6 * S]
    assert trace.session.tolist() == [0, 1, 0, 1]
    assert trace.after.tolist() == [-1, -1, 0, 1]
    assert trace.think_ns.tolist() == [0, 0, 5 * S, 5 * S]
    assert trace.input_tokens.tolist() == [
        34,
        1,
        34 + 244 + 36,
        1 + 9 + 2,
    ]  # an empty first turn is one token
    first, _, second, _ = prompts(trace)
    answer = trace.output_id.item(0)
    assert first == [(0, 34, "user")]
    assert second == [(0, 34, "history"), (answer, 244, "history"), (2, 36, "user")]


def test_sharegpt_caps(write):
    path = write(
        "s.jsonl", {"session": 0, "turns": [[10, 10], [10, 10], [10, 10]]}, {"session": 1, "turns": [[5, 5]]}
    )
    assert len(read(path, arrivals=CONSTANT, max_sessions=1)) == 3
    assert read(path, arrivals=CONSTANT, max_turns=1).input_tokens.tolist() == [10, 5]
    assert sorted(read(path, arrivals=CONSTANT, max_prompt_tokens=30).input_tokens.tolist()) == [5, 10, 30]


MINISWE = (
    {"timestamp": 0, "session": "a", "turn": 0, "input_length": 20, "output_length": 5, "hash_ids": [1, 2]},
    {
        "timestamp": 2000,
        "session": "a",
        "turn": 1,
        "input_length": 36,
        "output_length": 6,
        "hash_ids": [1, 3, 4],
    },
    {"timestamp": 1000, "session": "b", "turn": 0, "input_length": 16, "output_length": 7, "hash_ids": [1]},
)


def test_agent_closed_loop_is_the_default(write):
    trace = read(write("a.jsonl", *MINISWE), think_s=0.5)
    trace.check_integrity()
    assert trace.arrival_ns.tolist() == [0, 1 * S, 2 * S]
    assert trace.after.tolist() == [-1, -1, 0]
    assert trace.think_ns.tolist() == [0, 0, S // 2]
    assert prompts(trace)[0] == [(0, 16, "user"), (1, 4, "user")]
    assert prompts(trace)[1] == [(0, 16, "user")]  # ids mean the same in every session


def test_agent_open_loop_replays_timestamps(write):
    trace = read(write("a.jsonl", *MINISWE), loop="open")
    assert trace.arrival_ns.tolist() == [0, 1 * S, 2 * S]
    assert trace.after.tolist() == [-1, -1, -1]


def test_agent_local_ids_and_own_think_times(write):
    common = {"input_length": 130, "output_length": 0, "hash_ids_rle": [[1, 2]]}
    path = write(
        "c.jsonl",
        {"timestamp": 10, "session": "a", "think_s": 0.0, **common},
        {"timestamp": 20, "session": "b", "think_s": 0.0, **common},
        {"timestamp": 30, "session": "a", "think_s": 12.0, **common},
        {"timestamp": 40, "session": "b", "think_s": None, **common},
    )
    trace = read(path, think_s=1.0)
    assert trace.think_ns.tolist() == [0, 0, 12 * S, 1 * S]
    assert trace.output_tokens.tolist() == [1, 1, 1, 1]  # a call without an answer counts as one token
    assert [[content for content, _, _ in prompt] for prompt in prompts(trace)] == [
        [0, 1],
        [2, 3],
        [0, 1],
        [2, 3],
    ]
    assert trace.content(0)[1] == [64, 128, 130, 131]
    shared = read(path, local_ids=False)
    assert shared.segment_id.tolist() == [0, 1] * 4


def test_agent_without_timestamps(write):
    rows = [
        {"session": "x", "input_length": 16, "output_length": 2, "hash_ids": [0], "next": "tool"},
        {"session": "x", "input_length": 32, "output_length": 2, "hash_ids": [0, 1], "next": "user"},
        {"session": "x", "input_length": 48, "output_length": 2, "hash_ids": [0, 1, 2], "next": "user"},
    ]
    path = write("t.jsonl", *rows)
    trace = read(path, arrivals={"process": "constant", "rate_per_s": 2}, think_s=10, tool_s=1)
    assert trace.after.tolist() == [-1, 0, 1]
    assert trace.think_ns.tolist() == [0, 1 * S, 10 * S]
    assert trace.arrival_ns.tolist() == [0, 1 * S, 11 * S]
    with pytest.raises(TraceError, match=r"t.jsonl:1: no 'timestamp'; give the option 'arrivals'"):
        read(path)
    with pytest.raises(TraceError, match="closed"):
        read(path, arrivals=CONSTANT, loop="open")


def test_chunks(write):
    path = write(
        "q.jsonl",
        {"query_id": 0, "query_tokens": 11, "chunks": ["d0", "d1"], "chunk_tokens": [512, 100]},
        {"query_id": 1, "query_tokens": 5, "chunks": ["d1"], "chunk_tokens": [100], "answer_tokens": 3},
    )
    trace = read(path, arrivals=CONSTANT, output_tokens=40, system_tokens=30)
    trace.check_integrity()
    assert trace.input_tokens.tolist() == [653, 135]
    assert trace.output_tokens.tolist() == [40, 3]
    assert prompts(trace)[1] == [(0, 30, "system"), (2, 100, "chunk")]
    assert trace.content(1) == ([0, 2, -4, -5], [30, 130, 135, 138])


def test_the_format_is_told_from_the_first_record(data: Path):
    arrivals = {"arrivals": CONSTANT}
    expected = {
        "mooncake_conversation_1000.jsonl.gz": ("mooncake", {}, 1000),
        "ragpulse_days0-2.jsonl.gz": ("ragpulse", {}, 3609),
        "azure2023_conv.csv.gz": ("azure", {}, 19366),
        "azure2023_code.csv.gz": ("azure", {}, 8819),
        "servegen_deepseek-r1_1h_x0.1.csv.gz": ("servegen", {}, 12649),
        "lmcache_miniswe.jsonl.gz": ("agent", {}, 402),
        "taubench_gpt4o_airline.jsonl.gz": ("agent", arrivals, 2454),
        "sharegpt_sessions_4000.jsonl.gz": ("sharegpt", arrivals, 15_000),
    }
    for file, (reader, options, requests) in expected.items():
        trace = read(data / file, **options)
        trace.check_integrity()
        assert trace.sources[0]["reader"] == reader
        if reader != "sharegpt":
            assert len(trace) == requests
    assert {"kvsim", "mooncake", "azure", "servegen", "ragpulse", "sharegpt", "agent", "chunks"} == set(
        readers
    )


def test_equal_seeds_give_equal_traces(data: Path):
    def once(seed: int) -> Trace:
        return read(
            data / "sharegpt_sessions_4000.jsonl.gz",
            arrivals={"process": "poisson", "rate_per_s": 3},
            think_s={"distribution": "exponential", "mean": 20},
            max_sessions=100,
            seed=seed,
        )

    assert np.array_equal(once(1).arrival_ns, once(1).arrival_ns)
    assert not np.array_equal(once(1).arrival_ns, once(2).arrival_ns)
