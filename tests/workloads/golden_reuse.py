"""Golden reuse figures of the shipped traces, computed from the raw rows without any code of kvsim.

``python tests/workloads/golden_reuse.py`` rewrites golden_reuse.json beside it. The figures change only when
a data file or a definition does.
"""

import gzip
import json
from collections import OrderedDict
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


def earlier_chunk_tokens(rows, key):
    """Tokens of components that an earlier row had; a repetition within the row that has it first is none."""
    seen, hit = set(), 0
    for row in rows:
        hit += sum(tokens for content, tokens in row[key] if content in seen)
        seen.update(content for content, _ in row[key])
    return hit


def row_ids(row, local):
    """Chained block ids of a row; those of ``local`` runs mean something within their session only."""
    if "hash_ids" in row:
        return row["hash_ids"]
    ids = (number for first, count in row["hash_ids_rle"] for number in range(first, first + count))
    return [(row["session"], number) for number in ids] if local else list(ids)


def lru_hit_tokens(paths, lengths, block, capacity):
    """Tokens that LRU hits with so many blocks; of a prompt the last blocks are touched first."""
    cache, hits = OrderedDict(), 0
    for path, length in zip(paths, lengths, strict=True):
        leading = 0
        while leading < len(path) and path[leading] in cache:
            leading += 1
        hits += min(leading * block, length)
        for key in reversed(path):
            cache[key] = None
            cache.move_to_end(key)
        while len(cache) > capacity:
            cache.popitem(last=False)
    return hits


def belady_hit_tokens(paths, lengths, block, capacity):
    """The same for a cache that knows the future: after each row it keeps what is needed soonest."""
    uses = {}
    for number, path in enumerate(paths):
        for key in path:
            uses.setdefault(key, []).append(number)
    depth = {key: place for path in paths for place, key in enumerate(path)}
    cache, hits = set(), 0
    for path, length in zip(paths, lengths, strict=True):
        leading = 0
        while leading < len(path) and path[leading] in cache:
            leading += 1
        hits += min(leading * block, length)
        for key in path:
            uses[key].pop(0)
        again = [key for key in cache.union(path) if uses[key]]
        cache = set(sorted(again, key=lambda key: (uses[key][0], depth[key]))[:capacity])
    return hits


def ragpulse_paths(rows, block, keys=("sys", "passages", "history", "web", "user")):
    """Whole blocks of prompts made of components, each block as everything up to its end."""
    paths = []
    for row in rows:
        components = [(key, *component) for key in keys for component in row[key]]
        starts = [sum(c[2] for c in components[:place]) for place in range(len(components))]
        components.append(("rest", id(row), None))
        starts.append(sum(c[2] for c in components[:-1]))
        path, before = [], ()
        for end in range(block, row["input_length"] + 1, block):
            while len(before) < len(starts) and starts[len(before)] < end:
                before += ((components[len(before)][:2], starts[len(before)]),)
            path.append((before, end))
        paths.append(path)
    return paths


def lru_figures(file, paths, lengths, block, capacities):
    return {
        "file": file,
        "lru_tokens": {str(size): lru_hit_tokens(paths, lengths, block, size) for size in capacities},
    }


def figures():
    mooncake = rows_of(DATA / "mooncake_conversation_1000.jsonl.gz")
    miniswe = rows_of(DATA / "lmcache_miniswe.jsonl.gz")
    taubench = rows_of(DATA / "taubench_gpt4o_airline.jsonl.gz")
    ragpulse = rows_of(DATA / "ragpulse_days0-2.jsonl.gz")
    claude = sorted(rows_of(DATA / "claude_code_100sessions_flat.jsonl.gz"), key=lambda row: row["timestamp"])

    def files_figures(file, rows, block, capacities, belady=()):
        paths, lengths = [row_ids(row, True) for row in rows], [row["input_length"] for row in rows]
        told = lru_figures(file, paths, lengths, block, capacities)
        if belady:
            told["belady_tokens"] = {
                str(size): belady_hit_tokens(paths, lengths, block, size) for size in belady
            }
        return told

    return {
        "claude_code": files_figures("claude_code_100sessions_flat.jsonl.gz", claude, 64, [20000]),
        "ragpulse_blocks_of_16": lru_figures(
            "ragpulse_days0-2.jsonl.gz",
            ragpulse_paths(ragpulse, 16),
            [row["input_length"] for row in ragpulse],
            16,
            [100, 1000, 10000],
        ),
        "mooncake": {
            **files_figures(
                "mooncake_conversation_1000.jsonl.gz", mooncake, 512, [100, 500, 2000, 5000], [100, 500]
            ),
            "input_tokens": sum(row["input_length"] for row in mooncake),
            "prefix_tokens": sum(block_hit_tokens(mooncake, 512)),
            "prefix_tokens_16_keep_last": sum(block_hit_tokens(mooncake, 512, 16, True)),
        },
        "miniswe": {
            **files_figures("lmcache_miniswe.jsonl.gz", miniswe, 16, [100, 519, 2600], [100, 519]),
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
            "passage_tokens_of_earlier_prompts": earlier_chunk_tokens(ragpulse, "passages"),
            "passage_and_web_tokens": chunk_hits(ragpulse, ["passages", "web"]),
        },
    }


def main():
    GOLDEN.write_text(json.dumps(figures(), indent=1) + "\n")


if __name__ == "__main__":
    main()
