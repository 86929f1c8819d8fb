"""The contract of a cache manager: it owns choices and bytes, never the clock.

*Look* methods change nothing. *Change* methods either succeed or change nothing. The replica calls, for each
request: match, admit, grow (a chunk at a time), prefilled, then commit with every decode step, and at last release;
preempt sends it back to the start. Three owners of time and no others: the cost model prices kernels, links
decide when a transfer ends, the replica joins them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kvsim.cache.eviction import EvictionSpec, Setting
from kvsim.cache.node import Changed
from kvsim.cache.parts.codec import PackedKv
from kvsim.cache.parts.reads import ReadSelector
from kvsim.cache.parts.tokens import TokenPolicy
from kvsim.cache.swap_space import SwapCounts as SwapCounts  # for those who import it from here
from kvsim.cache.swap_space import SwapSetting
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel, Ramp
from kvsim.entities import Batch, Request

API_VERSION = 1
ABOUT_STEPS = ("decode_steps", "decode_work", "new_blocks", "commit", "prefilled", "release")


@dataclass(slots=True, eq=False)
class Transfer:
    """Bulk movement between tiers; the link decides when it ends.

    mode: ``before`` = the request is not schedulable until it has ended; ``layerwise`` = the step that holds the
    request joins it layer by layer; ``behind`` = nobody waits.
    """

    src: str
    dst: str
    num_bytes: int
    num_extents: int  # contiguous pieces: each costs the link one operation
    mode: Literal["before", "layerwise", "behind"]
    request: Request | None = None
    payload: Any = None  # the manager's own
    num_layers: int = 0  # the last so many layers are moved; 0 = all
    start_ns: int = -1  # set by the links
    first_layer_ns: int = -1
    end_ns: int = -1


@dataclass(slots=True)
class Plan:
    """Answer to one prompt: what is reused from where, and what is left to compute.

    ``compute_tokens`` >= 1 go through the model (the last token always does). cached + approximate + compute is the
    prompt: a token of a reused chunk that is recomputed counts as computed, though its KV may be loaded too.
    """

    compute_tokens: int
    cached_tokens: int = 0  # exact reuse, all tiers together
    approximate_tokens: int = 0  # reuse that is not exact; never mixed with the above
    hits_by_tier: tuple[int, ...] = ()  # tokens by tier, HBM first
    transfers: tuple[Transfer, ...] = ()  # loads that admission starts
    detail: Any = None  # the manager's own
    delayed: bool = False  # a load for another request brings some of it: ask again when that is known


class Services:
    """What a manager may ask the replica. All are looks."""

    __slots__ = ()

    def now_ns(self) -> int:
        """The simulated clock, for what ages."""
        raise NotImplementedError

    def load_ns(self, src: str, num_bytes: int, num_extents: int, queued: bool = True) -> int:
        """Nanoseconds from now until such a load would have ended; without ``queued`` as if the links were idle."""
        raise NotImplementedError

    def prefill_ns(self, tokens: int, past: int) -> int:
        """Device time of computing ``tokens`` prompt tokens over ``past`` cached ones."""
        raise NotImplementedError

    def spared_tokens(self, read_again: int, shared_tokens: int) -> int:
        """How many of ``read_again`` tokens, see :attr:`CacheManager.shared_reads`, cost nothing in a decode step."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """What every manager is built from. Bytes are of all GPUs of the replica together."""

    capacity_bytes: int  # HBM for KV
    bytes_per_token: int
    block_tokens: int
    max_model_len: int
    num_layers: int
    tensor_parallel: int = 1  # GPUs that each hold a part of every token
    reserved_blocks: int = 1  # never usable (vLLM's null block)
    eviction: EvictionSpec = "lru"
    balance_tokens: float = float("inf")  # context at which attention costs as much as the matrix products
    load_policy: str = "always"  # always | if_faster
    tiers: tuple[Any, ...] = ()  # TierConfig of kvsim.cache.tiers, nearest first
    shared: dict[str, Any] | None = (
        None  # what the managers of a run have in common, by tier: a cluster's store
    )
    store_answers: bool = False  # tiers get prompts only (vLLM's default), or what was generated as well
    names_content: bool = True  # some prompt or answer says what it contains; else nothing can be shared
    codec: PackedKv | None = None  # how KV is held (kvsim.cache.parts); None = at 16 bits
    tokens: TokenPolicy | None = None  # which tokens are held; None = all
    reads: ReadSelector | None = None  # which tokens a decode step reads; None = all that are held
    beside_bytes: int = 0  # of a block, beside its KV: an index
    options: Mapping[str, Any] | None = None
    state_bytes: int = 0  # of the recurrent layers of one sequence; 0 = the model has none
    heads_per_kv_head: int = 1
    prompt_token_bytes: int = 0  # activations of a prompt token where a step takes whole batches of prompts
    prompt_bytes_aside: int = 0  # activations for which capacity_bytes leaves room
    swap: SwapSetting | None = None  # preempted requests go to a tier; None = they are computed again

    @property
    def held_bytes_per_token(self) -> int:
        """Of a token that is held, in the form in which it is."""
        return self.bytes_per_token if self.codec is None else self.codec.token_bytes

    @property
    def num_blocks(self) -> int:
        """Usable blocks in HBM."""
        return self.capacity_bytes // self.block_bytes - self.reserved_blocks

    @property
    def block_bytes(self) -> int:
        """Of a block in HBM."""
        return self.bytes_per_token * self.block_tokens + self.beside_bytes

    @property
    def only_counts(self) -> bool:
        """Nothing can be shared, and what is let go first is evicted first: there is no need for a tree."""
        return not self.names_content and self.eviction in ("lru", {"policy": "lru"}) and not self.tiers

    def eviction_setting(self, capacity_blocks: int, now_ns: Callable[[], int]) -> Setting:
        """What the eviction policy of a tier of so many blocks may know."""
        return Setting(capacity_blocks, self.block_tokens, self.balance_tokens, now_ns)


class CacheManager(ABC):
    """See the module's text. ``services`` is set by the replica before the first call.

    ``block_tokens``: the batch counts block boundaries for this size. ``uses_tiers``: KV goes to the tiers below HBM,
    and :attr:`used_bytes` has an entry for each. ``batching``: how an engine may serve what it holds; a static batch pads its
    requests to the longest. ``needs_kinds``: requests come with the kinds of their segments.
    ``prefetches``: :meth:`prefetch` is called for every request. ``needs_future``: :meth:`set_future` is called before
    the run. ``steady_work``: what decode_steps and decode_work have said of a batch stays true when prefilled, release
    and arrived are called in the middle of those steps; a run of steps then goes on through them. A subclass that
    overrides one of these four methods, or commit, has to say so again. ``parts``: those of :mod:`kvsim.cache.parts` that
    may be laid over it ("codec", "tokens" or only "proportional tokens", "reads", "offload"), ``hands_over``: a prompt's KV
    can be computed on one replica and received on another, all of it and as it is; ``steps_at_once``: :meth:`step` is there. A
    subclass says these three for itself.
    ``swaps``: :meth:`swap_out` and what belongs to it are there, and the engine calls them; of ``parts`` "swap" says
    that they can be. ``in_one_piece``: the KV of a request has one range of addresses. ``watches_decodes``: begin_decode and
    end_decode are called on every GPU, not only where an engine spares reads; ``reads_alone``: there neither, as no two requests
    read the same KV. ``takes_options``: it reads ``config.options`` and refuses those that it does not know; else any is refused
    for it.
    """

    services: Services
    block_tokens: int = 1
    uses_tiers: bool = False
    needs_kinds: bool = False
    prefetches: bool = False
    needs_future: bool = False
    steady_work: bool = False
    steps_at_once: bool = False
    batching: frozenset[str] = frozenset({"continuous"})
    parts: frozenset[str] = frozenset()
    watches_decodes: bool = False
    reads_alone: bool = False
    takes_options: bool = False
    hands_over: bool = False
    in_one_piece: bool = False
    swaps: bool = False
    swap_counts: SwapCounts  # of one that swaps

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        own = vars(cls)
        if "steady_work" not in own and not own.keys().isdisjoint(ABOUT_STEPS):
            cls.steady_work = False
        if "parts" not in own:
            cls.parts = frozenset()
        if "hands_over" not in own:
            cls.hands_over = False
        if "steps_at_once" not in own:
            cls.steps_at_once = False

    @abstractmethod
    def match(self, request: Request) -> Plan:
        """Look. What can be reused for ``request.prompt_tokens`` tokens now."""

    def asked(self, request: Request) -> None:  # noqa: B027
        """Change, before :meth:`match`: ``request`` is next, whether it is admitted or not. What tiers hold of it is used."""

    @abstractmethod
    def admit(self, request: Request, plan: Plan) -> bool:
        """Change. Pin what the plan attaches and take room for what it loads; False if the whole prompt has no room."""

    @abstractmethod
    def grow(self, request: Request, tokens: int) -> bool:
        """Change. Room for the next ``tokens`` computed prompt tokens; they are reusable from now on."""

    @abstractmethod
    def prefilled(self, request: Request) -> tuple[Transfer, ...]:
        """Change, when the step with the last prompt token has ended: compact, index, write behind."""

    @abstractmethod
    def decode_steps(self, batch: Batch, steps: int) -> int:
        """Look. Largest j <= ``steps`` decode steps without a shortage; 0 = someone must be preempted."""

    @abstractmethod
    def commit(self, batch: Batch, steps: int) -> None:
        """Change. ``steps`` decode steps of ``batch`` are scheduled; called before the batch advances."""

    @abstractmethod
    def preempt(self, request: Request, context: int) -> None:
        """Change. Drop the KV of a running request with ``context`` tokens; it will be computed again."""

    @abstractmethod
    def release(self, request: Request, context: int) -> tuple[Transfer, ...]:
        """Change. The request is finished with ``context`` tokens of KV; what stays becomes evictable."""

    @abstractmethod
    def check_integrity(self) -> None:
        """Raise AssertionError unless free + held + cached == capacity in every tier."""

    @property
    @abstractmethod
    def held_bytes(self) -> int:
        """HBM that running requests hold."""

    @property
    @abstractmethod
    def used_bytes(self) -> tuple[int, ...]:
        """Bytes held or cached, by tier, HBM first."""

    @abstractmethod
    def fits(self, request: Request) -> bool:
        """Look. False if the request could never run, however empty the cache."""

    # ---- what most managers leave as it is

    def to_compute(self, request: Request) -> int:
        """Look. The ``compute_tokens`` of what :meth:`match` would say."""
        return self.match(request).compute_tokens

    def can_resume(self, request: Request) -> bool:
        """Look. Room for the prompt tokens that an admitted request, whose load has ended, does not hold yet."""
        return True

    def step(self, batch: Batch, request: Request, tokens: int) -> bool:
        """Change. :meth:`commit` of one decode step and :meth:`grow` of ``tokens``; False = there is no room for both, and
        nothing has changed. :meth:`decode_steps` is not asked before; ``batch`` and ``request`` are as before the step."""
        raise NotImplementedError

    def outgrown(self, batch: Batch) -> Request | None:
        """Look, when decode_steps has said 0: the request that must be preempted; None = whoever the queue's order names."""
        return None

    def arrived(self, transfer: Transfer) -> tuple[Transfer, ...]:
        """Change. The link ended it: unpin, free, make it visible. May start further transfers. Of loads that a request waits
        for the engine tells when it knows (``load_decisions``), of all of them at once."""
        return ()

    def reserve(self, request: Request, tokens: int) -> bool:
        """Change, after admit: room for ``tokens`` prompt tokens that another replica computes, reusable when received."""
        return self.grow(request, tokens)

    def received(self, request: Request) -> None:  # noqa: B027
        """Change. The KV for which :meth:`reserve` took room is there."""

    def has_room(self, request: Request) -> bool:
        """Look, before others are preempted for ``request``, which waits: it has room. True where the manager cannot say."""
        return True

    def swap_out(self, request: Request, context: int) -> tuple[Transfer, ...] | None:
        """Change, in place of preempt: the KV of a decoding request with ``context`` tokens goes to a tier, and its blocks can be
        taken; None, and nothing changes: the tier is full."""
        raise NotImplementedError(f"{type(self).__name__} does not swap")

    def swap_in(self, request: Request) -> tuple[Transfer, ...] | None:
        """Change. Room for a request that was swapped out, and what brings its KV back; None: there is no room yet."""
        raise NotImplementedError(f"{type(self).__name__} does not swap")

    def forget(self, request: Request) -> None:
        """Change. A request that is swapped out never comes back."""
        raise NotImplementedError(f"{type(self).__name__} does not swap")

    def copied_ns(self, batch: Batch | None) -> int:
        """Look. When the blocks that are taken (and those that the next step of ``batch`` takes) have been copied, if swaps
        overlap steps; 0 = they have been."""
        raise NotImplementedError(f"{type(self).__name__} does not swap")

    def prefetch(self, request: Request) -> tuple[Transfer, ...]:
        """Change, when a request has reached the replica: what brings its KV nearer while it waits.

        Each transfer names the request, which cannot be admitted until all of them have ended.
        """
        return ()

    def prefill_work(self, request: Request, start: int, tokens: int) -> tuple[Kernel | Formed, ...]:
        """Look. Attention (and the method's kernels) of computed tokens ``start`` .. ``start + tokens``.

        Kernels that are the same from step to step but for one size may come as a form (:mod:`kvsim.cost.form`), here and of
        decodes: it is priced and counted fastest.
        """
        return (Kernel("prefill_attention", {"new": tokens, "past": request.cached + start}),)

    def decode_work(self, batch: Batch, steps: int) -> tuple[Kernel | Formed, ...]:
        """Look. Kernels of the next ``steps`` decode steps, as columns.

        SHIFT LAW: rows j.. of decode_work(b, k) equal decode_work(b, k - j) after commit(b, j) and ``b.round += j``:
        the same kernels in the same order, and each column's rows. A single step should come as plain numbers
        (an int, not an array of one): the cost model prices those fastest. What a method reads is mostly a sum over
        contexts: ``batch.capped`` and ``batch.pages`` (:mod:`kvsim.contexts`) give such columns without a loop.
        """
        num = len(batch)
        first = batch.sum_context + num  # each request reads its past and its new token
        again, shared = self.shared_reads
        if again:
            first -= self.services.spared_tokens(again, shared)
        read = Ramp(first, num) if steps > 1 else first
        return (Kernel("decode_attention", {"num_seqs": num, "sum_context": read}),)

    @property
    def shared_reads(self) -> tuple[int, int]:
        """Tokens of KV that several of the decodes of a step read: (counted for each decode but the first, different ones).
        (0, 0) where nobody has told of decodes (:meth:`begin_decode`): on GPUs where it would change nothing."""
        return 0, 0

    def begin_decode(self, request: Request) -> None:  # noqa: B027
        """Change. ``request`` is among the decodes from the next step on."""

    def end_decode(self, request: Request) -> None:  # noqa: B027
        """Change. It no longer is; it still holds its blocks."""

    def watch_prefixes(self, changed: Callable[[str], Changed]) -> bool:
        """Change. From now on tell ``changed(tier)`` what prefixes can be found in each tier, those that already can included.

        True = that is all that :meth:`match` can find for the prompt of another request. False: this manager does not tell.
        """
        return False

    def set_future(self, future: Any) -> None:
        """Change. The trace is known in full (:class:`kvsim.cache.future.Future`)."""
        raise NotImplementedError(f"{type(self).__name__} asks for the future and has no use for it")

    def saved(self, name: Callable[[int], str]) -> dict[str, list[Any]] | None:
        """Look. What is cached, by tier (:mod:`kvsim.cache.saved`), with content ids named; None = nothing can be saved."""
        return None

    def restore(self, saved: Mapping[str, list[Any]], ident: Callable[[str], int]) -> dict[str, int]:
        """Change, before the run. Begin with what another run's manager has saved; tokens that found room, by tier."""
        raise NotImplementedError(f"{type(self).__name__} cannot start warm")

    def evicted_tokens(self) -> tuple[int, ...]:
        """Tokens dropped so far, by tier, HBM first."""
        return (0,)
