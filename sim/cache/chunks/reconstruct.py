"""What it takes to find which tokens of an entry matter to any query: the model repeats the entry, as KVzip has it.

The text goes through the model once more, in pieces of 2000 tokens, each behind a short prompt and over all of the entry's KV;
scores are those of a piece's queries over its own keys (Kim et al., 2025, arXiv:2505.23416; sizes as in the authors'
snu-mllab/KVzip, model/wrapper.py, self_task).
"""

from __future__ import annotations

from kvsim.cache.manager import CacheConfig
from kvsim.cost.work import Kernel

PIECE_TOKENS = 2000
PROMPT_TOKENS = (
    25  # "Repeat the part of the previous context exactly, starting with", 8 tokens of it, the chat template
)
SCORED_QUERIES = 64  # the most whose scores were measured in one launch


def reconstruction(tokens: int, config: CacheConfig) -> tuple[Kernel, ...]:
    """Look. Of an entry of ``tokens`` tokens."""
    whole, rest = divmod(tokens, PIECE_TOKENS)
    found: list[Kernel] = []
    for piece, times in ((PIECE_TOKENS, whole), (rest, 1)):
        if piece and times:
            new = piece + PROMPT_TOKENS
            found += [
                Kernel("forward_pass", {"tokens": new}, calls=times),
                Kernel("prefill_attention", {"new": new, "past": tokens}, calls=times),
                _scores(piece, times, config),
            ]
    return tuple(found)


def _scores(piece: int, times: int, config: CacheConfig) -> Kernel:
    """Of a piece's queries over its keys, ``times`` such pieces: as many scores as so many queries have over more keys."""
    keys = -(-piece * piece // SCORED_QUERIES)
    heads = (
        config.bytes_per_token // 4 * config.heads_per_kv_head
    )  # elements of a token's queries in all layers
    sizes = {
        "window": SCORED_QUERIES,
        "context": keys,
        "num_bytes": keys * config.bytes_per_token // 2,
        "flops": 2 * SCORED_QUERIES * keys * heads,
    }
    return Kernel("score_reduction", sizes, calls=times)
