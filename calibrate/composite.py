"""Whole blocks and steps as one CUDA graph, against the sum of their kernels as a profile prices them.

A step here is its kernels in the order in which a model runs them, every layer with weights and KV of its own
(as many sets as outgrow L2); each kernel works on its own random activations. What the graph takes beyond the sum is
what no kernel shows alone: gaps between launches, caches that neighbours cool, clocks under mixed load.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kvsim.calibrate.bench import Bench
from kvsim.calibrate.kernels.kernel import Kernel, Launch, Plan, Point, Shape
from kvsim.calibrate.predict import predictor
from kvsim.calibrate.timing import time_launch
from kvsim.cost.linear import linear_widths
from kvsim.cost.profile import Profile
from kvsim.model.spec import ModelSpec

# (new, past, batch, context): a chunk of a prompt, or decodes
STEPS = (
    (0, 0, 1, 1024),
    (0, 0, 16, 2048),
    (0, 0, 64, 1024),
    (0, 0, 128, 2048),
    (512, 0, 0, 0),
    (2048, 0, 0, 0),
    (8192, 0, 0, 0),
    (2048, 8192, 0, 0),
)
IN_STEPS = (
    *(
        "gemm",
        "rms_norm",
        "rotary",
        "silu_and_mul",
        "kv_write",
        "sampling",
        "prefill_attention",
        "decode_attention",
    ),
)
TINY_STEPS = ((0, 0, 2, 32), (16, 0, 0, 0))
TINY_MODEL = ModelSpec("tiny", 2, 64, 4, 2, 16, 96, 160, 512)


@dataclass(frozen=True)
class Composite:
    """One graph. ``sum_us``: of its kernels by the profile; ``layers`` 1 = one block without the LM head."""

    model: str
    layers: int
    new: int
    past: int
    batch: int
    context: int
    measured_us: float
    sum_us: float

    @property
    def ratio(self) -> float:
        """Measured / sum."""
        return self.measured_us / self.sum_us


def check_composites(
    kernels: Mapping[str, Kernel], plan: Plan, profile: Profile, bench: Bench
) -> list[dict[str, Any]]:
    """Each step of the plan's first model on one GPU, as one block and whole; [] without a dense model on one GPU.

    ``kernels``: by name, at least :data:`IN_STEPS`, which ``profile`` holds too.
    """
    shape = Shape(TINY_MODEL, 1) if plan.size == "tiny" else _first_dense(plan)
    if shape is None:
        return []
    found = []
    for step in plan.pick(STEPS, STEPS[1::2], TINY_STEPS):
        for layers in (1, shape.model.num_layers):
            try:
                composite = _measure(kernels, shape, layers, step, profile, bench)
                found.append({**asdict(composite), "ratio": round(composite.ratio, 4)})
            except torch.OutOfMemoryError:
                continue  # a GPU too small for it; the other steps tell enough
            finally:
                bench.drop()
    return found


def _first_dense(plan: Plan) -> Shape | None:
    """Llama-3.1-8B if it is among the shapes, else the first dense model, on one GPU."""
    shapes = [shape for shape in plan.shapes if shape.tensor_parallel == 1 and shape.model.moe is None]
    return min(shapes, key=lambda shape: shape.model.name != "llama-3.1-8b", default=None)


def _measure(
    kernels: Mapping[str, Kernel],
    shape: Shape,
    layers: int,
    step: tuple[int, int, int, int],
    profile: Profile,
    bench: Bench,
) -> Composite:
    whole = layers == shape.model.num_layers
    block, last = _points(shape, step, profile)
    launches = [(kernels[name].prepare(point, bench), kernels[name], point) for name, point in block]
    ends = (
        [(kernels[name].prepare(point, bench), kernels[name], point) for name, point in last] if whole else []
    )

    def run(i: int) -> None:
        for layer in range(layers):
            for launch, _, _ in launches:
                launch.run((i + layer) % launch.sets)
        for launch, _, _ in ends:
            launch.run(i % launch.sets)

    sets = max(launch.sets for launch, _, _ in launches)
    measured = time_launch(Launch(run, lambda: 0.0, 0.0, sets=min(sets, 8) if layers == 1 else 1), bench)
    predict = {
        kernel.name: predictor(profile, kernel.name, bench.facts.roofline)
        for _, kernel, _ in (*launches, *ends)
    }
    total = sum(predict[kernel.name](point) for _, kernel, point in launches) * layers
    total += sum(predict[kernel.name](point) for _, kernel, point in ends)
    return Composite(shape.model.name, layers, *step, measured.latency_us, total)


def _points(
    shape: Shape, step: tuple[int, int, int, int], profile: Profile
) -> tuple[Sequence[tuple[str, Point]], Sequence[tuple[str, Point]]]:
    """(kernel, point) of a block in order, and of what follows the last block."""
    new, past, batch, context = step
    model, tokens, sampled = shape.model, new + batch, max(batch, 1)
    widths = linear_widths(model, shape.tensor_parallel)
    heads: dict[str, int | str] = {
        "head_dim": model.head_dim,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
    }
    kv: dict[str, int | str] = {
        "kv_dtype": "bfloat16",
        "head_dim": model.head_dim,
        "kv_heads": shape.kv_heads,
    }

    def gemm(name: str) -> tuple[str, Point]:
        n, k = widths[name]
        return "gemm", {"dtype": "bfloat16", "n": n, "k": k, "m": tokens}

    def on(name: str, **sizes: int | str) -> tuple[str, Point]:
        backend = profile.header["tables"][name].get("backend")
        return name, {**({"backend": backend} if backend else {}), **sizes}

    norm = on("rms_norm", hidden=model.hidden_size, tokens=tokens)
    if new:
        attention = on("prefill_attention", kv_dtype="bfloat16", **heads, new=new, past=past)
    else:
        attention = on(
            "decode_attention", contexts="even", kv_dtype="bfloat16", **heads, batch=batch, context=context
        )
    block = [
        norm,
        gemm("qkv_proj"),
        on("rotary", **heads, tokens=tokens),
        on("kv_write", **kv, tokens=tokens),
        attention,
        gemm("o_proj"),
        norm,
        gemm("gate_up_proj"),
        on("silu_and_mul", inter=model.intermediate_size // shape.tensor_parallel, tokens=tokens),
        gemm("down_proj"),
    ]
    head: Point = {"dtype": "bfloat16", "n": model.vocab_size, "k": model.hidden_size, "m": sampled}
    return block, [norm, ("gemm", head), on("sampling", mode="greedy", vocab=model.vocab_size, rows=sampled)]
