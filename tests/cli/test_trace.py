"""``kvsim trace``: what it prints and writes, and what a user can get wrong."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.cli.trace import parse_capacities
from kvsim.errors import TraceError
from kvsim.workloads import read

Cli = Callable[..., tuple[int, str, str]]
DATA = Path(__file__).parents[2] / "scenarios" / "data"
MOONCAKE = DATA / "mooncake_conversation_1000.jsonl.gz"
GENERATOR = """\
generator: chat
options: {sessions: 30, turns: 3, user_tokens: 50, output_tokens: 20, arrivals: {process: poisson, rate_per_s: 1}}
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def content(path: Path | str) -> list[object]:
    """Segments, lengths and times of a trace without their names."""
    trace = read(path)
    columns = (trace.arrival_ns, trace.input_tokens, trace.output_tokens, trace.segment_tokens, trace.after)
    return [column.tolist() for column in columns]


def test_stats_as_table_json_and_page(cli: Cli) -> None:
    code, out, err = cli(
        "trace", "stats", MOONCAKE, "--capacity", "5k,500", "--model", "llama-3.1-8b", "--html", "page.html"
    )
    assert (code, err) == (0, "page: page.html\n")
    assert out.startswith("mooncake_conversation_1000.jsonl.gz: 1,000 requests in ")
    words = [line.split() for line in out.splitlines()]
    assert ["5,000", "2.56", "M", "336", "GB", "0.098", "0.216"] in words
    code, out, err = cli("trace", "stats", MOONCAKE, "--capacity", "5k,500", "--json")
    told = json.loads(out)
    assert (code, err, told["capacity"]["capacity_blocks"]) == (0, "", [500, 5000])
    golden = json.loads((DATA.parents[1] / "tests" / "workloads" / "golden_reuse.json").read_text())[
        "mooncake"
    ]
    expected = [golden["lru_tokens"][blocks] / golden["input_tokens"] for blocks in ("500", "5000")]
    assert told["capacity"]["lru_hit_ratio"] == pytest.approx(expected)
    assert told["kv_bytes_per_token"] is None


def test_stats_of_a_sample_says_so(cli: Cli) -> None:
    code, out, _ = cli("trace", "stats", MOONCAKE, "--sample", "0.1")
    assert code == 0 and "LRU and Belady follow 10 % of the blocks" in out


def test_convert_keeps_every_request(cli: Cli) -> None:
    assert cli("trace", "convert", MOONCAKE, "out.jsonl.gz") == (0, "out.jsonl.gz: 1,000 requests\n", "")
    assert content("out.jsonl.gz") == content(MOONCAKE)
    code, out, _ = cli(
        "trace", "convert", DATA / "taubench_gpt4o_airline.jsonl.gz", "tau.jsonl", "--json",
        "--set", "arrivals={process: constant, rate_per_s: 2}", "--set", "think_s=3",
    )  # fmt: skip
    assert (code, json.loads(out)) == (0, {"file": "tau.jsonl", "requests": 2454})


def test_generate_from_a_generator_a_workload_and_a_scenario(cli: Cli, small: Path) -> None:
    Path("one.yaml").write_text(GENERATOR)
    Path("section.yaml").write_text("sources:\n- " + GENERATOR.replace("\n", "\n  ").rstrip() + "\n")
    assert cli("trace", "generate", "one.yaml", "one.jsonl")[:2] == (0, "one.jsonl: 90 requests\n")
    assert cli("trace", "generate", "section.yaml", "section.jsonl")[0] == 0
    assert Path("one.jsonl").read_bytes() == Path("section.jsonl").read_bytes()
    assert cli("trace", "generate", "one.yaml", "seven.jsonl", "--seed", 7)[0] == 0
    assert Path("one.jsonl").read_bytes() != Path("seven.jsonl").read_bytes()
    code, out, _ = cli(
        "trace", "generate", small, "small.jsonl", "--set", "workload.max_requests=5", "--json"
    )
    assert (code, json.loads(out)["requests"]) == (0, 5)


def test_anonymise(cli: Cli) -> None:
    Path("mine.jsonl").write_text(
        json.dumps({"arrival_s": 0, "prompt_token_ids": list(range(40)), "output_tokens": 3}) + "\n"
    )
    assert cli("trace", "anonymise", "mine.jsonl", "out.jsonl") == (0, "out.jsonl: 1 requests\n", "")
    (row,) = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert (row["input_tokens"], row["block_tokens"], len(row["hash_ids"])) == (40, 16, 2)


def test_the_commands_of_the_docs_and_of_every_help_run(cli: Cli) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    page = (DATA.parents[1] / "docs" / "workloads.md").read_text(encoding="utf-8")
    commands = re.findall(r"^kvsim (trace .*)$", page, re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["stats", "convert", "generate", "anonymise"]
    Path("scenarios").symlink_to(DATA.parent)
    Path("my-model").mkdir()
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"?": 0}, unk_token="?")).save("my-model/tokenizer.json")
    lines = re.findall(r'^    (\{"arrival_s.*\})$', page, re.MULTILINE)
    Path("requests.jsonl").write_text("\n".join(lines))
    for command in commands:
        assert cli(*shlex.split(command))[0] == 0
        shown = " ".join(cli(*command.split()[:2], "--help")[1].split())
        assert f"Example: kvsim {command}" in shown
    assert len(read("trace.jsonl.gz")) == len(lines) == 2


