"""What a user can get wrong in a trace file: one line that says where, what was found and what to do."""

from __future__ import annotations

import re

import pytest

from kvsim.errors import TraceError
from kvsim.workloads import generate, read
from kvsim.workloads.operations import mix, rescale_time, slice_sessions

GOOD = '{"arrival_s": 0, "input_tokens": 4, "output_tokens": 2}'
MISSING_ARRIVALS = re.escape(
    "the trace reader 'sharegpt' needs the option 'arrivals', such as "
    "{arrivals: {process: poisson, rate_per_s: 1}}; see docs/workloads.md"
)
CONSTANT = {"process": "constant", "rate_per_s": 1.0}


def kvsim(**changes):
    return {"arrival_s": 0, "input_tokens": 40, "output_tokens": 2, **changes}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"arrival_s": 0, "input',
            "t.jsonl:2: not JSON, column 18: Unterminated string starting at; write one JSON object a line",
        ),
        ("[1, 2]", "t.jsonl:2: found a list; write one JSON object a line"),
        (
            {"arrival_s": 0, "input_token": 4, "output_tokens": 1},
            "t.jsonl:2: no 'input_tokens'; the line has 'input_token': is it misspelt?",
        ),
        (
            {"arrival_s": 0, "input_tokens": 4},
            "t.jsonl:2: no 'output_tokens'; add it or name the right reader",
        ),
        (kvsim(sesion="a"), "t.jsonl:2: unknown field 'sesion'; did you mean 'session'?"),
        (kvsim(after=0, think=2), "t.jsonl:2: unknown field 'think'; did you mean 'think_s'?"),
        (kvsim(input_tokens="900"), "t.jsonl:2: input_tokens is '900'; it has to be a whole number"),
        (kvsim(arrival_s="1"), "t.jsonl:2: arrival_s is '1'; it has to be a number"),
        (kvsim(output_tokens=0), "t.jsonl:2: output_tokens is 0; it has to be a whole number of at least 1"),
        (
            kvsim(input_tokens=2.5),
            "t.jsonl:2: input_tokens is 2.5; it has to be a whole number of at least 1",
        ),
        (kvsim(input_tokens=True), "t.jsonl:2: input_tokens is True; it has to be a whole number"),
        (kvsim(input_tokens=10**12), "t.jsonl:2: input_tokens is 1000000000000; it has to be at most"),
        (kvsim(arrival_s=-1), "t.jsonl:2: arrival_s is -1; it has to be a number of at least 0"),
        (
            '{"arrival_s": NaN, "input_tokens": 4, "output_tokens": 2}',
            "t.jsonl:2: arrival_s is nan; it has to be a number",
        ),
        (
            kvsim(arrival_s=1e300),
            "t.jsonl:2: arrival_s is 1e+300; it has to be a number of at least 0 (and under a century)",
        ),
        (kvsim(arrival_s=None), "t.jsonl:2: arrival_s is None"),
        (kvsim(arrival_s=10**400), "t.jsonl:2: arrival_s is 1" + "0" * 56 + "...; it has to be"),
        (kvsim(hash_ids=[1]), "t.jsonl:2: no 'block_tokens'"),
        (kvsim(hash_ids=[1.5], block_tokens=16), "t.jsonl:2: hash_ids holds something that is no id"),
        (kvsim(hash_ids=7, block_tokens=16), "t.jsonl:2: hash_ids is 7; it has to be a list"),
        (
            kvsim(hash_ids_rle=[[1]], block_tokens=16),
            "t.jsonl:2: hash_ids_rle holds [1]; a run is [first id, count]",
        ),
        (kvsim(hash_ids_rle=[[1, 0]], block_tokens=16), "t.jsonl:2: hash_ids_rle has a run of 0 ids"),
        (
            kvsim(segments=[["a"]]),
            "t.jsonl:2: segments holds ['a']; a segment is [id, tokens] or [id, tokens, kind]",
        ),
        (kvsim(segments=[["a", 0]]), "t.jsonl:2: segments holds ['a', 0]; its tokens have to be"),
        (
            kvsim(segments=[["a", 1, "foo"]]),
            "its kind has to be one of system, module, chunk, history, user, image",
        ),
        (
            kvsim(segments=[["a", 41]]),
            "t.jsonl:2: segments hold 41 tokens, input_tokens is 40; make it their sum or more",
        ),
        (kvsim(session=[1]), "t.jsonl:2: session is [1]; it has to be a string or a whole number"),
        (kvsim(output_id=1.5), "t.jsonl:2: output_id is 1.5; ids are whole numbers or strings"),
        (kvsim(after=9), "t.jsonl:2: after is 9, and the file has 2 requests; count them from 0"),
        (
            kvsim(after=1),
            "t.jsonl:2: after is 1, which does not arrive before this request; give an earlier one",
        ),
    ],
)
def test_kvsim_line(write, line, message):
    path = write("t.jsonl", GOOD, line)
    with pytest.raises(TraceError, match=re.escape(message)) as caught:
        read(path)
    assert str(caught.value).startswith(str(path.parent)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["2023-11-16 18:15:46,1"], "a.csv:2: 2 columns where the header has 3; mend the line"),
        (["yesterday,1,1"], "a.csv:2: TIMESTAMP is 'yesterday'; write it like 2023-11-16 18:15:46.6805900"),
        (["2023-13-16 18:15:46,1,1"], "a.csv:2: TIMESTAMP is '2023-13-16 18:15:46'; write it like"),
        (
            ["2023-11-16 18:15:46,1,x"],
            "a.csv:2: GeneratedTokens is 'x'; it has to be a whole number of at least 1",
        ),
        (
            ["2023-11-16 18:15:46,0,1"],
            "a.csv:2: ContextTokens is '0'; it has to be a whole number of at least 1",
        ),
        (['"2023'], "a.csv:2: not CSV"),
    ],
)
def test_csv_line(write, lines, message):
    with pytest.raises(TraceError, match=re.escape(message)):
        read(write("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens", *lines))


