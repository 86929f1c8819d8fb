"""Sums over the contexts of a batch against the array of all its sequences and steps."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kvsim.cost.work import column
from kvsim.entities import Batch, Request

BLOCK = 4
changes = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 60)),  # a request with so many tokens
        st.tuples(st.just("remove"), st.integers(0, 9)),  # one of those there are
        st.tuples(st.just("steps"), st.integers(1, 30)),
    ),
    max_size=25,
)


@given(changes, st.integers(0, 25), st.integers(1, 50), st.integers(1, 70), st.integers(1, 20))
def test_contexts(found: list[tuple[str, int]], asked: int, steps: int, cap: int, page: int) -> None:
    """``asked``: the change after which the sums are first asked for; they are kept from then on."""
    batch = Batch(BLOCK)
    for i, (what, value) in enumerate(found):
        requests = list(batch.requests)
        if what == "add":
            batch.add(Request(i, 0, 1, 1, [], [], order=i), value, 10**6)
        elif what == "remove" and requests:
            batch.remove(requests[value % len(requests)])
        elif what == "steps":
            batch.round += value
        if i >= asked:
            check(batch, steps, cap, page)
    check(batch, steps, cap, page)


def some(request: Request) -> int:
    return request.index % 3


def start(request: Request) -> int:
    return request.base


def check(batch: Batch, steps: int, cap: int, page: int) -> None:
    contexts = batch.contexts[:, None]
    read = contexts + 1 + np.arange(steps)
    below, pages = batch.capped(cap), batch.pages(page)
    assert column(below.sum_read(steps), steps).tolist() == np.minimum(read, cap).sum(0).tolist()
    assert column(below.num_beyond(steps), steps).tolist() == (read > cap).sum(0).tolist()
    assert column(pages.sum_read(steps), steps).tolist() == (-(-read // page)).sum(0).tolist()
    assert column(pages.num_filled(steps), steps).tolist() == (read % page == 0).sum(0).tolist()
    for plain in (pages.sums_read(steps), pages.nums_filled(steps)):
        assert type(plain) is int if steps == 1 else {type(number) for number in plain} == {int}
    assert column(batch.sum_read(steps), steps).tolist() == read.sum(0).tolist()
    for part, whole, less in ((1, 3, 0), (page, 20, 0), (7, 20, 5), (3, 4 * 20, start)):
        off = np.array([[less if isinstance(less, int) else less(each)] for each in batch.requests] or [[0]])
        share = batch.share(part, whole, less)
        shares = -(-(part * read - off) // whole) if len(batch) else read
        assert column(share.sum_read(steps), steps).tolist() == shares.sum(0).tolist()
        later, now = (-(-(part * held - off) // whole) for held in (contexts + steps, contexts))
        assert share.grown(steps) == int((later - now).sum() if len(batch) else 0)
    assert batch.total(start) == sum(map(start, batch.requests))
    new = batch.capped(cap, less=some)
    off = np.array([[some(each)] for each in batch.requests] or [[0]])
    shifted = read - off if len(batch) else read
    assert column(new.sum_read(steps), steps).tolist() == np.minimum(shifted, cap).sum(0).tolist()
    later, now = (
        np.minimum(held - off, cap) if len(batch) else held for held in (contexts + steps, contexts)
    )
    assert new.new_blocks(steps) == int((-(-later // BLOCK) + -now // BLOCK).sum())
    begun = -(-np.minimum(contexts + steps, cap) // BLOCK) + -np.minimum(contexts, cap) // BLOCK
    assert below.new_blocks(steps) == int(begun.sum())
    assert batch.new_blocks(steps) == int((-(-(contexts + steps) // BLOCK) + -contexts // BLOCK).sum())
