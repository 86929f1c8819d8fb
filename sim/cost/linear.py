"""The part of a step that depends on token counts only: matrix products, experts, collectives, elementwise kernels.

Looked up for a block of numbers of tokens at once (layers) and once per number of sampled rows (LM head), then cached: a
step costs two dictionary look-ups.
"""

from __future__ import annotations

import numpy as np

from kvsim.cost.collectives import CollectivePrices, between_groups
from kvsim.cost.curve import Array
from kvsim.cost.elementwise import Elementwise
from kvsim.cost.gemm import GemmPrices
from kvsim.cost.lattice import quantise, quantise_array
from kvsim.cost.model import PROVENANCES
from kvsim.cost.moe import MoePrices
from kvsim.cost.setting import Setting
from kvsim.model.spec import DTYPE_BYTES, ModelSpec

Key = tuple[str, str]  # kernel, provenance


Parts = tuple[tuple[Key, float], ...]

BLOCK_TOKENS = 1024  # numbers of tokens that are priced together


class Spent:
    """Time of kernels on no line that are counted under one key, lattice nanoseconds."""

    __slots__ = ("key", "ns")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.ns = 0.0


def spent_by_provenance(kernel: str) -> dict[str, Spent]:
    return {provenance: Spent((kernel, provenance)) for provenance in PROVENANCES}


class Priced:
    """A sum of kernels: total and what each contributed, lattice nanoseconds; how many steps have used it."""

    __slots__ = ("_parts", "total_ns", "uses")

    def __init__(self, total_ns: float, parts: Parts | tuple[Block, int]) -> None:
        """``parts``: of a block they are taken when somebody asks."""
        self.total_ns = total_ns
        self.uses = 0
        self._parts = parts

    @property
    def parts(self) -> Parts:
        if self._parts and isinstance(self._parts[0], Block):
            block, row = self._parts
            return block.parts(row)
        return self._parts


class StepLinear:
    """Linear layers and LM head of decode-only steps, and what the engine adds to each; how many steps have used them."""

    __slots__ = ("engine_ns", "head", "layers", "rest_ns", "steps", "total_ns", "uses")

    def __init__(self, layers: Priced, head: Priced, engine_ns: float) -> None:
        self.layers, self.head, self.engine_ns = layers, head, engine_ns
        self.total_ns = layers.total_ns + head.total_ns
        self.rest_ns = engine_ns + 0.5  # int() then rounds
        self.steps = 0
        self.uses = 0  # steps in which the layers do not hide behind a longer lane


class Block:
    """The linear layers for consecutive numbers of tokens: columns (kernel, provenance of all or of each, nanoseconds)."""

    def __init__(self, columns: list[tuple[str, str | list[str], Array]]) -> None:
        self.columns = [(name, provenance, quantise_array(time_ns)) for name, provenance, time_ns in columns]
        self.total_ns: list[float] = sum(time_ns for _, _, time_ns in self.columns).tolist()  # type: ignore[union-attr]

    def parts(self, row: int) -> Parts:
        return tuple(
            ((name, provenance if isinstance(provenance, str) else provenance[row]), time_ns.item(row))
            for name, provenance, time_ns in self.columns
        )

    def priced(self, row: int) -> Priced:
        return Priced(self.total_ns[row], (self, row))

    def scaled(self, factor: float) -> Block:
        """Every part times ``factor``."""
        return Block([(name, provenance, time_ns * factor) for name, provenance, time_ns in self.columns])


def linear_widths(model: ModelSpec, tensor_parallel: int) -> dict[str, tuple[int, int]]:
    """(n, k) of each dense matrix product of a layer on one of ``tensor_parallel`` GPUs; experts and LM head apart."""
    hidden, head_dim = model.hidden_size, model.head_dim
    heads = model.num_heads // tensor_parallel
    kv_heads = max(1, model.num_kv_heads // tensor_parallel)
    widths = {
        "qkv_proj": ((heads + 2 * kv_heads) * head_dim, hidden),
        "o_proj": (hidden, heads * head_dim),
    }
    if model.latent:
        widths = model.latent.widths(hidden, heads)
    if model.state:
        widths |= model.state.widths(hidden, tensor_parallel)
    if model.moe:
        widths["router"] = (model.moe.num_experts, hidden)
        shared = model.moe.num_shared_experts * model.moe.intermediate_size
        if shared:
            widths["shared_gate_up_proj"] = (2 * shared // tensor_parallel, hidden)
            widths["shared_down_proj"] = (hidden, shared // tensor_parallel)
    if model.dense_layers:
        gate_up = "gate_up_proj" if model.mlp_matrices == 3 else "up_proj"
        widths[gate_up] = ((model.mlp_matrices - 1) * model.intermediate_size // tensor_parallel, hidden)
        widths["down_proj"] = (hidden, model.intermediate_size // tensor_parallel)
    return widths


def layers_with(model: ModelSpec, product: str) -> int:
    """How many layers have the matrix product of that name."""
    if product == "router" or product.startswith("shared_"):
        return model.expert_layers
    if product.startswith("state_"):
        return model.state.num_layers if model.state else 0
    if product in ("gate_up_proj", "up_proj", "down_proj"):
        return model.dense_layers
    return model.attention_layers


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
        self._gemms = [
            (name, n, k, layers_with(model, name)) for name, (n, k) in linear_widths(model, parts).items()
        ]
        if model.moe:
            moe = model.moe
            shape = (model.hidden_size, moe.intermediate_size, moe.experts_per_token, moe.num_experts)
            apart = setting.expert_parallel
            cut = parts * setting.data_parallel // apart
            self._moe = MoePrices(setting.profile, setting.roofline, model.weight_dtype, shape, cut, apart)

        self._elementwise = Elementwise(setting)

    def layers(self, first: int) -> Block:
        """All layers for ``first``, ``first`` + 1, ... tokens, at least 1 each."""
        model, parts = self._setting.model, self._setting.tensor_parallel
        tokens = np.arange(first, first + BLOCK_TOKENS)
        found = []
        for name, n, k, layers in self._gemms:
            time_ns, provenance = self._gemm.column(tokens, n, k)
            found.append((name, provenance, layers * time_ns))
        if self._moe:
            of_all = np.ceil(tokens * self._setting.groups).astype(
                np.int64
            )  # experts get those of every group
            times, provenances = zip(*map(self._moe.price, of_all.tolist()), strict=True)
            found.append(("moe", list(provenances), model.expert_layers * np.array(times)))
        if parts > 1:  # after attention and after the MLP; activations are 16 bits
            sizes = (tokens * (model.hidden_size * 2)).tolist()
            reduced = [self._collectives.price("all_reduce", num_bytes) for num_bytes in sizes]
            times, provenances = zip(*reduced, strict=True)
            found.append(
                (
                    "all_reduce",
                    list(provenances),
                    model.num_layers * (model.norms_per_layer * np.array(times)),
                )
            )
        found += between_groups(self._setting, tokens)
        return Block(found + self._elementwise.layers(tokens))

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