def test_files_that_cannot_be_read(write, tmp_path):
    whole = write("t.jsonl.gz", *[GOOD] * 1000)
    with pytest.raises(TraceError, match=r"t.jsonl: no such file; did you mean 't.jsonl.gz'\?"):
        read(tmp_path / "t.jsonl")
    with pytest.raises(TraceError, match=r"nowhere/t.jsonl: no such file; check the path"):
        read(tmp_path / "nowhere" / "t.jsonl")
    with pytest.raises(TraceError, match=r"Is a directory; give a readable file"):
        read(tmp_path)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(TraceError, match=r"cut.jsonl.gz:\d+: the gzip data are cut short or damaged"):
        read(cut, "kvsim")
    noise = tmp_path / "noise.jsonl"
    noise.write_bytes(b"\xff\xfe{}")
    with pytest.raises(TraceError, match=r"noise.jsonl:1: not UTF-8 text"):
        read(noise)
    with pytest.raises(TraceError, match=r"empty.jsonl: holds no requests"):
        read(write("empty.jsonl", ""))


def test_readers_and_options(write):
    path = write("t.jsonl", GOOD)
    with pytest.raises(TraceError, match=r"no trace reader is called 'moncake'; did you mean 'mooncake'"):
        read(path, "moncake")
    with pytest.raises(
        TraceError,
        match=r"the trace reader 'mooncake' has no option 'block_token'; did you mean 'block_tokens'",
    ):
        read(path, "mooncake", block_token=16)
    with pytest.raises(TraceError, match=r"t.jsonl:1: no 'input_length'"):
        read(path, "mooncake")
    with pytest.raises(
        TraceError, match=r"other.jsonl:1: no reader knows the fields a, b; name one of the readers"
    ):
        read(write("other.jsonl", {"a": 1, "b": 2}))
    with pytest.raises(TraceError, match=MISSING_ARRIVALS):
        read(write("s.jsonl", {"turns": [[1, 2]]}))
    with pytest.raises(TraceError, match=r"no arrival process is called 'poison'; did you mean 'poisson'"):
        read(write("s.jsonl", {"turns": [[1, 2]]}), arrivals={"process": "poison", "rate_per_s": 1})
    with pytest.raises(TraceError, match=r"arrivals has rate_per_s 0; it has to be above 0"):
        read(write("s.jsonl", {"turns": [[1, 2]]}), arrivals={"process": "poisson", "rate_per_s": 0})


def test_fields_of_other_tools_are_not_used(write):
    extra = {"output": "yes", "user": 3, "model": "x", "group": 1, "input_length": 4}
    assert len(read(write("t.jsonl", kvsim(**extra)))) == 1


def test_all_missing_options_are_named_at_once():
    with pytest.raises(TraceError) as caught:
        generate("lengths", input_tokens=5)
    assert str(caught.value) == (
        "the workload generator 'lengths' needs the options 'requests', 'arrivals', 'output_tokens', such as "
        "{requests: 1000, arrivals: {process: poisson, rate_per_s: 1}, output_tokens: 120}; "
        "see docs/workloads.md"
    )


def test_generators_and_operations(write):
    lengths = {"requests": 3, "arrivals": CONSTANT, "input_tokens": 5, "output_tokens": 5}
    with pytest.raises(TraceError, match=r"requests is 0; it has to be at least 1"):
        generate("lengths", **{**lengths, "requests": 0})
    with pytest.raises(TraceError, match=r"the distribution 'lognormal' has no option 'mean'"):
        generate(
            "lengths", **{**lengths, "input_tokens": {"distribution": "lognormal", "mean": 3, "sigma": 1}}
        )
    with pytest.raises(TraceError, match=r"input_tokens is .*; it needs a 'distribution'"):
        generate("lengths", **{**lengths, "input_tokens": {"median": 3}})
    trace = generate("lengths", **lengths)
    with pytest.raises(TraceError, match=r"has no sessions; slice it by rows or by time"):
        slice_sessions(trace, 1)
    with pytest.raises(TraceError, match=r"needs either a factor or requests_per_s"):
        rescale_time(trace)
    with pytest.raises(TraceError, match=r"share names 'b', which is no source of the mix"):
        mix({"a": trace}, share={"b": 1.0})
    with pytest.raises(TraceError, match=r"share of 'a' is 0; give a number above 0"):
        mix({"a": trace}, share={"a": 0})
