"""Time Hugging Face transformers' ``generate`` on one GPU: ``python measure_hf.py OUT.csv MODEL_DIR [MODEL_DIR ...]``.

Needs torch and transformers, nothing of kvsim. MODEL_DIR holds a config.json; weights are random. Each point is one call
of ``generate``: a static batch of equal prompts (or, ``padded``, of lengths from half to all of it, padded on the left),
greedy, no end token. A row has the prompt's time (call to first token) and the median, first and last of the times between
tokens, all in milliseconds, and the peak of allocated memory beside the weights.

The times are taken where ``generate`` asks its stopping criteria, once a token. cuDNN's attention is switched off unless
``--cudnn``: it builds a plan for every new length, 50 to 70 ms a token with torch 2.11 on an H100.
"""

from __future__ import annotations

import argparse
import csv
import gc
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

BATCHES = (1, 2, 4, 8, 16, 32, 64)
PROMPTS = (128, 512, 2048, 8192, 16384, 32768)
MOST_TOKENS = 131_072  # of a batch's prompts together
MOST_BYTES = 45e9  # KV of a batch, twice: while a cache grows there are two
NEW_TOKENS = 24
COLUMNS = (
    "model",
    "attention",
    "batch",
    "prompt",
    "padded",
    "prefill_ms",
    "step_ms",
    "first_step_ms",
    "last_step_ms",
    "peak_gb",
)


class Stamps:
    """Never stops; notes when it is asked."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.times_s.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def generate(model: Any, batch: int, prompt: int, padded: bool, new_tokens: int) -> list[float]:
    """Milliseconds from the call to the first token and between tokens."""
    import torch

    device = next(model.parameters()).device
    tokens = torch.randint(5, model.config.vocab_size, (batch, prompt), device=device)
    mask = torch.ones_like(tokens)
    if padded:
        for row, length in enumerate(torch.linspace(prompt / 2, prompt, batch).int().tolist()):
            mask[row, : prompt - length] = 0
    stamps = Stamps()
    begin = time.perf_counter()
    model.generate(
        tokens,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=[stamps],
    )
    times = [begin, *stamps.times_s]
    return [1000 * (after - before) for before, after in pairwise(times)]


def memory() -> int:
    """Most bytes allocated since the last call."""
    import torch

    if not torch.cuda.is_available():
        return 0
    most = int(torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    return most


def points(config: Any) -> list[tuple[int, int, bool]]:
    """(batch, prompt, padded)."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 4 * config.num_hidden_layers * config.num_key_value_heads * width
    plain = [
        (batch, prompt, False)
        for batch in BATCHES
        for prompt in PROMPTS
        if prompt + NEW_TOKENS <= config.max_position_embeddings
        and batch * prompt <= MOST_TOKENS
        and 2 * batch * prompt * token_bytes <= MOST_BYTES
    ]
    return plain + [
        (batch, prompt, True) for batch, prompt, _ in plain if batch in (8, 32) and prompt <= 2048
    ]


def measure(folder: Path, attention: str, few: bool, rows: Any) -> None:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    weights = torch.cuda.memory_allocated() if device == "cuda" else 0
    generate(model, 1, 64, False, 8)
    for batch, prompt, padded in points(config):
        if few and (batch not in (1, 8, 32) or prompt not in (512, 2048, 8192)):
            continue
        try:
            generate(model, batch, prompt, padded, 3)
            memory()
            times = generate(model, batch, prompt, padded, NEW_TOKENS)
        except torch.cuda.OutOfMemoryError:
            print(f"{folder.name} {attention} {batch} x {prompt}: out of memory", flush=True)
            torch.cuda.empty_cache()
            continue
        first, steps = times[0], times[1:]
        shown = [round(ms, 3) for ms in (first, statistics.median(steps), steps[0], steps[-1])]
        row = [
            folder.name,
            attention,
            batch,
            prompt,
            int(padded),
            *shown,
            round((memory() - weights) / 1e9, 3),
        ]
        rows.writerow(row)
        print(*row, flush=True)
    del model
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def main() -> None:
    import torch
    import transformers

    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("out", type=Path)
    arguments.add_argument("models", type=Path, nargs="+")
    arguments.add_argument("--cudnn", action="store_true", help="leave cuDNN's attention on")
    options = arguments.parse_args()
    torch.backends.cuda.enable_cudnn_sdp(options.cudnn)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    with torch.inference_mode(), options.out.open("w", newline="") as file:
        file.write(f"# {gpu}; torch {torch.__version__}; transformers {transformers.__version__}\n")
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for folder in options.models:
            for attention in ("sdpa", "eager"):
                measure(folder, attention, attention == "eager", rows)
                file.flush()


if __name__ == "__main__":
    main()
