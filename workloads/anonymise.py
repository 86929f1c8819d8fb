"""A user's own prompts as a trace that tells which beginnings they share, and nothing of what they say.

Every whole block of tokens becomes ``hash(block before, tokens)``, keyed with a secret salt (BLAKE2b, RFC 7693):
equal ids are equal prefixes, and without the salt no prompt can be guessed and tried. Names of sessions and
tenants are hashed in the same way. Lengths and times stay as they are.
"""

from __future__ import annotations

import json
import secrets
from array import array
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from kvsim.errors import TraceError
from kvsim.workloads.files import MAX_TOKENS, Row, json_rows
from kvsim.workloads.writer import new_text_file

Tokenize = Callable[[str, bool], list[int]]
"""Token ids of a text; True: a prompt, to which special tokens are added as for a completion."""

MIN_SALT_BYTES = 16
MAX_KEY_BYTES = 64  # of BLAKE2b
ID_BYTES = 8


def anonymise(
    source: Path, target: Path, salt: bytes, block_tokens: int, tokenize: Tokenize | None = None
) -> int:
    """Write the requests of ``source`` to ``target`` as kvsim JSON Lines with ``hash_ids``; gives their number.

    A line of ``source`` has ``arrival_s``, the prompt as ``prompt_token_ids`` or as text (``prompt``), the answer
    as ``output_token_ids``, text (``output``) or a length (``output_tokens``), and may have ``session`` and
    ``tenant``. Other fields are left out. ``tokenize`` is needed where a prompt or an answer is text.

    Raises:
        TraceError: a line that cannot be used (its text is not repeated), no lines, or no way to write.
    """
    requests = 0
    with new_text_file(target) as text:
        for row in json_rows(source):
            text.write(json.dumps(_line(row, salt, block_tokens, tokenize), separators=(",", ":")) + "\n")
            requests += 1
        if not requests:
            raise TraceError(f"{source}: holds no requests; give a file with one request a line")
    return requests


def load_salt(path: Path | None) -> bytes:
    """The key of the hashes: what a file holds, or random and known to nobody afterwards."""
    if path is None:
        return secrets.token_bytes(MAX_KEY_BYTES)
    try:
        salt = path.read_bytes()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}; give a readable file with the salt") from None
    if len(salt) < MIN_SALT_BYTES:
        raise TraceError(
            f"{path}: {len(salt)} bytes are too few for a salt; write {MIN_SALT_BYTES} random ones or more"
        )
    return salt if len(salt) <= MAX_KEY_BYTES else blake2b(salt).digest()


def load_tokenizer(path: Path) -> Tokenize:
    """What a Hugging Face ``tokenizer.json`` makes of a text.

    Raises:
        TraceError: no such file, no tokenizer, or the package ``tokenizers`` is missing.
    """
    if not path.is_file():
        raise TraceError(f"{path}: no such file; give the tokenizer.json of your model")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise TraceError("--tokenizer needs the package tokenizers; pip install 'kvsim[tokenizer]'") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exceptions
        raise TraceError(f"{path}: no tokenizer ({error}); give the tokenizer.json of your model") from None

    def tokenize(text: str, is_prompt: bool) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=is_prompt).ids
        return ids

    return tokenize


def block_ids(tokens: list[int], block_tokens: int, salt: bytes) -> list[str]:
    """Ids of the whole blocks of a prompt, 16 hexadecimal digits each; each depends on all before it."""
    packed = array("Q", tokens).tobytes()
    width = 8 * block_tokens
    ids, digest = [], b""
    for start in range(0, len(packed) - width + 1, width):
        digest = blake2b(digest + packed[start : start + width], key=salt, person=b"kvsim block").digest()
        ids.append(digest[:ID_BYTES].hex())
    return ids


def hidden_name(name: str, what: str, salt: bytes) -> str:
    """The name of a session or tenant, hashed."""
    person = f"kvsim {what}".encode()
    return blake2b(name.encode(), key=salt, person=person, digest_size=ID_BYTES).hexdigest()


def _line(row: Row, salt: bytes, block_tokens: int, tokenize: Tokenize | None) -> dict[str, Any]:
    prompt = _tokens(row, "prompt", tokenize)
    if not prompt:
        raise row.error("the prompt has no tokens; leave the line out")
    if row.fields.get("output_tokens") is not None:
        output_tokens = row.whole("output_tokens", 1)
    else:
        output_tokens = len(_tokens(row, "output", tokenize))
    if not output_tokens:
        raise row.error("the answer has no tokens; leave the line out")
    fields: dict[str, Any] = {
        "arrival_s": row.time_ns("arrival_s") / 1e9,
        "input_tokens": len(prompt),
        "output_tokens": output_tokens,
        "block_tokens": block_tokens,
        "hash_ids": block_ids(prompt, block_tokens, salt),
    }
    for what in ("session", "tenant"):
        name = row.name(what)
        if name is not None:
            fields[what] = hidden_name(name, what, salt)
    return fields


def _tokens(row: Row, what: str, tokenize: Tokenize | None) -> list[int]:
    """Token ids of the prompt or the answer; messages do not repeat what it says."""
    ids, text = row.fields.get(f"{what}_token_ids"), row.fields.get(what)
    if ids is not None:
        if not isinstance(ids, list) or not all(type(token) is int and 0 <= token < 2**63 for token in ids):
            raise row.error(f"{what}_token_ids is no list of token ids; write whole numbers of at least 0")
        if len(ids) > MAX_TOKENS:
            raise row.error(f"{what}_token_ids holds {len(ids)} ids; {MAX_TOKENS} are the most")
        return ids
    if text is None:
        also = ", or 'output_tokens'" if what == "output" else ""
        raise row.error(f"no '{what}'; give it as text, '{what}_token_ids'{also}")
    if not isinstance(text, str):
        raise row.error(
            f"'{what}' is no text but a {type(text).__name__}; write the rendered text as a string"
        )
    if tokenize is None:
        raise row.error(f"'{what}' is text; give --tokenizer tokenizer.json, or '{what}_token_ids'")
    return tokenize(text, what == "prompt")
