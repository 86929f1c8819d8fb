"""How a replica starts transfers, and what it does when one has ended."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from kvsim.cache.manager import Transfer
from kvsim.cost.form import Formed
from kvsim.cost.work import Kernel
from kvsim.engine.state import ReplicaState
from kvsim.entities import NEVER, Request


class Transfers(ReplicaState):
    """A replica as far as its links go."""

    __slots__ = ()

    def _start(self, transfers: tuple[Transfer, ...]) -> None:
        holds_up = False
        self.num_moving += len(transfers)
        for transfer in transfers:
            self.links.submit(transfer, self._ended)
            if transfer.dst == "hbm" and transfer.src == self._copies_from:
                self._loads_end = max(self._loads_end, transfer.end_ns)
                holds_up = True
        if holds_up:
            self._cut(self.env.now)
        elif transfers:
            self._share_changed()

    def _ended(self, transfer: Transfer) -> None:
        """The link has ended a transfer."""
        self.num_moving -= 1
        self.sync()
        self._sync_peers()
        request = transfer.request
        if request is not None and request in self.loading:
            self.ended.setdefault(request, []).append(transfer)
            self._one_loaded(request)
        else:
            self._start(self.manager.arrived(transfer))
            self._blocked = False
            if request is not None and request in self.fetching:
                self.fetching[request] -= 1
                if not self.fetching[request]:
                    del self.fetching[request]
                    self.waiting.insert_by_arrival(request)
        self._wake()

    def _one_loaded(self, request: Request) -> None:
        """Change. One of the loads that a request waits for has ended."""
        self.loading[request] -= 1
        if not self.loading[request]:
            del self.loading[request]
            self.polled.append((0 if request.swapped else self.engine.load_decisions, request))

    def _wake(self) -> None:
        """Change. The next decision could be another one than was foreseen."""
        if self.on_idle is not None:
            self.on_idle(self)
        now, waits = self.env.now, self.waiting or self.loaded or self.delayed
        if self._next == NEVER:
            self._turn_at(now, now)
        elif waits or self.polled or self.handed or not self.manager.steady_work:
            self._cut(now)
        else:
            self._share_changed()

    def let_go(self, request: Request) -> None:
        """Change. What was kept of a request that is decoded elsewhere has been sent: it becomes evictable."""
        self.sync()
        self._sync_peers()
        self._start(self.manager.release(request, request.kv_tokens))
        self.num_kept -= 1
        self._blocked = False
        self._wake()

    def take_over(self, request: Request) -> None:
        """Change. The KV that another replica sent is there, and so is the first output token."""
        self.sync()
        self._sync_peers()
        self.manager.received(request)
        self._blocked = False
        self._one_loaded(request)
        self._wake()

    def _share_changed(self) -> None:
        """A transfer began or ended, maybe another replica's over a link that this one shares: steps whose copies get
        another part of it than they were priced with are decided anew."""
        if self._shares:
            share = self.links.share()
            for lane, part in self._shares.items():
                if share[lane] != part:
                    self._cut(self.env.now)
                    return

    def _note_links(self, kernels: Sequence[Kernel | Formed]) -> dict[str, float] | None:
        """Change. The parts of the host link that copies inside the step get; None = there are none. Before,
        ``_shares`` is None."""
        lanes: list[str] = []
        for item in kernels:
            if type(item) is Formed:
                if item[0].lanes:
                    lanes += item[0].lanes
            elif item[4] != "gpu":
                lanes.append(item[4])
        if not lanes:
            return None
        share = self.links.share()
        self._shares = {lane: share[lane] for lane in lanes if lane in share}
        return share

    def _poll(self, now: int) -> None:
        """One more decision: some ended loads have become known. An engine without a step in flight polls at once."""
        idle = not self.batch.requests and self.partial is None and self._device_end <= now
        polled, self.polled = self.polled, deque()
        for decisions, request in polled:
            if decisions == 0 or idle:
                for transfer in self.ended.pop(request, ()):
                    self._start(self.manager.arrived(transfer))
                resumes = request.decodes_here_alone or request.swapped
                (self.handed if resumes else self.loaded).append(request)
                self._blocked = False
            else:
                self.polled.append((decisions - 1, request))