@pytest.mark.parametrize(
    ("text", "blocks"), [("10k,50k", [10_000, 50_000]), ("7", [7]), ("2M, 1.5k,2M", [1500, 2_000_000])]
)
def test_capacities(text: str, blocks: list[int]) -> None:
    assert parse_capacities(text) == blocks


@pytest.mark.parametrize("text", ["", "10q", "0", "-5", "1.5", "1,,2", "nan", "1e5", "0.0001k", "9999999G"])
def test_no_capacities(text: str) -> None:
    with pytest.raises(
        TraceError, match=r"--capacity: '.*' is no number of blocks; give some such as 500,10k,1.5M"
    ):
        parse_capacities(text)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stats", "nothing.jsonl"], "nothing.jsonl: no such file"),
        (["stats", "empty.jsonl"], "empty.jsonl: holds no requests; give a file with one request a line"),
        (["stats", "head.csv"], "head.csv: holds no requests; give a file with one request a line"),
        (["stats", "lengths.jsonl", "--capacity", "10"], "lengths.jsonl: its prompts do not say what they contain"),
        (["stats", "lengths.jsonl", "--capacity", "ten"], "--capacity: 'ten' is no number of blocks"),
        (["stats", "lengths.jsonl", "--block-tokens", "0"], "kvsim trace stats: Invalid value for '--block-tokens'"),
        (["stats", MOONCAKE, "--sample", "2"], "kvsim trace stats: Invalid value for '--sample'"),
        (["stats", MOONCAKE, "--sample", "0"], "--sample is 0; give a share above 0 and up to 1"),
        (["stats", MOONCAKE, "--sample", "1e-6"], "a sample of 1e-06 follows 0 of 21,514 blocks; give at least 0.046"),
        (["stats", "lengths.jsonl", "--html", "no/page.html"], "no/page.html: no such folder no; make it first"),
        (["stats", "lengths.jsonl", "--model", "llama-3.1-8c"], "no model preset and no file is called"),
        (["stats", "lengths.jsonl", "--reader", "mooncak"], "no trace reader is called 'mooncak'; did you mean"),
        (["stats", "lengths.jsonl", "--set", "loop=open"], "the trace reader 'kvsim' has no option 'loop'"),
        (["convert", "lengths.jsonl", "lengths.jsonl"], "lengths.jsonl: already there; give --force to replace it"),
        (["convert", "lengths.jsonl", "no/out.jsonl"], "no/out.jsonl: no such folder no; make it first"),
        (["convert", "lengths.jsonl", "."], ".: is no file that could be replaced; give the name of a file"),
        (["convert", DATA / "sharegpt_sessions_4000.jsonl.gz", "o.jsonl"], "the trace reader 'sharegpt' needs the option"),
        (["generate", "nothing.yaml", "o.jsonl"], "nothing.yaml: no such file"),
        (["generate", "odd.yaml", "o.jsonl"], "odd.yaml: holds no workload; give a scenario, 'sources', or 'generator'"),
        (["anonymise", "mine.jsonl", "o.jsonl"], "mine.jsonl:1: 'prompt' is text; give --tokenizer tokenizer.json"),
        (["anonymise", "mine.jsonl", "o.jsonl", "--tokenizer", "none.json"], "none.json: no such file"),
        (["anonymise", "mine.jsonl", "o.jsonl", "--tokenizer", "odd.yaml"], "odd.yaml: no tokenizer ("),
        (["anonymise", "mine.jsonl", "o.jsonl", "--salt-file", "odd.yaml"], "odd.yaml: 12 bytes are too few"),
        (["anonymise", "mine.jsonl", "mine.jsonl", "--force"], "mine.jsonl: is the file that is read; name another one"),
        (["stats", MOONCAKE, "--set", "block_tokens=4096"], f"{MOONCAKE}:1: 14 hash_ids of 4096 tokens for 6758 tokens"),
        (["stats", MOONCAKE, "--set", "block_tokens=16"], f"{MOONCAKE}:1: 14 hash_ids of 16 tokens for 6758 tokens"),
        (["stats", "lengths.jsonl", "--html", "/proc/x.html"], "/proc/x.html: cannot be written"),
        (["anonymise", "nothing.jsonl", "o.jsonl"], "nothing.jsonl: no such file"),
    ],
)  # fmt: skip
def test_one_line_and_exit_2(cli: Cli, arguments: list[str], line: str) -> None:
    if "odd.yaml" in arguments and "--tokenizer" in arguments:
        pytest.importorskip("tokenizers")
    Path("empty.jsonl").write_text("")
    Path("head.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    Path("lengths.jsonl").write_text('{"arrival_s": 1, "input_tokens": 5, "output_tokens": 2}\n')
    Path("odd.yaml").write_text("model: odd\n\n")
    Path("mine.jsonl").write_text('{"arrival_s": 1, "prompt": "hush", "output_tokens": 2}\n')
    before = sorted(path.name for path in Path().iterdir())
    code, out, err = cli("trace", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(line) and "hush" not in err
    assert sorted(path.name for path in Path().iterdir()) == before


def test_a_folder_that_cannot_be_written(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.access  # as root every folder can be written
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK | os.X_OK and allowed(path, mode))
    code, _, err = cli("trace", "convert", MOONCAKE, "o.jsonl")
    assert (code, err) == (2, "o.jsonl: no permission to write in .\n")


def test_the_end_of_a_disk_leaves_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    code, _, err = cli("trace", "convert", MOONCAKE, "o.jsonl")
    assert (code, err) == (2, "o.jsonl: cannot be written: No space left on device\n")
    assert list(Path().iterdir()) == []
