"""Golden reuse figures of the shipped traces, computed from the raw rows without any code of kvsim.

``python tests/workloads/golden_reuse.py`` rewrites golden_reuse.json beside it. The figures change only when
a data file or a definition does.
"""

import gzip
import json
from pathlib import Path

DATA = Path(__file__).parents[2] / "scenarios" / "data"
GOLDEN = Path(__file__).with_suffix(".json")


def rows_of(path):
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def block_hit_tokens(rows, block, floor=1, keep_last=False):
    """Infinite cache over chained block ids: tokens of the leading blocks that an earlier row had, per row.

    The last id of a prompt counts the tokens that remain for it. ``floor`` rounds down to whole blocks of
    that many tokens; ``keep_last`` allows at most (input - 1) // floor of them.
    """
    seen, hits = set(), []
    for row in rows:
        length = row.get("input_length", row.get("input_tokens"))
        ids, leading = row["hash_ids"], 0
        while leading < len(ids) and ids[leading] in seen:
            leading += 1
        seen.update(ids)
        blocks = min(leading * block, length) // floor
        hits.append(min(blocks, (length - 1) // floor) * floor if keep_last else blocks * floor)
    return hits


def component_hit_tokens(rows, keys=("sys", "passages", "history", "web", "user")):
    """Infinite cache over RAGPulse prompts: leading tokens that an earlier row had, per row."""
    seen, hits = set(), []
    for row in rows:
        components = [(key, *component) for key in keys for component in row[key]]
        prefixes = [tuple(components[: end + 1]) for end in range(len(components))]
        hits.append(max((sum(c[2] for c in prefix) for prefix in prefixes if prefix in seen), default=0))
        seen.update(prefixes)
    return hits


def chunk_hits(rows, keys):
    """(tokens of components that came up before at any position, all tokens of them)."""
    seen, hit, total = set(), 0, 0
    for row in rows:
        for key in keys:
            for content, tokens in row[key]:
                total += tokens
                hit += tokens if (key, content) in seen else 0
                seen.add((key, content))
    return hit, total


def figures():
    mooncake = rows_of(DATA / "mooncake_conversation_1000.jsonl.gz")
    miniswe = rows_of(DATA / "lmcache_miniswe.jsonl.gz")
    taubench = rows_of(DATA / "taubench_gpt4o_airline.jsonl.gz")
    ragpulse = rows_of(DATA / "ragpulse_days0-2.jsonl.gz")
    return {
        "mooncake": {
            "input_tokens": sum(row["input_length"] for row in mooncake),
            "prefix_tokens": sum(block_hit_tokens(mooncake, 512)),
            "prefix_tokens_16_keep_last": sum(block_hit_tokens(mooncake, 512, 16, True)),
        },
        "miniswe": {
            "input_tokens": sum(row["input_length"] for row in miniswe),
            "prefix_tokens": sum(block_hit_tokens(miniswe, 16)),
            "prefix_tokens_16_keep_last": sum(block_hit_tokens(miniswe, 16, 16, True)),
        },
        "taubench_one_session_after_another": {
            "input_tokens": sum(row["input_length"] for row in taubench),
            "prefix_tokens": sum(block_hit_tokens(taubench, 16)),
            "prefix_tokens_16_keep_last": sum(block_hit_tokens(taubench, 16, 16, True)),
        },
        "ragpulse": {
            "input_tokens": sum(row["input_length"] for row in ragpulse),
            "prefix_tokens": sum(component_hit_tokens(ragpulse)),
            "passage_tokens": chunk_hits(ragpulse, ["passages"]),
            "passage_and_web_tokens": chunk_hits(ragpulse, ["passages", "web"]),
        },
    }


def main():
    GOLDEN.write_text(json.dumps(figures(), indent=1) + "\n")


if __name__ == "__main__":
    main()
