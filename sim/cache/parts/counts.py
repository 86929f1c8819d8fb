"""How many tokens of a request its classes of slices hold (:mod:`kvsim.cache.parts.slices`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil
from operator import mul

from kvsim.cache.parts.slices import Kind, SliceClass, classes_of
from kvsim.cache.parts.span import KvShape
from kvsim.entities import Request
from kvsim.scenario.tokens import Folded, Lowered, Recalled, Tokens
from kvsim.splitmix import GOLDEN, MASK, finalised


@dataclass(frozen=True)
class TokenCounts:
    """One policy on one model."""

    shape: KvShape
    tokens: Tokens
    seed: int = 0  # of what requests draw

    # ---- numbers

    @cached_property
    def classes(self) -> tuple[SliceClass, ...]:
        """From the first layer on."""
        return classes_of(self.shape, self.tokens)

    @cached_property
    def kinds(self) -> tuple[tuple[int, Kind], ...]:
        """(slices, kind) of each class."""
        return tuple((each.slices, each.kind) for each in self.classes)

    @cached_property
    def caps(self) -> tuple[int, ...]:
        """:meth:`cap` of each class; 0 where it has none."""
        return tuple(self.cap(each) if each.kind == "capped" else 0 for each in self.classes)

    @cached_property
    def _known(self) -> dict[int | tuple[int, float], tuple[int, ...]]:
        return {}

    def ratio_of(self, request: Request) -> float | None:
        """What share of its prompt ``request`` keeps; None = as all do."""
        quantiles = self.tokens.ratios
        if not quantiles:
            return None
        at = _drawn(self.seed, request.index) * (len(quantiles) - 1)
        low = int(at)
        return round(quantiles[low] + (at - low) * (quantiles[low + 1] - quantiles[low]), 3)

    def kept(self, prompt: int, ratio: float | None = None) -> tuple[int, ...]:
        """Tokens that stay of a prompt, by class. ``ratio``: of a request that has one of its own."""
        key = prompt if ratio is None else (prompt, ratio)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._kept_by_class(prompt, ratio)
        return found

    def _kept_by_class(self, prompt: int, ratio: float | None) -> tuple[int, ...]:
        if self.tokens.pyramid is None or self.classes[-1].kind in ("capped", "share"):
            return tuple([self._kept(each, prompt, ratio) for each in self.classes])
        first, less = self._pyramid(self._mean_budget(prompt, ratio), prompt)
        layers = self._num_in_pyramid
        whole = [self._kept(each, prompt, ratio) for each in self.classes[:-layers]]
        if not less:
            return (*whole, *[min(prompt, first)] * layers)
        beyond = min(layers, max(0, -((prompt - first) // less)))  # layers with room for all of it
        return (*whole, *[prompt] * beyond, *range(first - beyond * less, first - layers * less, -less))

    @cached_property
    def _num_in_pyramid(self) -> int:
        return sum(each.layer >= 0 for each in self.classes)

    def _kept(self, each: SliceClass, prompt: int, ratio: float | None) -> int:
        if each.kind == "everything":
            return prompt
        if each.kind == "share":
            return -(-each.part * prompt // each.whole)
        return min(prompt, self.cap(each) if each.kind == "capped" else self._budget(each, prompt, ratio))

    def _budget(self, each: SliceClass, prompt: int, ratio: float | None = None) -> int:
        tokens = self.tokens
        if tokens.heads is not None:
            heads = tokens.heads
            return heads.sinks + heads.recent + ceil(heads.recent_ratio * prompt) + heads.merged
        mean = self._mean_budget(prompt, ratio)
        if each.layer >= 0:
            first, less = self._pyramid(mean, prompt)
            return first - each.layer * less
        budget = round(each.factor * mean)
        return max(tokens.granularity, budget // tokens.granularity * tokens.granularity)

    def _mean_budget(self, prompt: int, ratio: float | None) -> int:
        """Of all layers."""
        tokens = self.tokens
        if tokens.curve:
            return _on_curve(tokens.curve, prompt)
        return tokens.budget if tokens.budget is not None else _up(ratio or tokens.mean_ratio, prompt)

    def _pyramid(self, mean: int, prompt: int) -> tuple[int, int]:
        """Tokens of the first layer, and by how many fewer each next one has: PyramidKV's rounding (Cai et al., 2024,
        pyramidkv_utils.py, update_kv)."""
        assert self.tokens.pyramid is not None
        window = min(self.tokens.window, mean)
        base = mean - window
        least = int(base // self.tokens.pyramid)
        most = 2 * base - least
        if most >= prompt - window:
            most = max(prompt - window, base)
            least = 2 * base - most
        layers = self.shape.num_layers - min(self.tokens.whole_layers, self.shape.num_layers)
        return most + window, (most - least) // max(1, layers - 1)

    def cap(self, each: SliceClass) -> int:
        """Of a capped class: tokens that it may hold at a time."""
        return self._budget(each, 1) if each.layer < 0 else self._budget(each, 1 << 40)

    def held(self, prompt: int, context: int, ratio: float | None = None) -> tuple[int, ...]:
        """Tokens, by class, of a request with ``context`` tokens of which ``prompt`` were prefilled."""
        found = []
        grown = context - prompt
        for each, (_, kind), kept, cap in zip(
            self.classes, self.kinds, self.kept(prompt, ratio), self.caps, strict=True
        ):
            if kind == "append":
                found.append(kept + grown)
            elif kind == "everything":
                found.append(context)
            elif kind == "share":
                found.append(-(-each.part * context // each.whole))
            elif kind == "apart":
                found.append(kept + min(context - prompt, self.tokens.generated_budget or 0))
            elif kind == "capped":
                found.append(min(context, cap))
            else:
                found.append(kept)
        return tuple(found)

    def lowered(self, prompt: int, context: int, ratio: float | None = None) -> tuple[int, ...]:
        """Tokens, by class, that are held in fewer bits."""
        if self.low_bits is None:
            return (0,) * len(self.classes)
        return tuple(context - held for held in self.held(prompt, context, ratio))

    @cached_property
    def low_bits(self) -> float | None:
        """Of an element that is not kept at 16 bits, scales included; None where nothing stays of it."""
        low = self.tokens.dropped
        if not isinstance(low, Lowered):
            return None
        return low.bits + (0 if low.group is None else low.metadata_bits / low.group)

    @cached_property
    def low_bytes(self) -> int:
        """Of a token that is held in fewer bits everywhere, whole bytes (rounded up)."""
        return ceil(round(self.shape.bytes_per_token * (self.low_bits or 0) / 16, 3))

    @cached_property
    def beside_bytes(self) -> int:
        """Of a held token, beside its KV: hashes of its keys."""
        if self.tokens.score != "hash":
            return 0
        return ceil(self.shape.num_slices * self.shape.copies * self.tokens.hash_bits / 8)

    @cached_property
    def recalled(self) -> Recalled | None:
        """What of the dropped tokens comes back."""
        return self.tokens.dropped if isinstance(self.tokens.dropped, Recalled) else None

    @cached_property
    def dropping_slices(self) -> int:
        """Slices that do not hold everything."""
        return sum(slices for slices, kind in self.kinds if kind != "everything")

    @cached_property
    def buffer_tokens(self) -> int:
        """Room of each such slice for what is recalled."""
        return 0 if self.recalled is None else ceil(self.recalled.tokens)

    @cached_property
    def state_bytes(self) -> int:
        """Of a request, for all that it dropped."""
        folded = self.tokens.dropped
        if not isinstance(folded, Folded):
            return 0
        numbers = folded.features * (self.shape.head_dim + 1)
        return ceil(2 * self.dropping_slices * numbers * self.shape.copies)

    def below_slices(self, prompt: int, ratio: float | None = None) -> int:
        """Tokens x slices of a prompt that lie in a tier."""
        if self.recalled is None or self.recalled.tier is None:
            return 0
        return prompt * self.shape.num_slices - self._kept_slices(prompt, ratio)

    def low_slices(self, prompt: int, context: int) -> int:
        """Tokens x slices in fewer bits."""
        lowered = self.lowered(prompt, context)
        return sum(each.slices * tokens for each, tokens in zip(self.classes, lowered, strict=True))

    def held_slices(self, prompt: int, context: int) -> int:
        """Tokens x slices, without rounding to pages."""
        held = self.held(prompt, context)
        return sum(each.slices * tokens for each, tokens in zip(self.classes, held, strict=True))

    def peak_slices(self, prompt: int) -> int:
        """The most of :meth:`held_slices` while ``prompt`` tokens are prefilled."""
        return sum(
            slices * tokens
            for slices, tokens in zip(self.prefill_counts, self.prefilling(prompt), strict=True)
        )

    # while a prompt is prefilled there may be one more class: the layer that is computed

    @cached_property
    def prefill_counts(self) -> tuple[int, ...]:
        """Slices of what :meth:`prefilling` gives."""
        counts = tuple(each.slices for each in self.classes)
        return (*counts, self.shape.num_kv_heads) if self.tokens.schedule == "layer" else counts

    def prefilling(self, computed: int, ratio: float | None = None) -> tuple[int, ...]:
        """Tokens, by class, of a prompt of which ``computed`` tokens are computed."""
        tokens, kept = self.tokens, self.kept(computed, ratio)
        if tokens.schedule == "prefill":
            return (computed,) * len(kept)
        if tokens.schedule == "layer":
            return (*kept, computed)
        block = max(tokens.block, tokens.every)
        return tuple(min(computed, each + block) for each in kept)

    @property
    def is_proportional(self) -> bool:
        """Any stretch of a prompt keeps the same share of its tokens in all slices, whatever stands behind it."""
        tokens = self.tokens
        split = (
            tokens.pyramid is not None
            or tokens.layer_shares
            or tokens.whole_layers
            or tokens.heads is not None
        )
        alike = (
            tokens.schedule == "chunk" and tokens.compact and not split and isinstance(tokens.dropped, str)
        )
        return alike and tokens.ratio is not None and not tokens.query_conditioned

    @cached_property
    def is_neutral(self) -> bool:
        """Everything is kept, and nothing is done for it, whatever the prompt."""
        whole = self.tokens.ratio == 1 or (self.tokens.ratios and min(self.tokens.ratios) == 1)
        if whole and self.tokens.generated_budget is None:
            return True
        return all(each.kind == "everything" for each in self.classes)

    @cached_property
    def _slices_kept(self) -> dict[int | tuple[int, float], int]:
        return {}

    def _kept_slices(self, prompt: int, ratio: float | None = None) -> int:
        """Tokens x slices that stay of a prompt."""
        key = prompt if ratio is None else (prompt, ratio)
        found = self._slices_kept.get(key)
        if found is None:
            found = sum(map(mul, self._counts, self.kept(prompt, ratio)))
            self._slices_kept[key] = found
        return found

    @cached_property
    def _counts(self) -> tuple[int, ...]:
        """Slices of each class."""
        return tuple(each.slices for each in self.classes)

    def _mean_kept(self, prompt: int, ratio: float | None = None) -> int:
        return max(1, round(self._kept_slices(prompt, ratio) / self.shape.num_slices))


def _on_curve(points: Sequence[tuple[int, int]], prompt: int) -> int:
    """The value at ``prompt``, rounded up."""
    for (low, least), (high, most) in pairwise(points):
        if low < prompt < high:
            return least - (low - prompt) * (most - least) // (high - low)
    return (
        points[0][1]
        if prompt <= points[0][0]
        else next(stay for at, stay in reversed(points) if at <= prompt)
    )


def _drawn(seed: int, index: int) -> float:
    """Uniform in [0, 1), the same whenever ``index`` is asked for."""
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * GOLDEN) & MASK
    return (finalised(z) >> 11) / (1 << 53)


def _up(ratio: float, tokens: int) -> int:
    return ceil(round(ratio * tokens, 6))
