"""How a replica swaps requests out to a tier and back in (``engine.preemption: swap``).

Blocking (vLLM V0): a step waits for every copy that was begun before it, and a request that comes back decodes in the
step that waits for it. Overlapping (FastSwitch): steps go on; a request that comes back decodes once its KV is there,
and a step waits only if it takes blocks whose content is still being copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvsim.cache.manager import Transfer
from kvsim.engine.transfers import Transfers
from kvsim.entities import Request


class Swaps(Transfers):
    """A replica as far as swapping goes."""

    __slots__ = ()

    def _swap_out(self, request: Request, context: int) -> bool:
        """Change. The KV of a preempted request goes to the tier; False: there is no room, so that it is computed again."""
        transfers = self.manager.swap_out(request, context)
        if transfers is None:
            request.swapped = False
            return False
        self._copy(transfers)
        return True

    def _swap_in(self) -> None:
        """Change. Requests that are swapped out and next in the queue come back, as far as room and slots go."""
        waiting, manager = self.waiting, self.manager
        while waiting and (self._head_changes or not self._blocked):
            request = waiting[0]
            coming = len(self.handed) + len(self.loading) + len(self.polled)
            if not request.swapped or len(self.running) + coming >= self.engine.max_num_seqs:
                return
            transfers = manager.swap_in(request)
            if transfers is None:
                self._blocked = True
                return
            waiting.popleft()
            request.cached = request.prompt_tokens - 1  # tokens with KV
            if self.engine.swaps_overlap:
                self.loading[request] = len(transfers)
            else:
                self.handed.append(request)
            self._copy(transfers)

    def _copy(self, transfers: Sequence[Transfer]) -> None:
        self.num_moving += len(transfers)
        for transfer in transfers:
            self.links.submit(transfer, self._ended)
            self._swaps_end = max(self._swaps_end, transfer.end_ns)
        self._share_changed()

    def _await_copies(self, now: int, launch_ns: int, decodes: bool) -> int:
        """Change. Until when the step that is decided now has to wait for swaps; 0 = it need not. ``decodes``: the room that its
        decodes take is not taken yet."""
        if self._swaps_end <= now:
            return 0
        wanted = self._swaps_end
        if self.engine.swaps_overlap:
            wanted = self.manager.copied_ns(self.batch if decodes else None)
        self.stalled_ns += max(0, wanted - max(now + launch_ns, self._device_end))
        return wanted
