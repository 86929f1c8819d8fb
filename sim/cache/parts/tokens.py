"""Which tokens of a request are held, and the kernels that choose and move them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from kvsim.cache.parts.held import HeldTokens
from kvsim.cache.parts.slices import SliceClass
from kvsim.cache.parts.span import Span, mean_context
from kvsim.cost.form import Form, Formed, Size
from kvsim.cost.work import Kernel
from kvsim.entities import Batch
from kvsim.scenario.tokens import Folded, Lowered

SCORED_QUERIES = 64  # whose attention is summed in one launch, where all of a prompt's is


class TokenPolicy(HeldTokens):
    """One policy on one model: what it holds, and what it costs."""

    def prefill_attention(self, past: int, new: int, ratio: float | None = None) -> tuple[Kernel, ...]:
        """Look. ``new`` prompt tokens behind ``past`` others, of a request that keeps ``ratio`` if not what all do."""
        tokens, heads = self.tokens, self.tokens.heads
        if heads is not None and heads.prefill == "windowed":
            share = self.classes[0].slices / self.shape.num_slices if len(self.classes) > 1 else 0.0
            seen = self._budget(self.classes[-1], past + new)
            whole = {"new": new, "past": past}
            if new <= seen:
                some = Kernel("prefill_attention", {"new": new, "past": min(past, seen)}, calls=1 - share)
            elif share:
                flops = 4 * new * seen * self.shape.num_heads * self.shape.head_dim * self.shape.num_layers
                sizes = {"new": new, "kept": seen, "num_bytes": 0, "flops": flops}
                some = Kernel("sparse_prefill[window]", sizes, calls=1 - share)
            else:  # piece after piece, each behind as many tokens as it sees
                some = Kernel("prefill_attention", {"new": seen, "past": seen}, calls=new / seen)
            full = (Kernel("prefill_attention", whole, calls=share),) if share else ()
            return (*full, some)
        if tokens.schedule == "chunk" and past:
            past = round(self._kept_slices(past, ratio) / self.shape.num_slices)
        return (Kernel("prefill_attention", {"new": new, "past": past}),)

    def prompt_work(self, past: int, new: int, prompt: int, ratio: float | None = None) -> tuple[Kernel, ...]:
        """Look. Ranking and moving, with the step that computes ``new`` tokens behind ``past`` of a ``prompt``."""
        tokens, shape = self.tokens, self.shape
        kept, stays = self._kept_slices(prompt, ratio), self._mean_kept(prompt, ratio)
        if kept == prompt * shape.num_slices:
            return ()
        found = self._ranking(past, new, stays)
        if tokens.schedule == "chunk":
            entries, evictions = stays + tokens.block, new / tokens.block
            moved, goes = min(tokens.block, stays) * shape.num_slices, min(new, prompt - stays)
            if past + new <= stays:
                return tuple(found)
        elif past + new < prompt:
            return tuple(found)
        else:
            entries, evictions, moved, goes = prompt, 1, kept, prompt - stays
        if tokens.lookahead:
            found += self._drafting(stays)
        if tokens.score == "window":
            found.append(Kernel("score_reduction", self._scoring(tokens.window, entries), calls=evictions))
        if tokens.weighs_values:
            read = entries * shape.bytes_per_token // 2
            found.append(Kernel("weigh_values", {"num_bytes": read}, calls=evictions))
        if tokens.score != "position":
            choices = -(-entries // tokens.granularity)
            best = max(1, min(stays, entries) // tokens.granularity)
            rows = _choosing(shape.num_kv_heads, choices, best)
            found.append(Kernel("top_k_select", rows, calls=evictions * shape.num_layers))
            if tokens.compact:
                rows = {"row_bytes": 2 * shape.head_dim, "rows": 2 * moved}
                found.append(Kernel("compact_kv", rows, calls=evictions))
        if tokens.renumbered:
            read = stays * shape.bytes_per_token  # keys: read, and written
            found.append(Kernel("rotate_keys", {"tokens": stays, "num_bytes": read}, calls=evictions))
        return (*found, *self._dropping(goes, stays))

    def _ranking(self, past: int, new: int, stays: int) -> list[Kernel]:
        """What scores take of all tokens, as they are computed."""
        tokens, shape = self.tokens, self.shape
        if tokens.score in ("norm", "key_similarity"):
            read = new * shape.bytes_per_token // 2
            return [Kernel("key_statistics", {"page": 16, "tokens": new, "num_bytes": read})]
        if tokens.score == "gate":
            sizes = {"tokens": new, "num_bytes": 0, "flops": new * self._gate_flops}
            return [Kernel("retaining_heads", sizes)]
        if tokens.score == "accumulated":
            before = min(past, stays) if tokens.schedule == "chunk" else past
            sizes = self._scoring(SCORED_QUERIES, before + new // 2 + 1)
            return [Kernel("score_reduction", sizes, calls=new / SCORED_QUERIES)]
        if tokens.score == "hash":
            flops = 2 * new * shape.num_layers * shape.width * tokens.hash_bits
            return [Kernel("hash_keys", {"num_bytes": new * shape.bytes_per_token // 2, "flops": flops})]
        return []

    def _drafting(self, stays: int) -> list[Kernel]:
        """Steps of one token each, over what would stay of a prompt."""
        often = self.tokens.lookahead
        read = Kernel("decode_attention", {"num_seqs": 1, "sum_context": stays}, calls=often)
        return [Kernel("forward_pass", {"tokens": 1}, calls=often), read]

    def _dropping(self, goes: int, stays: int) -> list[Kernel]:
        """What becomes of ``goes`` tokens of a prompt."""
        if self.tokens.dropped == "merge":
            read = (goes + stays) * self.shape.bytes_per_token
            return [Kernel("merge_tokens", {"dropped": goes, "kept": stays, "num_bytes": read})]
        return [*self._lowering(goes), *self._folding(goes)] if goes > 0 else []

    def _folding(self, tokens: int) -> list[Kernel]:
        """Tokens into a state."""
        folded, shape = self.tokens.dropped, self.shape
        if not isinstance(folded, Folded):
            return []
        flops = 4 * tokens * shape.num_layers * shape.width * folded.features
        moved = tokens * shape.bytes_per_token + 2 * self.state_bytes
        return [Kernel("fold_tokens", {"num_bytes": moved, "flops": flops})]

    def _lowering(self, tokens: int) -> list[Kernel]:
        low = self.tokens.dropped
        if not isinstance(low, Lowered):
            return []
        moved = tokens * (self.shape.bytes_per_token + self.low_bytes)
        return [Kernel("quantise_kv", {"bits": low.bits, "tokens": tokens, "num_bytes": moved})]

    def low_reads(self, batch: Batch, steps: int) -> list[Kernel]:
        """Look. Decode attention over what is held in fewer bits."""
        low, num, found = self.tokens.dropped, len(batch), []
        assert isinstance(low, Lowered)
        for span in self.low_spans(batch, steps):
            context = mean_context(span.tokens, num, steps)
            sizes = {
                "bits": low.bits,
                "batch": num,
                "context": context,
                "num_bytes": span.tokens * self.low_bytes,
            }
            calls: float = 1 if span.share == 1 else span.share
            found.append(Kernel("dequantise_attention", sizes, calls=calls))
        return found

    @cached_property
    def _forms(self) -> dict[tuple[int, float, int], Form]:
        return {}

    def scored_read(self, num_seqs: int, span: Span) -> Formed:
        """Look. Decode attention that gives its probabilities."""
        form = self._forms.get((num_seqs, span.share, -1))
        if form is None:
            tokens: Any = Size()
            sizes = {
                "batch": num_seqs,
                "context": tokens // num_seqs,
                "num_bytes": tokens * self.shape.bytes_per_token,
            }
            calls: float = 1 if span.share == 1 else span.share
            form = self._forms[num_seqs, span.share, -1] = Form([Kernel("decode_with_scores", sizes, calls)])
        return form.at(span.tokens)

    @cached_property
    def score_writing(self) -> Form:
        """The probabilities of so many tokens, in all heads and float32."""
        tokens: Any = Size()
        num_bytes = 4 * self.shape.num_heads * self.shape.num_layers
        return Form([Kernel("write_scores", {"num_bytes": tokens * num_bytes})])

    def step_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        """Look. What decode steps bring back and evict."""
        found: list[Kernel | Formed] = [] if self.recalled is None else [*self._recalling(batch)]
        if self.state_bytes:
            found.append(Kernel("read_state", {"num_bytes": len(batch) * self.state_bytes}))
        for place, each, cap in self._evicted:
            found += self._evicting(place, each, cap, batch, steps)
        return tuple(found)

    @cached_property
    def _evicted(self) -> list[tuple[int, SliceClass, int]]:
        """Classes of which steps choose what goes: number, and the most that a capped one holds."""
        if self.tokens.generated == "append" or self.tokens.score == "position":
            return []
        both = enumerate(zip(self.classes, self.caps, strict=True))
        return [(place, *each) for place, each in both if each[0].kind not in ("everything", "append")]

    @cached_property
    def acts_in_steps(self) -> bool:
        """:meth:`step_work` may give something."""
        return bool(self._evicted) or self.recalled is not None or self.state_bytes > 0

    @cached_property
    def only_reads(self) -> bool:
        """All that a decode step does is to read what is held, at 16 bits."""
        return not (self.acts_in_steps or self.writes_scores or self.low_bits is not None)

    def _recalling(self, batch: Batch) -> list[Kernel]:
        """Rows of the tier, before attention; or tokens that go through the model with the step's own, and attend to what
        these read anyway."""
        back = self.num_recalled(batch)
        if not back or self.recalled is None:
            return []
        if self.recalled.tier is None:
            return [Kernel("forward_pass", {"tokens": back, "beside": len(batch)})]
        rows = {"row_bytes": 2 * self.shape.head_dim, "rows": 2 * back * self.dropping_slices}
        return [Kernel("host_gather", rows, group="fetch", lane="h2d")]

    def _evicting(
        self, place: int, each: SliceClass, cap: int, batch: Batch, steps: int
    ) -> Sequence[Kernel | Formed]:
        """Of one class: of how many tokens one is chosen, by how many sequences, how often."""
        tokens, num = self.tokens, len(batch.requests)
        often: Any = 1
        evicting = num
        kept: Any
        if each.kind == "capped":
            kept, often = cap, _flag(batch.capped(cap).num_beyond(steps))
        elif each.kind == "apart":
            assert tokens.generated_budget is not None
            kept = tokens.generated_budget
            often = _flag(batch.capped(kept, self.prompt_of).num_beyond(steps))
        elif each.kind == "constant":
            kept = max(1, batch.total(self.constant) // num)
        else:  # so many of the batch evict in a step, on average
            kept = batch.share(each.part, each.whole).sum_read(steps) // num
            evicting = max(1, round(num * (1 - each.part / each.whole)))
        if tokens.every > 1:  # one sequence, and several tokens of it
            evicting, often = 1, batch.pages(tokens.every).num_filled(steps)
        best = 32
        if each.kind != "share":  # which grows, as a column
            best = min(best, max(1, kept // tokens.granularity))
        apart = each.slices < self.shape.num_slices and tokens.dropped != "discard"
        sized = each.kind in ("capped", "apart")
        if apart or not (sized or tokens.every == tokens.granularity == 1):
            return self._evictions(each, kept, evicting, often, best)
        form = self._forms.get((evicting, best, place))
        if form is None:
            if sized:
                form = Form(self._evictions(each, kept, evicting, Size(), best))
            else:
                form = Form(self._evictions(each, Size(), evicting, 1, best))
            self._forms[evicting, best, place] = form
        return (form.at(often if sized else kept),)

    def _evictions(self, each: SliceClass, kept: Any, evicting: int, often: Any, best: int) -> list[Kernel]:
        """Choosing ``best`` of ``kept`` tokens ``often``, for each of ``evicting`` sequences."""
        tokens, shape = self.tokens, self.shape
        layers = each.slices // shape.num_kv_heads
        rows, entries = shape.num_kv_heads * evicting, kept // tokens.granularity
        if each.kind != "share" and type(entries) is int:
            entries = max(1, entries)
        found = []
        if tokens.score == "hash":
            read = entries * (evicting * self.beside_bytes)
            sizes = {"bits": tokens.hash_bits, "batch": evicting, "entries": entries, "num_bytes": read}
            found.append(Kernel("hash_scores", sizes, calls=often))
        if tokens.weighs_values:
            read = kept * (evicting * shape.bytes_per_token // 2)
            found.append(Kernel("weigh_values", {"num_bytes": read}, calls=often))
        found.append(Kernel("top_k_select", _choosing(rows, entries, best), calls=often * layers))
        share = each.slices / shape.num_slices
        if tokens.dropped == "merge":
            # each sequence's token against its own kept keys: as many products as one token against all of them
            read = kept * (evicting * shape.bytes_per_token // 2)
            sizes = {"dropped": 1, "kept": kept * evicting, "num_bytes": read}
            found.append(Kernel("merge_tokens", sizes, calls=share * often if share < 1 else often))
        goes = evicting * tokens.every
        for kernel in (*self._lowering(goes), *self._folding(goes)):
            found.append(kernel._replace(calls=share * often if share < 1 else often))
        return found

    @cached_property
    def writes_scores(self) -> bool:
        """Decode attention has to give its probabilities."""
        return self.tokens.score == "accumulated" and self.tokens.generated != "append"

    def _scoring(self, window: int, context: int) -> dict[str, int]:
        """Sizes of the scores of ``window`` queries over ``context`` keys."""
        shape = self.shape
        flops = 2 * window * context * shape.num_heads * shape.head_dim * shape.num_layers
        read = context * shape.bytes_per_token // 2
        return {"window": window, "context": context, "num_bytes": read, "flops": flops}

    @property
    def _gate_flops(self) -> int:
        """Of a token in all layers: queries, keys and values to 1024 numbers, and these to a score a head (Locret)."""
        shape = self.shape
        wide = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
        return 2 * shape.num_layers * 1024 * (wide + shape.num_kv_heads)


def _choosing(rows: int, entries: Any, k: int) -> dict[str, Any]:
    """Sizes of choosing the ``k`` best of each row's scores, which are of 4 bytes."""
    return {"rows": rows, "entries": entries, "k": k, "num_bytes": 4 * rows * entries}


def _flag(count: Any) -> Any:
    """1 where there is something, else 0."""
    return int(count > 0) if type(count) is int else (count > 0) * 1
