"""KV in fewer bits or dimensions: bytes by the formulas of the stages, and the kernels that write and read them.

Kernels that no profile has a table of are priced by the roofline of their bytes and FLOPs, and count as extrapolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

from kvsim.cache.parts.span import KvShape, Span, attention
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch
from kvsim.errors import ScenarioError
from kvsim.scenario.codec import Codec, Tensor

PLAIN_BITS = 16
SVD_FLOPS = (
    6  # of a randomised SVD, for each element and rank: two products with a thin matrix and one of factors
)


@dataclass(frozen=True)
class PackedKv:
    """One codec on one model. Bytes are of all layers, heads and GPUs of a replica."""

    shape: KvShape
    codec: Codec

    # ---- bytes

    @cached_property
    def token_bytes(self) -> int:
        """Of a packed token, whole bytes (rounded up)."""
        shape, merge = self.shape, self.codec.merge_layers
        layers: float = shape.num_layers
        bits = 0.0
        if merge is not None:
            groups = round(merge.layers * shape.num_layers / merge.size)
            layers -= groups * (merge.size - 1) * (1 - merge.retained)
            bits = 2 * groups * merge.size * merge.norm_bits
        bits += layers * sum(self._token_bits(tensor) for tensor in self._tensors)
        return ceil(round(bits / 8 * self.codec.entropy * shape.copies, 3))

    @cached_property
    def request_bytes(self) -> int:
        """Of what a request holds whatever its length: masks, and factors that were found for its prompt."""
        shape, bits = self.shape, 0
        for tensor in self._tensors:
            if tensor.channels is not None:
                bits += shape.width
            if tensor.rank is not None and self.codec.factors == "request":
                bits += tensor.rank * shape.width * PLAIN_BITS
            bits += tensor.error_rank * shape.width * PLAIN_BITS
        return ceil(shape.num_layers * bits / 8 * shape.copies)

    @property
    def wide_tokens(self) -> int:
        """Tokens of a request at 16 bits: the newest and the first ones."""
        return self.codec.window + self.codec.sinks

    @cached_property
    def fixed_bytes(self) -> int:
        """Of a request beyond ``token_bytes`` for each token, from ``wide_tokens`` tokens on."""
        return self.request_bytes + self.wide_tokens * (self.shape.bytes_per_token - self.token_bytes)

    def beside_bytes(self, tokens: int) -> int:
        """Of a request that holds ``tokens`` tokens, beyond ``token_bytes`` for each."""
        wide = min(tokens, self.wide_tokens)
        return self.request_bytes + wide * (self.shape.bytes_per_token - self.token_bytes)

    def held_bytes(self, tokens: int) -> int:
        """Of a request of at least ``wide_tokens`` tokens, without rounding to pages."""
        return tokens * self.token_bytes + self.fixed_bytes

    def peak_bytes(self, tokens: int) -> int:
        """While a prompt of ``tokens`` tokens is prefilled."""
        if self.codec.trigger == "prefill":
            return max(tokens * self.shape.bytes_per_token, self.held_bytes(tokens))
        return self.held_bytes(tokens)

    @property
    def is_neutral(self) -> bool:
        """Nothing is packed, and nothing has to be done for it."""
        idle = self.codec.transform is None and self.codec.input is None
        forms = [tensor.rank or tensor.error_rank for tensor in self._tensors]
        return self.token_bytes == self.shape.bytes_per_token and idle and not any(forms)

    @property
    def ratio(self) -> float:
        """Packed bytes for each byte at 16 bits."""
        return self.token_bytes / self.shape.bytes_per_token

    @cached_property
    def values_share(self) -> float:
        """Of a packed token's bytes those of its values."""
        keys, values = self._token_bits(self.codec.keys), self._token_bits(self.codec.values)
        return values / (keys + values)

    @property
    def is_bits(self) -> bool:
        """Keys and values lie apart, each token's on its own or in groups, in fewer bits: so rows of them can be fetched."""
        codec = self.codec
        others = codec.input is not None or codec.merge_layers is not None or codec.entropy < 1
        forms = [t.rank or t.channels or t.sparse or t.error_rank for t in (codec.keys, codec.values)]
        return not (others or any(forms))

    @property
    def reads_heads(self) -> bool:
        """Attention reads the packed form, and that has KV heads."""
        return self.codec.input is None and not any(tensor.rank for tensor in self._tensors)

    @cached_property
    def group_tokens(self) -> int:
        """Tokens that are packed together; 1 where each can be on its own."""
        groups = [tensor.group for tensor in self._tensors if tensor.axis == "channel"]
        return max((group for group in groups if isinstance(group, int)), default=1)

    def check_block(self, block_tokens: int) -> None:
        """Raise ScenarioError unless blocks of so many tokens hold whole groups."""
        if block_tokens % self.group_tokens:
            raise ScenarioError(
                f"cache.codec: {self.group_tokens} tokens share a scale and blocks hold {block_tokens}; "
                f"set cache.block_tokens to a multiple of {self.group_tokens}"
            )

    def check_groups(self) -> None:
        """Raise ScenarioError unless a token's channels (of a head, or of several whole ones) make whole groups."""
        names = ("keys", "values") if self.codec.input is None else ("input",)
        for name, tensor in zip(names, self._tensors, strict=True):
            group, all_heads = tensor.group, self._elements(tensor)
            if not isinstance(group, int) or tensor.axis == "channel" or tensor.bits == 16:
                continue
            alone = tensor.rank is not None or self.codec.input is not None
            span = all_heads if alone else tensor.channels or self.shape.head_dim
            if span % group and (group % span or all_heads % group):
                what = "channels that a token has" if alone else "channels of a head"
                raise ScenarioError(
                    f"cache.codec.{name}.group: {group} does not divide the {span:g} {what}; give a divisor of these"
                    + ("" if alone else ", or a number of whole heads")
                )

    @cached_property
    def _tensors(self) -> tuple[Tensor, ...]:
        codec = self.codec
        return (codec.keys, codec.values) if codec.input is None else (codec.input,)

    def _elements(self, tensor: Tensor) -> float:
        """That a token has in one layer."""
        if tensor.rank is not None:
            return tensor.rank / self.codec.joint_layers
        if tensor.channels is not None:
            return self.shape.num_kv_heads * tensor.channels
        return self.shape.width if self.codec.input is None else self.shape.hidden_size

    def _token_bits(self, tensor: Tensor) -> float:
        """Of a token in one layer."""
        elements, sparse = self._elements(tensor), tensor.sparse
        if sparse is not None:  # a tile's number of values is as likely to be anything modulo the padding
            values = sparse.tile * sparse.kept + (0 if sparse.kept == 1 else (sparse.padding - 1) / 2)
            extra = 0 if sparse.kept == 1 else sparse.tile + 8 * sparse.count_bytes
            return elements * (values * PLAIN_BITS + extra) / sparse.tile
        important = tensor.important
        share = 0.0 if important is None else important.share
        bits = (1 - share) * self._with_metadata(tensor, tensor.bits, elements)
        if important is not None:
            bits += share * self._with_metadata(tensor, important.bits, elements)
        bits += tensor.outliers * tensor.outlier_bits + tensor.error_rank * PLAIN_BITS / self.shape.head_dim
        return elements * bits

    @staticmethod
    def _with_metadata(tensor: Tensor, bits: float, elements: float) -> float:
        if bits == PLAIN_BITS or tensor.group is None:
            return bits
        return bits + tensor.metadata_bits / (elements if tensor.group == "token" else tensor.group)

    # ---- kernels

    @cached_property
    def _bits(self) -> float:
        """Of an element on average, without metadata: by it tables are looked up."""
        found = []
        for tensor in self._tensors:
            share = 0.0 if tensor.important is None else tensor.important.share
            important = 0.0 if tensor.important is None else tensor.important.bits
            found.append((1 - share) * tensor.bits + share * important)
        return sum(found) / len(found)

    @cached_property
    def _kept_percent(self) -> int | None:
        """Of the elements, on average, where some are zeroed."""
        kept = [tensor.sparse.kept if tensor.sparse else 1.0 for tensor in self._tensors]
        return None if min(kept) == 1 else round(100 * sum(kept) / len(kept))

    def write_work(self, tokens: int, generated: bool = False) -> tuple[Formed, ...]:
        """Look. Packing ``tokens`` new tokens; ``generated``: they are projected to the factors of their prompt, where these
        are the request's."""
        form = self._writes[generated]
        return (form.at(tokens),) if form.kernels else ()

    @cached_property
    def _writes(self) -> tuple[Form, Form]:
        """Of prompts, and of what is generated, over the tokens."""
        return Form(self._writing(Size(), 1)), Form(self._writing(Size(), 1, generated=True))

    @cached_property
    def _group_writes(self) -> dict[int, tuple[Form, int]]:
        """By sequences: over the launches; and how many groups each of them packs."""
        return {}

    def _writing(self, tokens: Any, calls: Any, generated: bool = False) -> list[Kernel]:
        """Packing ``tokens`` new tokens, ``calls`` times; ``generated``: they are projected to the factors of their prompt,
        where these are the request's."""
        codec, shape = self.codec, self.shape
        plain, moved = shape.bytes_per_token, tokens * (shape.bytes_per_token + self.token_bytes)
        found = []
        if codec.transform is not None:
            sizes = {"tokens": tokens, "num_bytes": tokens * plain}  # keys: read, and written
            found.append(Kernel("hadamard_keys", sizes, calls))
        for tensor in self._tensors:
            if tensor.rank is not None and (codec.factors == "offline" or generated):
                rank = max(1, tensor.rank // codec.joint_layers)
                flops = 2 * tokens * shape.hidden_size * rank * shape.num_layers
                weights = 2 * shape.hidden_size * rank * shape.num_layers
                sizes = {"rank": rank, "tokens": tokens, "num_bytes": weights, "flops": flops}
                found.append(Kernel("low_rank_project", sizes, calls))
            elif tensor.rank is not None:
                groups = -(-shape.num_layers // codec.joint_layers)
                found.append(
                    decomposition(tokens, shape.width * codec.joint_layers, tensor.rank, calls * groups)
                )
        if self._bits < PLAIN_BITS:
            found.append(
                Kernel("quantise_kv", {"bits": self._bits, "tokens": tokens, "num_bytes": moved}, calls)
            )
        if self._kept_percent is not None:
            sizes = {"kept": self._kept_percent, "tokens": tokens, "num_bytes": moved}
            found.append(Kernel("prune_kv", sizes, calls))
        elif any(tensor.channels for tensor in self._tensors):
            found.append(Kernel("prune_channels", {"num_bytes": moved}, calls))
        if codec.merge_layers is not None:
            found.append(Kernel("merge_layers", {"num_bytes": moved}, calls))
        if codec.entropy < 1:
            found.append(Kernel("entropy_encode", {"num_bytes": moved}, calls))
        return found

    @property
    def packs_prompts_late(self) -> bool:
        """A prompt is packed when all of it has been computed."""
        return self.codec.trigger == "prefill"

    def prompt_work(self, past: int, new: int, prompt: int) -> tuple[Kernel, ...]:
        """Look. What a codec has to do with a prompt beside packing it: nothing."""
        return ()

    def new_tokens(self, batch: Batch, steps: int) -> tuple[Formed, ...]:
        """Look. Packing what the next decode steps generate, a group at a time; one launch packs those of several requests,
        as many as fill a group in the same step on average."""
        group, num = self.group_tokens, len(batch.requests)
        if group == 1:
            return self.write_work(num, generated=True)
        found = self._group_writes.get(num)
        if found is None:
            together = -(-num // group)
            form = Form(self._writing(group * together, Size(), generated=True))
            found = self._group_writes[num] = form, together
        form, together = found
        if not form.kernels:
            return ()
        pages = batch.pages(group)
        if together == 1:
            return (form.at(pages.nums_filled(steps)),)
        return (form.at(-(-pages.num_filled(steps) // together)),)

    @cached_property
    def _reads(self) -> dict[tuple[int, float], Form]:
        return {}

    def read_work(self, num_seqs: int, span: Span) -> tuple[Formed, ...]:
        """Look. Decode attention of ``num_seqs`` queries over ``span`` in packed form."""
        share, tokens = span
        form = self._reads.get((num_seqs, share))
        if form is None:
            form = self._reads[num_seqs, share] = Form(self._reading(num_seqs, share, Size()))
        return (form.at(tokens),)

    def _reading(self, num_seqs: int, share: float, tokens: Any) -> tuple[Kernel, ...]:
        codec, shape = self.codec, self.shape
        calls: float = 1 if share == 1 else share
        found: list[Kernel] = []
        if codec.entropy < 1:
            found.append(Kernel("entropy_decode", {"num_bytes": tokens * self.token_bytes}, calls))
        if codec.input is not None:
            flops = 4 * shape.hidden_size * shape.width * shape.num_layers
            sizes = {
                "bits": self._bits,
                "tokens": tokens,
                "num_bytes": tokens * self.token_bytes,
                "flops": tokens * flops,
            }
            return (*found, Kernel("rematerialise_kv", sizes, calls), attention(num_seqs, share, tokens))
        ranks = [tensor.rank for tensor in self._tensors if tensor.rank is not None]
        if ranks and codec.read == "absorb":
            flops = 2 * shape.num_heads * sum(ranks) * shape.num_layers
            sizes = {"num_bytes": tokens * self.token_bytes, "flops": tokens * flops}
            return (*found, Kernel("latent_attention", sizes, calls))
        if ranks:
            for rank in ranks:
                sizes = {
                    "rank": rank,
                    "tokens": tokens,
                    "num_bytes": tokens * (2 * (rank + shape.width) * shape.num_layers),
                    "flops": tokens * (2 * rank * shape.width * shape.num_layers),
                }
                found.append(Kernel("low_rank_reconstruct", sizes, calls))
            if self._bits < PLAIN_BITS:
                found.append(Kernel("dequantise_latents", {"num_bytes": tokens * self.token_bytes}, calls))
            return (*found, attention(num_seqs, share, tokens))
        read = tokens * self.token_bytes
        if self._kept_percent is not None:
            context = tokens // num_seqs
            sizes = {"kept": self._kept_percent, "batch": num_seqs, "context": context, "num_bytes": read}
            return (*found, Kernel("bitmap_attention", sizes, calls))
        if any(tensor.channels for tensor in self._tensors):
            return (*found, Kernel("pruned_channel_attention", {"num_bytes": read}, calls))
        if any(tensor.error_rank for tensor in self._tensors):
            bits = sum(self._elements(t) * t.error_rank for t in self._tensors) * PLAIN_BITS / shape.head_dim
            num_bytes = tokens * ceil(bits * shape.num_layers / 8 * shape.copies)
            found.append(Kernel("add_low_rank_error", {"num_bytes": num_bytes}, calls))
        if self._bits == PLAIN_BITS:
            return (*found, attention(num_seqs, share, tokens))
        # tokens at 16 bits count by their bytes
        context = tokens // num_seqs + round(self.wide_tokens * (1 / self.ratio - 1))
        sizes = {"bits": self._bits, "batch": num_seqs, "context": context, "num_bytes": read}
        outliers = sum(tensor.outliers for tensor in self._tensors) / len(self._tensors)
        if not outliers:
            return (*found, Kernel("dequantise_attention", sizes, calls))
        sizes["outliers"] = outliers * shape.head_dim
        return (*found, Kernel("outlier_attention", sizes, calls))


def decomposition(tokens: Any, width: int, rank: int, calls: Any) -> Kernel:
    """Factors of a matrix (tokens, width) of keys or values, found ``calls`` times."""
    sizes = {"width": width, "rank": rank, "tokens": tokens, "num_bytes": 2 * tokens * (width + rank)}
    sizes["flops"] = SVD_FLOPS * tokens * width * rank
    return Kernel("joint_svd", sizes, calls)
