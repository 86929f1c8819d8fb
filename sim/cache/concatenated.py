"""A cache that grows by copies, as transformers' DynamicCache: in every step K and V of each layer are concatenated with the
new token's (torch.cat), and then read.

Room is that of the padded batch at its largest moment, to the byte: what its prompts take while they are computed, beside
their activations, or what it holds at its end beside the copies of one layer. Of the parts of :mod:`kvsim.cache.parts` it takes
all but what moves KV to a tier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from kvsim.cache.contiguous import Reserving
from kvsim.cache.manager import CacheConfig, Plan, Transfer
from kvsim.cache.options import read_options
from kvsim.cache.paged import cache_managers
from kvsim.cache.parts.decode import decode_kernels, everything
from kvsim.cache.parts.parts import Parts
from kvsim.cache.parts.span import Span, mean_context
from kvsim.cost.form import Formed, written_out
from kvsim.cost.work import Column, Kernel
from kvsim.entities import Batch, Request
from kvsim.errors import ScenarioError
from kvsim.scenario.tokens import Tokens


class ConcatenatedOptions(BaseModel):
    """``cache.options`` of the manager ``concatenated``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    repeats_kv: Literal["always", "masked"] = "masked"
    """KV heads are copied to every query head before they are read, always (transformers up to 4.4x), or in a batch whose
    prompts differ, and so need a mask (5.x)."""

    copies: Literal["everything", "window"] = "everything"
    """Of KV that a codec packs: all that is held, in its form, or only the tokens that stay at 16 bits."""


@dataclass(frozen=True, slots=True)
class Padded:
    """A static batch: its requests, and the longest prompt and answer among them."""

    rows: int = 0
    prompt: int = 0
    answer: int = 0
    masked: bool = False  # prompts differ

    def joined(self, request: Request) -> Padded:
        """With ``request``."""
        own = request.input_tokens
        masked = self.masked or (self.rows > 0 and own != self.prompt)
        answer = max(self.answer, request.output_tokens)
        return Padded(self.rows + 1, max(self.prompt, own), answer, masked)


