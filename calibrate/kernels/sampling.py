"""Choosing the next token from the logits of the whole vocabulary, as vLLM's V1 sampler does without penalties.

``greedy``: logits to float32, argmax. ``random``: temperature without top-k or top-p: logits to float32, divided by the
temperature, softmax, divided by exponential noise, argmax (vllm/v1/sample/sampler.py and ops/topk_topp_sampler.py,
``random_sample``). With top-k or top-p vLLM 0.24 calls FlashInfer's rejection sampling on an H100, which is not in here.
The engine launches these kernels one by one outside its graphs: their launches on the host are in its constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Draw, Kernel, Launch, Plan, Point

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
QUICK_ROWS = (1, 16, 64, 256, 1024)
TEMPERATURE = 0.8
SAMPLE = 16  # rows whose token is checked
SCORE_TOLERANCE = 1e-4  # a token that float32 takes for the best one may be second by its rounding


class Sampling(Kernel):
    """(rows, vocab) in bfloat16 -> a token for each row; of each step once, on one GPU."""

    name = "sampling"
    columns = ("mode", "vocab", "rows")
    summary = "greedy and random sampling from the logits"

    def points(self, plan: Plan) -> Sequence[Point]:
        return [
            {"mode": mode, "vocab": vocab, "rows": rows}
            for vocab in _vocabularies(plan)
            for mode in ("greedy", "random")
            for rows in plan.pick(ROWS, QUICK_ROWS, (1, 3))
        ]

    def prepare(self, point: Point, bench: Bench) -> Launch:
        rows, vocab = int(point["rows"]), int(point["vocab"])
        logits = bench.randn(rows, vocab, scale=3.0)
        temperature = torch.full((rows,), TEMPERATURE, device=bench.device)
        greedy = point["mode"] == "greedy"
        some = torch.linspace(0, rows - 1, min(rows, SAMPLE), device=bench.device).round().long()

        def run(i: int) -> torch.Tensor:
            return sample_greedy(logits) if greedy else sample_random(logits, temperature)

        def error() -> float:
            if greedy:
                return short_of_best(logits[some].double(), run(0)[some])
            generator = _default_generator(bench)
            state = generator.get_state()
            found = run(0)
            generator.set_state(state)  # the same noise once more
            noise = torch.empty(rows, vocab, device=bench.device).exponential_()
            chances = torch.softmax(logits[some].double() / TEMPERATURE, dim=-1)
            return short_of_best(chances / noise[some].double(), found[some])

        # what must be read at least: the logits, once, less what the last launch left in the cache
        num_bytes = max(0.0, 2.0 * rows * vocab - bench.facts.l2_bytes)
        return Launch(run=run, error=error, tolerance=0.0 if greedy else SCORE_TOLERANCE, num_bytes=num_bytes)

    def off_grid(self, plan: Plan, draw: Draw) -> Sequence[Point]:
        """Sequences that decode in a step, all sampled."""
        vocabularies, most = _vocabularies(plan), plan.pick(ROWS, QUICK_ROWS, (1, 3))[-1]
        drawn = [rows for rows, _ in draw.decodes if 1 <= rows <= most]
        return [
            {"mode": mode, "vocab": vocab, "rows": rows}
            for i, vocab in enumerate(vocabularies)
            for mode in ("greedy", "random")
            for rows in dict.fromkeys(drawn[i :: len(vocabularies)])
        ]

    def source(self, point: Point) -> str:
        return "torch argmax" if point["mode"] == "greedy" else "torch softmax, exponential_, argmax"


def sample_greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32).argmax(dim=-1).view(-1).to(torch.int32)


def sample_random(logits: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Gumbel's trick: argmax of chance / exponential noise draws by chance, and needs no synchronisation."""
    wide = logits.to(torch.float32).div_(temperature.unsqueeze(dim=1))
    chances = wide.softmax(dim=-1, dtype=torch.float32)
    noise = torch.empty_like(chances).exponential_()
    return chances.div_(noise).argmax(dim=-1).view(-1).to(torch.int32)


def short_of_best(scores: torch.Tensor, found: torch.Tensor) -> float:
    """How far the scores of the tokens ``found`` are below the best of their rows: largest fraction. Ties cost nothing."""
    best = scores.max(dim=-1).values
    chosen = scores.gather(1, found.long()[:, None])[:, 0]
    return float(((best - chosen) / best.abs().clamp_min(1e-30)).max())


def _vocabularies(plan: Plan) -> list[int]:
    return [1000] if plan.size == "tiny" else sorted({shape.model.vocab_size for shape in plan.shapes})


def _default_generator(bench: Bench) -> torch.Generator:
    if bench.on_gpu:
        return torch.cuda.default_generators[torch.cuda.current_device()]
    return torch.default_generator
