"""Eviction policies for equal-sized entries, written from their papers as plainly as can be, apart from kvsim.

``hits(policy, keys, capacity)``: lists are searched from end to end, nothing is clever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence


def hits(policy: str, keys: Sequence[int], capacity: int) -> int:
    if policy in RANKS:
        return _ranked(RANKS[policy], keys, capacity)
    return {"sieve": _sieve, "s3fifo": _s3fifo, "arc": _arc, "gdsf": _gdsf}[policy](keys, capacity)


def _next(keys: Sequence[int], now: int, key: int) -> int:
    return next((later for later in range(now + 1, len(keys)) if keys[later] == key), 10**9)


# smallest goes; of an entry: (arrived, last used, uses, next use)
RANKS: dict[str, Callable[[tuple[int, int, int, int]], tuple[int, ...]]] = {
    "fifo": lambda e: (e[0],),
    "lru": lambda e: (e[1],),
    "lfu": lambda e: (e[2], e[1]),
    "belady": lambda e: (-e[3], e[1]),
}


def _ranked(rank: Callable, keys: Sequence[int], capacity: int) -> int:  # type: ignore[type-arg]
    cache: dict[int, tuple[int, int, int, int]] = {}
    found = 0
    for now, key in enumerate(keys):
        later = _next(keys, now, key)
        if key in cache:
            found += 1
            arrived, _, uses, _ = cache[key]
            cache[key] = (arrived, now, uses + 1, later)
            continue
        if len(cache) == capacity:
            del cache[min(cache, key=lambda one: rank(cache[one]))]
        cache[key] = (now, now, 1, later)
    return found


def _sieve(keys: Sequence[int], capacity: int) -> int:
    queue: list[int] = []  # the oldest first
    visited: dict[int, bool] = {}
    hand, found = 0, 0
    for key in keys:
        if key in visited:
            visited[key] = True
            found += 1
            continue
        if len(queue) == capacity:
            hand = 0 if hand >= len(queue) else hand
            while visited[queue[hand]]:
                visited[queue[hand]] = False
                hand = (hand + 1) % len(queue)
            at_head = hand == len(queue) - 1
            del visited[queue.pop(hand)]
            hand = 0 if at_head else hand
        queue.append(key)
        visited[key] = False
    return found


def _s3fifo(keys: Sequence[int], capacity: int) -> int:
    small: list[int] = []
    main: list[int] = []
    ghost: list[int] = []
    uses: dict[int, int] = {}
    small_size, ghost_size = int(capacity * 0.1), int(capacity * 0.9)
    has_evicted = False
    found = 0

    def evict_small() -> bool:
        while small:
            key = small.pop(0)
            if uses[key] >= 2:
                uses[key] = 0
                main.append(key)
            else:
                del uses[key]
                ghost.append(key)
                del ghost[: max(0, len(ghost) - ghost_size)]
                return True
        return False

    def evict_main() -> bool:
        while True:
            key = main.pop(0)
            if uses[key] == 0:
                del uses[key]
                return True
            uses[key] = min(uses[key], 3) - 1
            main.append(key)

    for key in keys:
        if key in uses:
            uses[key] += 1
            found += 1
            continue
        remembered = key in ghost
        if remembered:
            ghost.remove(key)
        while len(small) + len(main) >= capacity:
            has_evicted = True
            if evict_main() if len(main) > capacity - small_size or not small else evict_small():
                break
        early = not has_evicted and len(small) >= small_size
        (main if remembered or early else small).append(key)
        uses[key] = 0
    return found


def _arc(keys: Sequence[int], capacity: int) -> int:
    t1: list[int] = []
    t2: list[int] = []
    b1: list[int] = []
    b2: list[int] = []
    p = 0.0
    found = 0

    def replace(in_b2: bool) -> None:
        if t1 and (len(t1) > p or (in_b2 and len(t1) == p)):
            b1.append(t1.pop(0))
        else:
            b2.append(t2.pop(0))

    for key in keys:
        if key in t1 or key in t2:
            found += 1
            (t1 if key in t1 else t2).remove(key)
            t2.append(key)
        elif key in b1:
            p = min(capacity, p + max(1, len(b2) / len(b1)))
            replace(False)
            b1.remove(key)
            t2.append(key)
        elif key in b2:
            p = max(0, p - max(1, len(b1) / len(b2)))
            replace(True)
            b2.remove(key)
            t2.append(key)
        else:
            if len(t1) + len(b1) == capacity:
                if len(t1) < capacity:
                    b1.pop(0)
                    replace(False)
                else:
                    t1.pop(0)
            elif len(t1) + len(t2) + len(b1) + len(b2) >= capacity:
                if len(t1) + len(t2) + len(b1) + len(b2) == 2 * capacity:
                    b2.pop(0)
                replace(False)
            t1.append(key)
    return found


def _gdsf(keys: Sequence[int], capacity: int) -> int:
    cache: dict[int, tuple[float, int, int]] = {}  # priority, last use, uses
    clock, found = 0.0, 0
    for now, key in enumerate(keys):
        uses = 1
        if key in cache:
            found += 1
            uses = cache[key][2] + 1
        elif len(cache) == capacity:
            victim = min(cache, key=lambda one: cache[one])
            clock = cache.pop(victim)[0]
        cache[key] = (clock + uses, now, uses)
    return found