@cache_managers.register("concatenated")
class Concatenated(Reserving):
    """See the module's text."""

    steady_work = True
    batching = frozenset({"static"})  # a batch is one tensor: its contexts are equal
    parts = frozenset({"codec", "tokens", "reads"})

    def __init__(self, config: CacheConfig) -> None:
        self.config = config
        options = read_options(ConcatenatedOptions, config.options)
        self.repeats_kv, self.copies = options.repeats_kv, options.copies
        self.codec, self.policy, self.reads = config.codec, config.tokens, config.reads
        if self.copies == "window" and self.codec is None:
            raise ScenarioError(
                "cache.options.copies: window, but nothing is packed that could stay where it is; set cache.codec, or leave "
                "copies out"
            )
        if self.policy is not None:
            _check_policy(self.policy.tokens)
        part = self.codec or self.policy or self.reads
        self.holds = None if part is None else Parts(part.shape, self.codec, self.policy, self.reads)
        self.num_tiers = 1 + len(config.tiers)
        self._tensors = 2 * config.num_layers  # K and V of each layer
        self._empty()

    def _empty(self) -> None:
        self.padded = Padded()
        self.num_left = self.generated = 0  # requests that have not ended; decode steps

    # ---- room

    def _held(self, padded: Padded, generated: int) -> int:
        """KV when ``generated`` tokens stand behind each prompt."""
        if self.holds is None:
            return padded.rows * (padded.prompt + generated) * self.config.bytes_per_token
        return padded.rows * self.holds.held_bytes(padded.prompt, generated)

    def _prefilling(self, padded: Padded) -> int:
        """The most KV until the prompts are through."""
        if self.holds is None:
            return self._held(padded, 0)
        return padded.rows * self.holds.peak_bytes(padded.prompt)

    def _room(self, padded: Padded) -> int:
        """What a batch takes at its largest moment, all bytes."""
        config = self.config
        activations = padded.rows * padded.prompt * config.prompt_token_bytes
        prompts = self._prefilling(padded) + max(0, activations - config.prompt_bytes_aside)
        if padded.answer <= 1:
            return prompts
        end = self._held(padded, padded.answer - 1)
        copy = end // self._tensors  # a layer's K or V before the step, beside those after it
        if config.heads_per_kv_head > 1 and self._repeats(padded.masked):
            copy *= 2 * config.heads_per_kv_head  # both, of all heads
        return max(prompts, end + copy)

    def fits(self, request: Request) -> bool:
        return self._room(Padded().joined(request)) <= self.config.capacity_bytes

    def admit(self, request: Request, plan: Plan) -> bool:
        padded = self.padded.joined(request)
        if self._room(padded) > self.config.capacity_bytes:
            return False
        self.padded = padded
        self.num_left += 1
        return True

    def preempt(self, request: Request, context: int) -> None:
        """Its row stays until the batch has ended."""
        self.num_left -= 1
        if not self.num_left:
            self._empty()

    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        self.preempt(request, context)
        return ()

    def decode_steps(self, batch: Batch, steps: int) -> int:
        return steps

    def commit(self, batch: Batch, steps: int) -> None:
        self.generated += steps

    def check_integrity(self) -> None:
        padded, capacity = self.padded, self.config.capacity_bytes
        held, room = self._held(padded, self.generated), self._room(padded)
        assert held <= room <= capacity, f"{held} bytes held, {room} taken, {capacity} there"
        assert self.generated < max(1, padded.answer), f"{self.generated} steps of {padded}"
        assert bool(self.num_left) == bool(padded.rows) and self.num_left <= padded.rows, (
            f"{self.num_left} requests left of {padded}"
        )

    @property
    def room_bytes(self) -> int:
        """What the batch takes at its largest moment, copies and activations included."""
        return self._room(self.padded)

    @property
    def held_bytes(self) -> int:
        """The most that the batch holds between its start and its end, without copies and activations."""
        padded = self.padded
        return max(self._prefilling(padded), self._held(padded, max(0, padded.answer - 1)))

    # ---- work

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        """All prompts of a batch, padded, go through in one step."""
        policy, reads, codec = self.policy, self.reads, self.codec
        found: tuple[Kernel | Formed, ...] = (Kernel("prefill_attention", {"new": tokens, "past": start}),)
        if policy is not None:
            found = policy.prefill_attention(start, tokens) + policy.prompt_work(start, tokens, tokens)
        elif reads is not None:
            found = reads.prefill_attention(start, tokens)
        if reads is not None:
            found += reads.write_work(tokens, tokens)
        if codec is not None:
            found += codec.write_work(tokens)
        repeats = self._repeats(self.padded.masked)
        return tuple([self._contiguous(each, repeats, 1) for each in written_out(found, 1)])

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        policy, reads, codec = self.policy, self.reads, self.codec
        whole = (everything(batch, steps),)
        held = whole if policy is None else policy.spans(batch, steps)
        read = held if reads is None else reads.spans(batch, steps)
        if policy is not None and reads is not None:
            read = policy.spans(batch, steps, read)
        repeats = self._repeats(batch.total(_padding) > 0)
        kernels = written_out(decode_kernels(batch, steps, read, codec, policy, reads), steps)
        work = tuple([self._contiguous(each, repeats, steps) for each in kernels])
        return self._copied(batch, steps, held, repeats) + work

    def _repeats(self, masked: bool) -> bool:
        return self.repeats_kv == "always" or masked

    def _copied(self, batch: Batch, steps: int, held: Sequence[Span], repeats: bool) -> tuple[Kernel, ...]:
        """Copies of what is held, in its form; where heads are repeated, also one of it for every query head, which is written,
        and read in its place. A class of layers or heads counts as its share of the launches."""
        policy, codec, plain = self.policy, self.codec, self.config.bytes_per_token
        packed = plain if codec is None else codec.token_bytes
        once = int(self.copies == "everything")
        again = self.config.heads_per_kv_head if repeats and self.config.heads_per_kv_head > 1 else 0
        forms: list[
            tuple[Span, int, tuple[int, ...]]
        ] = []  # what is held, bytes of a token, how often copied
        if policy is not None and policy.low_bits is not None:
            forms = [(span, policy.low_bytes, (once, again)) for span in policy.low_spans(batch, steps)]
        if self.reads is not None or (codec is not None and not codec.reads_heads):
            again = 0  # what is repeated was gathered, or rebuilt
        own_kernel = (
            codec is not None or self.reads is not None or (policy is not None and policy.writes_scores)
        )
        if own_kernel or not repeats:  # else attention has the copies in it
            forms += [(span, packed, (once, again)) for span in held]
        if codec is not None and codec.wide_tokens:
            wide = Span(1, batch.capped(codec.wide_tokens).sum_read(steps))
            forms += [(wide, plain - packed * once, (1,)), (wide, plain - packed, (again,))]
        layers = self.config.num_layers
        return tuple(copied(span, n * size, layers) for span, size, times in forms for n in times if n)

    def _contiguous(self, kernel: Kernel, repeats: bool, steps: int) -> Kernel:
        """Attention at 16 bits reads tensors, no pages."""
        if kernel.name != "decode_attention":
            return kernel
        num, config = kernel.args["num_seqs"], self.config
        assert isinstance(num, int)
        group = config.heads_per_kv_head if repeats else 0  # with one, [hf] is only the copy
        read = tensor_read(num, kernel.args["sum_context"], config.bytes_per_token, steps, group)
        return read._replace(calls=kernel.calls)


def copied(span: Span, token_bytes: int, num_layers: int) -> Kernel:
    """K and V of each layer, written anew; ``token_bytes``: of a token in all layers."""
    tensors = 2 * num_layers
    calls = tensors if span.share == 1 else tensors * span.share
    return Kernel("device_copy", {"num_bytes": span.tokens * (token_bytes // tensors)}, calls)


def tensor_read(num_seqs: int, tokens: Column, bytes_per_token: int, steps: int, repeated: int = 0) -> Kernel:
    """Attention of decodes over ``tokens`` of all sequences; ``repeated``: the tensors are concatenated first, and each KV head
    repeated for so many query heads."""
    moved = 1  # times what is held: reading it; or copying it, repeating the copy where there is a need, and reading that
    if repeated:
        moved = 2 + repeated + (1 + repeated if repeated > 1 else 0)
    sizes: dict[str, Column] = {
        "batch": num_seqs,
        "context": mean_context(tokens, num_seqs, steps),
        "num_bytes": tokens * (moved * bytes_per_token),
    }
    return Kernel(f"contiguous_decode[{'hf' if repeated else 'padded'}]", sizes)


def _check_policy(tokens: Tokens) -> None:
    """Raise ScenarioError for what the rows of a tensor cannot do."""
    if tokens.ratios:
        raise ScenarioError(
            "cache.tokens.ratios: the rows of a static batch are one tensor, so all keep equally many tokens; give ratio"
        )
    if not tokens.compact and tokens.score != "position":
        raise ScenarioError(
            "cache.tokens.compact: a static batch is a tensor without pages, which frees nothing where nothing is moved; "
            "set it to true, or cache.manager to paged"
        )


def _padding(request: Request) -> int:
    return request.pad_input
