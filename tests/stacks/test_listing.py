"""The list of threads without the GIL: it is guessed from the last one, and every guess is checked.

Threads come, in front of the list, and go, anywhere in it. A system call lists up to 32 of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from support.parking import untraced, where_it_works

from workerserver.stacks._stacks import prepare, snapshot

pytestmark = [pytest.mark.cpython, untraced, where_it_works]


class Waiter(threading.Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.there, self.go = threading.Event(), threading.Event()

    def run(self) -> None:
        self.there.set()
        self.go.wait()

    def end(self) -> None:
        self.go.set()
        self.join(60)


@contextmanager
def waiters(count: int) -> Iterator[list[Waiter]]:
    with ExitStack() as stack:
        made = []
        for _ in range(count):
            waiter = Waiter()
            waiter.start()
            stack.callback(waiter.end)
            assert waiter.there.wait(60)
            made.append(waiter)
        yield made


def listed() -> list[int]:
    assert prepare() is None
    found = snapshot(mode="nogil")
    assert not found.truncated
    return [thread.ident for thread in found.threads]


def alive() -> list[int]:
    """Newest first is the order of the interpreter; threading has them by their start."""
    return sorted(thread.ident or 0 for thread in threading.enumerate())


def check() -> None:
    found = listed()
    assert len(found) == len(set(found))
    assert set(alive()) <= set(found)
    assert listed() == found  # by guesses alone


@pytest.mark.parametrize(
    "gone",
    [
        pytest.param(slice(None, None, 3), id="each third"),
        pytest.param(slice(0, 33), id="the oldest"),
        pytest.param(slice(40, None), id="the newest"),
        pytest.param(slice(20, 70), id="the middle"),
        pytest.param(slice(None), id="all"),
    ],
)
def test_threads_that_come_and_go(gone: slice) -> None:
    with waiters(80) as old:
        check()
        for waiter in old[gone]:
            waiter.end()
        check()
        left = {waiter.ident for waiter in old} - {waiter.ident for waiter in old[gone]}
        assert left <= set(listed())
        ended = {waiter.ident for waiter in old[gone]}
        assert not ended & (set(listed()) - set(alive()))
        with waiters(40) as new:
            check()
            assert {waiter.ident for waiter in new} <= set(listed())
            for waiter in new[::2]:
                waiter.end()
            check()
    check()
