"""``naive_walk.py naive|compiled SECONDS``: look for torn stacks; exit 3 if one was found.

A witness thread is always in one of two functions: in ``alpha``, called from one line of
``witness``, or in ``beta``, called from another line, with ten frames between. A stack with
``alpha`` on top and the line of ``beta`` at the bottom never existed: a walk put it together from
two moments. The switch interval is as short as possible. The garbage collector runs as often as
possible, with finalizers that let other threads run.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable

from workerserver.stacks._stacks import snapshot

Stack = list[tuple[str, int | None]]

stopping = False


def alpha() -> None:
    for _ in range(20):
        pass


def beta() -> None:
    for _ in range(20):
        pass


def between(n: int, leaf: Callable[[], None]) -> None:
    if n:
        between(n - 1, leaf)
    else:
        leaf()


def witness() -> None:
    while not stopping:
        between(10, alpha)
        between(10, beta)


FIRST = witness.__code__.co_firstlineno
LINE_OF = {"alpha": FIRST + 2, "beta": FIRST + 3}


def naive(ident: int) -> Stack:
    """The obvious walk."""
    stack: Stack = []
    frame = sys._current_frames().get(ident)
    while frame is not None:
        stack.append((frame.f_code.co_name, frame.f_lineno))
        frame = frame.f_back
    return stack


def compiled(ident: int) -> Stack:
    for thread in snapshot().threads:
        if thread.ident == ident:
            return [(frame.function, frame.line) for frame in thread.frames]
    return []


class Litter:
    """Garbage that only the collector can free. Its finalizer releases the GIL."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def torn(stack: Stack) -> bool:
    if not stack or stack[0][0] not in LINE_OF:
        return False
    return ("witness", LINE_OF[stack[0][0]]) not in stack


def main() -> int:
    global stopping
    walk = {"naive": naive, "compiled": compiled}[sys.argv[1]]
    end = time.monotonic() + float(sys.argv[2])
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=witness, daemon=True)
    thread.start()
    assert thread.ident is not None
    seen = {"alpha": 0, "beta": 0}
    verdict = ""
    turn = 0
    gc.freeze()  # so that a collection doesn't search imported objects
    while not verdict and time.monotonic() < end:
        turn += 1
        if turn % 8 == 0:
            Litter()
            gc.set_threshold(1, 1, 1)
        try:
            stack = walk(thread.ident)
        except Exception as error:  # the naive walk also meets memory that is no frame
            verdict = f"corrupt: {error!r}"
            break
        gc.set_threshold(700, 10, 10)
        if torn(stack):
            verdict = f"torn: {stack}"
        elif stack and stack[0][0] in seen:
            seen[stack[0][0]] += 1
    stopping = True
    thread.join()
    print(verdict or "whole", seen)
    return 3 if verdict else 0


if __name__ == "__main__":
    sys.exit(main())
