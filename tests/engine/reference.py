"""A naive engine: one step at a time, one block at a time, every token named. Written apart from the simulator.

It follows vLLM V1 (scheduler, block pool with free queue and hash table, two steps in flight) as plainly as can be,
and is what fused runs and run-length trees are compared with.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Job:
    index: int
    arrival: int
    prompt: list[object]  # one object per token
    output: list[object]
    computed: int = 0  # tokens with KV, scheduled ones included
    sampled: int = 0  # output tokens scheduled
    prefilling: bool = True  # its prompt (or what it recomputes) is not scheduled to the end
    told: int = 0  # output tokens taken
    blocks: list[int] = field(default_factory=list)
    cached: int | None = None
    first_token: int | None = None
    finish: int | None = None
    preemptions: int = 0
    last_step: int = 0  # number of the step that holds it last

    def known(self) -> list[object]:
        return self.prompt + self.output[: self.sampled]


@dataclass
class Settings:
    num_blocks: int  # usable
    block: int
    max_seqs: int
    budget: int
    deep: bool
    launch: int
    cpu: int
    cpu_request: int
    cpu_sequence: int
    graph_tokens: int
    piecewise: int
    eager: int
    tail: int
    reuse: bool
    late: bool  # loads from below HBM: blocks that a step in flight may write are not freed before it is through


class BlockPool:
    def __init__(self, num_blocks: int) -> None:
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.refs = [0] * num_blocks
        self.hash_of: list[object] = [None] * num_blocks
        self.by_hash: dict[object, OrderedDict[int, None]] = {}

    def allocate(self, count: int) -> list[int]:
        taken = []
        for _ in range(count):
            block, _ = self.free.popitem(last=False)
            if self.hash_of[block] is not None:
                del self.by_hash[self.hash_of[block]][block]
                self.hash_of[block] = None
            self.refs[block] = 1
            taken.append(block)
        return taken

    def find(self, content: object) -> int | None:
        return next(iter(self.by_hash.get(content, ())), None)

    def touch(self, block: int) -> None:
        if self.refs[block] == 0:
            del self.free[block]
        self.refs[block] += 1

    def name(self, block: int, content: object) -> None:
        if self.hash_of[block] is None:
            self.hash_of[block] = content
            self.by_hash.setdefault(content, OrderedDict())[block] = None

    def give_back(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.free[block] = None
                if self.hash_of[block] is None:
                    self.free.move_to_end(block, last=False)


def contents(tokens: list[object], block: int) -> list[object]:
    """A name for each full block: all tokens up to its end."""
    names: list[object] = []
    before: object = None
    for i in range(len(tokens) // block):
        before = hash((before, tuple(tokens[i * block : (i + 1) * block])))
        names.append(before)
    return names


def simulate(jobs: list[Job], settings: Settings, price) -> list[Job]:  # type: ignore[no-untyped-def]
    """``price(contexts of decodes, [(new, past) of prefills])`` -> nanoseconds. Fills first_token, finish, cached."""
    s, size = settings, settings.block
    pool = BlockPool(s.num_blocks)
    waiting: deque[Job] = deque()
    running: list[Job] = []
    pending = sorted(jobs, key=lambda job: job.arrival)
    in_flight: deque[tuple[int, list[Job]]] = deque()  # (device end, jobs that get a token)
    device_end, at = 0, 0
    launched = taken = 0  # steps
    unfreed: deque[tuple[int, list[int]]] = deque()  # (the last step that may write them, blocks)
    depth = 2 if s.deep else 1

    def need(job: Job, tokens: int) -> int:
        return -(-tokens // size) - len(job.blocks)

    def name_blocks(job: Job, tokens: int) -> None:
        if s.reuse:
            for block, content in zip(job.blocks, contents(job.known()[:tokens], size), strict=False):
                pool.name(block, content)

    def drop(job: Job) -> None:
        if s.late and s.deep and job.last_step > taken:
            unfreed.append((launched, job.blocks))
        else:
            pool.give_back(job.blocks)
        job.blocks = []

    def take_output(step: tuple[int, list[Job]]) -> None:
        nonlocal taken
        taken += 1
        while unfreed and unfreed[0][0] <= taken:
            pool.give_back(unfreed.popleft()[1])
        for job in step[1]:
            if job.first_token is None:
                job.first_token = at
            job.told += 1
            if job.told == len(job.output):
                job.finish = at
                if job in running:
                    running.remove(job)
                    name_blocks(job, len(job.prompt) + len(job.output) - 1)
                    drop(job)

    while pending or waiting or running or in_flight:
        if not in_flight and not waiting and not running:
            at = max(at, pending[0].arrival)
        # ---- the boundary: arrivals up to now are seen
        while pending and pending[0].arrival <= at:
            waiting.append(pending.pop(0))
        # ---- schedule one step
        budget = s.budget
        decodes: list[int] = []
        prefills: list[tuple[int, int]] = []
        members: list[Job] = []
        tokens_out: list[Job] = []
        preempted = started = 0
        i = 0
        while i < len(running) and budget > 0:
            job = running[i]
            total = len(job.prompt) + job.sampled  # all of it must be computed to sample the next token
            if job.sampled == len(job.output):
                i += 1
                continue  # its last step is in flight
            new = min(total - job.computed, budget)
            while need(job, job.computed + new) > len(pool.free):
                victim = running.pop()
                name_blocks(victim, victim.computed)
                drop(victim)
                preempted += 1
                if victim.sampled < len(victim.output):
                    victim.computed = 0
                    victim.preemptions += 1
                    waiting.appendleft(victim)
                if victim is job:
                    break
            if job not in running:
                break
            is_prefill = job.prefilling
            job.blocks += pool.allocate(max(0, need(job, job.computed + new)))
            if is_prefill:
                prefills.append((new, job.computed))
            else:
                decodes.append(job.computed)
            job.computed += new
            members.append(job)
            if is_prefill:
                name_blocks(job, job.computed)
            budget -= new
            if job.computed == total:
                job.sampled += 1
                job.prefilling = False
                tokens_out.append(job)
            i += 1
        while not preempted and waiting and budget > 0 and len(running) < s.max_seqs:
            job = waiting[0]
            known = job.known()
            hits = []
            if s.reuse:
                for content in contents(known[: (len(known) - 1) // size * size], size):
                    block = pool.find(content)
                    if block is None:
                        break
                    hits.append(block)
            evictable = sum(pool.refs[block] == 0 for block in hits)
            if -(-len(known) // size) - len(hits) > len(pool.free) - evictable:
                break
            waiting.popleft()
            for block in hits:
                pool.touch(block)
            job.blocks = list(hits)
            if job.cached is None:
                job.cached = len(hits) * size
            job.computed = len(hits) * size
            new = min(len(known) - job.computed, budget)
            job.blocks += pool.allocate(need(job, job.computed + new))
            prefills.append((new, job.computed))
            job.computed += new
            members.append(job)
            name_blocks(job, job.computed)
            budget -= new
            started += 1
            running.append(job)
            job.prefilling = job.computed < len(known)
            if not job.prefilling:
                job.sampled += 1
                tokens_out.append(job)
        # ---- launch it
        tokens = s.budget - budget
        if tokens:
            outputs = (len(decodes) + len(prefills)) * s.cpu_sequence
            cpu = (
                started * s.cpu_request
                + outputs
                + (s.cpu if not prefills else s.eager if tokens > s.graph_tokens else s.piecewise)
            )
            free = at + cpu
            device_end = max(
                max(device_end, at + s.launch) + price(decodes, prefills), free + s.tail + outputs
            )
            in_flight.append((device_end, tokens_out))
            launched += 1
            for job in members:
                job.last_step = launched
        elif not in_flight:
            if not pending:
                break
            at = max(at, pending[0].arrival)
            continue
        else:
            free = at
        # ---- the next boundary: the queue is full, or everything is launched
        if len(in_flight) == depth or not tokens:
            step = in_flight.popleft()
            at = max(step[0], free)
            # what arrives before the output is taken is seen by the decision after it
            take_output(step)
        else:
            at = max(at, free)
    return jobs
