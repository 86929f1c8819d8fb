"""The part of a step that depends on token counts only: matrix products, experts, collectives, elementwise kernels.

Looked up once per number of tokens (layers) and of sampled rows (LM head), then cached: a step costs two
dictionary look-ups.
"""

from __future__ import annotations

from typing import NamedTuple

from kvsim.cost.collectives import CollectivePrices
from kvsim.cost.elementwise import Elementwise
from kvsim.cost.gemm import GemmPrices
from kvsim.cost.lattice import quantise
from kvsim.cost.moe import MoePrices
from kvsim.cost.setting import Setting
from kvsim.model.spec import DTYPE_BYTES, ModelSpec

Key = tuple[str, str]  # kernel, provenance


class Priced(NamedTuple):
    """A sum of kernels: total and what each contributed, lattice nanoseconds."""

    total_ns: float
    parts: tuple[tuple[Key, float], ...]


def linear_widths(model: ModelSpec, tensor_parallel: int) -> dict[str, tuple[int, int]]:
    """(n, k) of each dense matrix product of a layer on one of ``tensor_parallel`` GPUs; experts and LM head apart."""
    hidden, head_dim = model.hidden_size, model.head_dim
    heads = model.num_heads // tensor_parallel
    kv_heads = max(1, model.num_kv_heads // tensor_parallel)
    widths = {
        "qkv_proj": ((heads + 2 * kv_heads) * head_dim, hidden),
        "o_proj": (hidden, heads * head_dim),
    }
    dense_size = model.intermediate_size
    if model.moe:
        widths["router"] = (model.moe.num_experts, hidden)
        dense_size = model.moe.num_shared_experts * model.moe.intermediate_size
    if dense_size:
        widths["gate_up_proj"] = (2 * dense_size // tensor_parallel, hidden)
        widths["down_proj"] = (hidden, dense_size // tensor_parallel)
    return widths


class LinearPart:
    """Weights of one model, sharded over the replica's GPUs."""

    def __init__(self, setting: Setting) -> None:
        model, parts = setting.model, setting.tensor_parallel
        self._setting = setting
        self._gemm = GemmPrices(setting.profile, setting.roofline, model.weight_dtype)
        # the LM head stays in 16 bits in quantised checkpoints
        self._head_gemm = self._gemm
        if DTYPE_BYTES[model.weight_dtype] < 2:
            self._head_gemm = GemmPrices(setting.profile, setting.roofline, "bfloat16")
        self._collectives = CollectivePrices(setting.profile, parts)
        self._moe: MoePrices | None = None
        self._gemms = [(name, n, k) for name, (n, k) in linear_widths(model, parts).items()]
        if model.moe:
            moe = model.moe
            shape = (model.hidden_size, moe.intermediate_size, moe.experts_per_token, moe.num_experts)
            self._moe = MoePrices(setting.profile, setting.roofline, model.weight_dtype, shape, parts)

        self._elementwise = Elementwise(setting)

    def layers(self, tokens: int) -> Priced:
        """All layers for ``tokens`` tokens."""
        model, parts = self._setting.model, self._setting.tensor_parallel
        found = [(name, *self._gemm.price(tokens, n, k)) for name, n, k in self._gemms]
        if self._moe:
            found.append(("moe", *self._moe.price(tokens)))
        if parts > 1:  # after attention and after the MLP; activations are 16 bits
            time_ns, provenance = self._collectives.price("all_reduce", tokens * model.hidden_size * 2)
            found.append(("all_reduce", 2 * time_ns, provenance))
        whole = [((name, provenance), model.num_layers * time_ns) for name, time_ns, provenance in found]
        between = self._elementwise.layers(tokens)
        return _sum(whole + [((name, provenance), time_ns) for name, time_ns, provenance in between])

    def head(self, sampled: int) -> Priced:
        """LM head for ``sampled`` rows, logits gathered over the GPUs."""
        if not sampled:
            return Priced(0.0, ())
        model, parts = self._setting.model, self._setting.tensor_parallel
        time_ns, provenance = self._head_gemm.price(sampled, -(-model.vocab_size // parts), model.hidden_size)
        found = [(("lm_head", provenance), time_ns)]
        if parts > 1:
            time_ns, provenance = self._collectives.price("all_gather", sampled * model.vocab_size * 2)
            found.append((("all_gather", provenance), time_ns))
        chosen = self._elementwise.sampled(sampled)
        return _sum(found + [((name, provenance), time_ns) for name, time_ns, provenance in chosen])


def _sum(found: list[tuple[Key, float]]) -> Priced:
    parts = tuple((key, quantise(time_ns)) for key, time_ns in found)
    return Priced(sum(time_ns for _, time_ns in parts), parts)


def scaled(priced: Priced, factor: float) -> Priced:
    """Every part times ``factor``."""
    return priced if factor == 1 else _sum([(key, time_ns * factor) for key, time_ns in priced.parts])
