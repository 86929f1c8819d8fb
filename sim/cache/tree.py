"""Prefix tree over runs of blocks (:mod:`kvsim.cache.node`): one per tier. Semantics of vLLM's block-by-block hash table
and free queue.

Two prompts share block b exactly when they agree on their first 16 (b + 1) tokens. A node is split where a later
prompt leaves it, or where a request takes only its first part. A request pins its path to the root; blocks that
nobody pins are evictable, tail first. When two requests have computed the same content, the first copy is the
node's own and serves hits, the second is a :class:`Copy` that only its maker holds; it takes over when the first
is evicted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Hashable

from kvsim.cache.eviction import QueuesPolicy
from kvsim.cache.eviction.queue import EvictionQueue
from kvsim.cache.node import Blocks, Changed, Copy, Evictable, Node, shared_tokens


class PrefixTree(Blocks):
    """Cached and held runs of one tier. Counts blocks only; who pays for them is the manager's business."""

    continued_can_go = False  # a run may be evicted before those that continue it

    def __init__(self, block_tokens: int, policy: QueuesPolicy) -> None:
        self.block_tokens = block_tokens
        self.policy = policy
        self.root = Node(None, [], [], 0, 0, 0)
        self.root.ref = 1
        self.num_blocks = 0  # of all copies of all nodes
        self.blocks_read_again = 0  # in one step by more than one decode: without the first time
        self.blocks_shared = 0  # those that more than one decode reads
        self.num_evictable = 0  # of those, the ones that nobody pins
        self.num_evicted = 0
        self.num_copies = 0  # :class:`Copy` objects; zero nearly always
        self._queue = EvictionQueue(policy, self.continued_can_go)
        self._clock = 0
        self.changed: Changed | None = None  # hears of content that comes and goes

    # ---- look

    def match(self, ids: list[int], ends: list[int], limit: int) -> tuple[Node, int]:
        """Deepest node that holds leading blocks of a prompt, and how many blocks lead there, at most ``limit``."""
        size = self.block_tokens
        node, blocks = self.root, 0
        while blocks < limit and node.children:
            first, stop = bisect_right(ends, blocks * size), (blocks + 1) * size
            key = (ids[first], stop) if ends[first] >= stop else self._block_key(ids, ends, first, blocks)
            child = node.children.get(key)
            if child is None:
                break
            end = child.end
            most = (end if end < limit else limit) * size
            node, blocks = child, shared_tokens(child, ids, ends, first, most) // size
            if blocks < end or child.live:
                break
        return node, blocks

    def _reach(self, child: Node, ids: list[int], ends: list[int], first: int, limit: int) -> int:
        size = self.block_tokens
        return shared_tokens(child, ids, ends, first, min(child.end, limit) * size) // size

    def evictable_on_path(self, node: Node, blocks: int) -> int:
        """Evictable ones among the first ``blocks`` blocks of the path to ``node``: pinning it would take them away."""
        count = 0
        step: Node | None = node
        while step is not None and (step.ref == 0 or self.num_copies):
            if step.ref == 0:
                count += min(step.end, blocks) - step.start
            step = step.parent
        return count

    # ---- change

    def acquire(self, node: Node, blocks: int, is_use: bool = True) -> Node:
        """Pin the path to ``node`` up to ``blocks`` blocks; the last pinned node is returned (split if need be).

        ``is_use``: a request does; a copy to another tier is no use that a policy should count.
        """
        if blocks < node.end or node.live:
            node = self._split(node, blocks)
        step: Node | None = node
        while step is not None:
            if step.ref == 0 and not step.hole:
                self.num_evictable -= step.end - step.start
            step.ref += 1
            step.uses += is_use
            step = step.parent
        return node

    def _split(self, node: Node, at: int) -> Node:
        """Cut ``node`` at block ``at``; the upper part is new, the lower part stays the object it was."""
        upper = Node(node.parent, node.ids, node.ends, node.first, node.start, at)
        upper.key, upper.ref, upper.freed, upper.uses = node.key, node.ref, node.freed, node.uses
        upper.readers = node.readers
        upper.state, upper.ready, upper.hole = node.state, node.ready, node.hole
        assert node.parent is not None and node.key is not None
        node.parent.add_child(node.key, upper)
        node.parent, node.start, node.key = upper, at, None
        node.first = bisect_right(node.ends, at * self.block_tokens)
        for copy in node.copies:
            twin = Copy(upper, copy.holder, copy.freed, copy.uses)
            twin.state = copy.state
            upper.copies += (twin,)
            self.num_copies += 1
            if copy.holder is None:
                self._push(twin)
                self._push(copy)
        if node.end > at:
            self._link(node)
            if node.ref == 0 and not node.hole:
                self._push(node)  # again: it now lies deeper than its old entry says
        if upper.ref == 0 and not upper.hole:
            self._push(upper)
        return upper

    def _link(self, node: Node) -> None:
        """Make a node's first block findable below its parent, where nothing equal stands."""
        assert node.parent is not None
        node.key = self._block_key(node.ids, node.ends, node.first, node.start)
        assert node.key not in node.parent.children, "two nodes with one content"
        node.parent.add_child(node.key, node)

    def append(self, parent: Node, ids: list[int], ends: list[int], start: int, end: int) -> Node:
        """A new pinned leaf below a pinned ``parent``, with blocks ``start`` .. ``end`` (may be empty as yet)."""
        node = Node(parent, ids, ends, bisect_right(ends, start * self.block_tokens), start, start)
        node.ref, node.uses, node.live = 1, 1, True
        if self._queue.inserted is not None and (start + 1) * self.block_tokens <= ends[-1]:
            self._queue.inserted(node, self._place(node, start))
        self.extend(node, end)
        return node

    def extend(self, leaf: Node, end: int) -> None:
        """A pinned leaf now has full blocks up to ``end``. Where another copy stands already, it moves below that."""
        if end <= leaf.end:
            return
        self.num_blocks += end - leaf.end
        if self.changed is not None:
            self.changed(leaf.ids, leaf.ends, leaf.end, end, True)
        while leaf.key is None and leaf.start < end:
            parent = leaf.parent
            assert parent is not None
            other = parent.children.get(self._block_key(leaf.ids, leaf.ends, leaf.first, leaf.start))
            if other is None:
                leaf.end = end
                self._link(leaf)
                return
            reach = self._reach(other, leaf.ids, leaf.ends, leaf.first, end)
            if reach < other.end or other.live:
                other = self._split(other, reach)
            other.copies += (Copy(other, leaf, 0, 1),)
            self.num_copies += 1
            leaf.parent, leaf.start, leaf.end = other, reach, reach
            leaf.first = bisect_right(leaf.ends, reach * self.block_tokens)
        leaf.end = end

    def release(self, leaf: Node) -> None:
        """Unpin the path to ``leaf``; what nobody pins any more becomes evictable, the tail first."""
        self._clock += 1
        step = leaf
        while step.parent is not None:
            parent = step.parent
            if not (step.copies and self._release_copy(step, leaf)):
                step.ref -= 1
                if step.ref == 0:
                    step.freed = self._clock
                    if step.end == step.start or (step.hole and not step.children):
                        self._unlink(step)
                    elif not step.hole:
                        self.num_evictable += step.end - step.start
                        self._push(step)
            step = parent
        self.root.ref -= 1

    def read(self, leaf: Node, readers: int) -> None:
        """Change. A decode reads the path to its ``leaf`` from now on (+1), or no longer (-1)."""
        step = leaf
        while step.parent is not None:
            if not step.copies or not any(copy.holder is leaf for copy in step.copies):
                before = step.readers
                step.readers = after = before + readers
                if before > 1 or after > 1:  # with another one
                    blocks = readers * (step.end - step.start)
                    self.blocks_read_again += blocks
                    if before == 1 or after == 1:
                        self.blocks_shared += blocks
            step = step.parent

    def _release_copy(self, node: Node, leaf: Node) -> bool:
        """Let go of the copy that the request of ``leaf`` holds in place of the node's own, if it does."""
        for copy in node.copies:
            if copy.holder is leaf:
                copy.holder, copy.freed = None, self._clock
                self.num_evictable += node.num_blocks
                self._push(copy)
                return True
        return False

    def _push(self, item: Evictable) -> None:
        queue = self._queue
        if queue.cut is not None and isinstance(item, Node):
            at = queue.cut(item)
            if at < item.end:
                self._split(item, at)  # which pushes both parts
                return
        queue.push(item)

    def adopt(self, nodes: list[Node]) -> None:
        """Change. Linked nodes that nobody holds count from now on; in the order in which they were let go."""
        for node in nodes:
            if self._queue.inserted is not None:
                self._queue.inserted(node, self._place(node, node.start))
            self.num_blocks += node.num_blocks
            self.num_evictable += node.num_blocks
            self._clock = max(self._clock, node.freed)
        for node in nodes:
            self._push(node)

    def forget_counts(self) -> None:
        """Change. What was evicted before the run does not count."""
        self.num_evicted = 0

    def rank_again(self, leaf: Node) -> None:
        """Ask the policy anew about what nobody holds of the path to ``leaf``."""
        step: Node | None = leaf
        while step is not None and step.parent is not None:
            parent = step.parent
            if step.ref == 0 and not step.hole:
                self._push(step)
            step = parent

    def evict(self, blocks: int) -> list[tuple[Node, int, int]]:
        """Take ``blocks`` evictable blocks away, by the policy; what content went, as (node, from block, to block).

        The caller has made sure that there are as many.
        """
        assert blocks <= self.num_evictable, f"evict {blocks} of {self.num_evictable} evictable blocks"
        gone: list[tuple[Node, int, int]] = []
        left, queue = blocks, self._queue
        while left:
            item = queue.first()
            assert item is not None, f"{left} more blocks to evict, and no run can go"
            if isinstance(item, Copy):
                left -= self._evict_copy(item, left)
            elif item.copies:
                left -= self._replace(item, left)
            else:
                end, keep = item.end, item.end - left
                if keep < item.start:
                    keep = item.start
                if queue.evicted is not None:
                    queue.evicted(item, end - keep, self._place(item, keep))
                gone.append((item, keep, end))
                if self.changed is not None:
                    self.changed(item.ids, item.ends, keep, end, False)
                left -= end - keep
                self._shorten(item, keep)
        self.num_evictable -= blocks
        self.num_blocks -= blocks
        self.num_evicted += blocks
        return gone

    def _shorten(self, node: Node, keep: int) -> None:
        """Change. What a node holds from block ``keep`` on goes."""
        node.end = keep
        if keep == node.start:
            self._unlink(node)

    def expire(self) -> int:
        """Evict what the policy says is worth nothing any more; how many blocks."""
        blocks = 0
        while self._queue.expired is not None:
            item = self._queue.first()
            if item is None or not self._queue.expired(item):
                break
            blocks += item.end - item.start
            self.evict(item.end - item.start)
        return blocks

    def _place(self, node: Node, block: int) -> Hashable:
        """Name of the run that begins at ``block`` of ``node``: what it continues, and its first block's content."""
        first = bisect_right(node.ends, block * self.block_tokens)
        return node if block > node.start else node.parent, self._block_key(node.ids, node.ends, first, block)

    def _evict_copy(self, copy: Copy, most: int) -> int:
        """Drop the tail of a copy that nobody holds; how many blocks."""
        node = copy.node
        take = min(most, node.num_blocks)
        if take < node.num_blocks:
            self._split(node, node.end - take)
        if self._queue.evicted is not None:
            self._queue.evicted(copy, take, self._place(node, node.start))
        node.copies = tuple(other for other in node.copies if other is not copy)
        self.num_copies -= 1
        copy.version = 0
        return take

    def _replace(self, node: Node, most: int) -> int:
        """Drop the tail of a node's own copy; the next one takes its place, so no content goes. How many blocks."""
        take = min(most, node.num_blocks)
        if take < node.num_blocks:
            self._split(node, node.end - take)
        if self._queue.evicted is not None:
            self._queue.evicted(node, take, self._place(node, node.start))
        copy, *rest = node.copies
        node.copies = tuple(rest)
        self.num_copies -= 1
        copy.version = 0
        node.ref, node.readers = (0, 0) if copy.holder is None else (1, copy.holder.readers)
        node.freed, node.uses, node.state = copy.freed, copy.uses, copy.state
        node.version = 0
        if node.ref == 0:
            self._push(node)
        return take

    def _unlink(self, node: Node) -> None:
        """Forget an empty node."""
        parent, key = node.parent, node.key
        if parent is None or key is None:
            return
        parent.remove_child(key)
        node.key = None
        if not parent.children and parent.ref == 0:
            if parent.hole:
                self._unlink(parent)
            elif parent.version == 0:
                self._push(parent)  # its turn had come while something continued it

    def watch(self, changed: Changed) -> None:
        """Change. Tell ``changed`` of all content that can be found now, and from now on of what comes and goes."""
        self.changed = changed
        stack = [*self.root.children.values()]
        while stack:
            node = stack.pop()
            if node.ready and not node.hole:
                changed(node.ids, node.ends, node.start, node.end, True)
            stack += node.children.values()

    def check_integrity(self) -> None:
        """Raise AssertionError unless counts and references agree with the nodes."""
        blocks = evictable = copies = again = shared = 0
        stack = [self.root]
        while stack:
            node = stack.pop()
            end, pins = node.end, node.ref + sum(copy.holder is not None for copy in node.copies)
            for child in node.children.values():
                ref, readers = child.ref, child.readers
                assert child.parent is node and child.start == end, (
                    "a child does not start where its parent ends"
                )
                assert ref <= pins, f"a child has {ref} pins, its parent {pins}"
                assert child.end > end
                assert ref or child.children or not child.hole, "a hole leads nowhere"
                assert readers <= ref, f"{readers} decodes read a node with {ref} pins"
                size = child.num_blocks
                blocks += size
                if not ref:
                    evictable += size
                if readers > 1:
                    again += size * (readers - 1)
                    shared += size
                if child.copies:
                    copies += len(child.copies)
                    blocks += size * len(child.copies)
                    evictable += size * sum(copy.holder is None for copy in child.copies)
                if child.children:
                    stack.append(child)
        assert (again, shared) == (self.blocks_read_again, self.blocks_shared), (
            f"prefix tree: {again} read again of {shared}, {self.blocks_read_again} of {self.blocks_shared} counted"
        )
        assert blocks == self.num_blocks, f"prefix tree: {blocks} blocks in nodes, {self.num_blocks} counted"
        assert evictable == self.num_evictable, (
            f"prefix tree: {evictable} evictable, {self.num_evictable} counted"
        )
        assert copies == self.num_copies, f"prefix tree: {copies} copies, {self.num_copies} counted"
