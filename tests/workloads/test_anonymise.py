"""Anonymised prompts share what the prompts shared, and say nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvsim.errors import TraceError
from kvsim.workloads import read
from kvsim.workloads.analysis.reuse import prefix_reuse
from kvsim.workloads.anonymise import anonymise, block_ids, load_salt, load_tokenizer

Write = Callable[..., Path]
SALT = bytes(range(32))
LINES = (
    {"arrival_s": 0.5, "prompt_token_ids": [*range(40), 7], "output_token_ids": [1, 2], "session": "bob"},
    {
        "arrival_s": 2,
        "prompt_token_ids": [*range(36), 9, 9],
        "output_tokens": 5,
        "tenant": "acme",
        "secret": "x",
    },
    {"arrival_s": 3, "prompt_token_ids": [1, *range(39)], "output_tokens": 1, "session": "bob"},
)


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prompts_share_the_blocks_that_their_tokens_share(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert anonymise(write("in.jsonl", *LINES), out, SALT, 16) == 3
    trace = read(out)
    assert prefix_reuse(trace).tolist() == [0, 32, 0]
    assert trace.input_tokens.tolist() == [41, 38, 40] and trace.output_tokens.tolist() == [2, 5, 1]
    assert trace.arrival_ns.tolist() == [500_000_000, 2_000_000_000, 3_000_000_000]
    assert trace.session.tolist() == [0, -1, 0] and trace.tenant.tolist() == [-1, 0, -1]


def test_nothing_of_the_prompts_or_names_is_left(write: Write, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    anonymise(write("in.jsonl", *LINES), out, SALT, 16)
    fields = {"arrival_s", "input_tokens", "output_tokens", "block_tokens", "hash_ids", "session", "tenant"}
    for row in rows_of(out):
        assert set(row) <= fields
    text = out.read_text()
    assert all(word not in text for word in ("bob", "acme", "secret", "token_ids"))


def test_ids_depend_on_the_salt_and_on_all_before() -> None:
    tokens = list(range(48))
    ids = block_ids(tokens, 16, SALT)
    assert len(ids) == len(set(ids)) == 3 and ids == block_ids([*tokens, 1], 16, SALT)
    assert not set(ids) & set(block_ids(tokens, 16, SALT[::-1]))
    changed = block_ids([99, *tokens[1:]], 16, SALT)
    assert not set(ids) & set(changed)  # the same tokens behind another first block are other blocks
    assert block_ids([5] * 32, 16, SALT)[0] != block_ids([5] * 32, 16, SALT)[1]
    assert block_ids(tokens[:15], 16, SALT) == []


def test_a_salt_from_a_file_repeats_and_a_random_one_does_not(write: Write, tmp_path: Path) -> None:
    lines = write("in.jsonl", *LINES)
    outs = [tmp_path / f"{place}.jsonl" for place in range(4)]
    key = tmp_path / "salt"
    key.write_bytes(bytes(range(100)))  # longer than a BLAKE2b key
    for out, path in zip(outs, (key, key, None, None), strict=True):
        anonymise(lines, out, load_salt(path), 16)
    texts = [out.read_bytes() for out in outs]
    assert texts[0] == texts[1] and len(set(texts)) == 3
    assert key.read_bytes() not in texts[0]


def word_tokenizer(path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(("[UNK]", "you", "are", "kind", "who", "is", "she"))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def test_text_is_tokenised(write: Write, tmp_path: Path) -> None:
    tokenize = load_tokenizer(word_tokenizer(tmp_path / "tokenizer.json"))
    assert tokenize("you are kind", True) == [1, 2, 3]
    lines = [
        {"arrival_s": 0, "prompt": "you are kind who is she", "output": "she is kind"},
        {"arrival_s": 1, "prompt": "you are kind who are you", "output_tokens": 1},
    ]
    out = tmp_path / "out.jsonl"
    anonymise(write("in.jsonl", *lines), out, SALT, 2, tokenize)
    first, second = rows_of(out)
    assert (first["input_tokens"], first["output_tokens"]) == (6, 3)
    shared = [a == b for a, b in zip(first["hash_ids"], second["hash_ids"], strict=True)]
    assert shared == [True, True, False]
    assert "kind" not in out.read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"arrival_s": 0, "output_tokens": 1}, "no 'prompt'; give it as text, 'prompt_token_ids'"),
        ({"arrival_s": 0, "prompt": "hush", "output_tokens": 1}, "'prompt' is text; give --tokenizer"),
        ({"arrival_s": 0, "prompt": ["hush"], "output_tokens": 1}, "'prompt' is no text but a list"),
        ({"arrival_s": 0, "prompt_token_ids": ["hush"], "output_tokens": 1}, "is no list of token ids"),
        ({"arrival_s": 0, "prompt_token_ids": [-1], "output_tokens": 1}, "is no list of token ids"),
        ({"arrival_s": 0, "prompt_token_ids": [], "output_tokens": 1}, "the prompt has no tokens"),
        ({"arrival_s": 0, "prompt_token_ids": [1]}, "no 'output'; give it as text, 'output_token_ids', or"),
        ({"arrival_s": 0, "prompt_token_ids": [1], "output_token_ids": []}, "the answer has no tokens"),
        ({"prompt_token_ids": [1], "output_tokens": 1}, "no 'arrival_s'"),
    ],
)
def test_mistakes_name_the_line_and_repeat_no_text(
    write: Write, tmp_path: Path, line: dict[str, object], message: str
) -> None:
    path = write("in.jsonl", LINES[0], line)
    with pytest.raises(TraceError) as caught:
        anonymise(path, tmp_path / "out.jsonl", SALT, 16)
    assert str(caught.value).startswith(f"{path}:2: ") and message in str(caught.value)
    assert "hush" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl"]


def test_mistakes_of_salt_and_tokenizer(write: Write, tmp_path: Path) -> None:
    short = write("salt", "abc")
    with pytest.raises(TraceError, match=r"salt: 4 bytes are too few for a salt"):
        load_salt(short)
    with pytest.raises(TraceError, match="No such file or directory; give a readable file with the salt"):
        load_salt(tmp_path / "nothing")
    with pytest.raises(TraceError, match=r"no such file; give the tokenizer\.json of your model"):
        load_tokenizer(tmp_path / "nothing")
    with pytest.raises(TraceError, match="holds no requests"):
        anonymise(write("empty.jsonl"), tmp_path / "out.jsonl", SALT, 16)
    pytest.importorskip("tokenizers")
    with pytest.raises(TraceError, match=r"salt: no tokenizer \("):
        load_tokenizer(short)
