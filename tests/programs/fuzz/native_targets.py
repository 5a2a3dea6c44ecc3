"""What driver.c feeds: the three parts of parts.pyx, and the walker.

The walker reads the stacks of this very process, while its threads wait in all ways that the walker
knows. The input changes what is read (driver.c says how).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor

#: Rounds in which the threads have come to their waits.
SETTLED = 20


def target(name: str) -> int | Callable[[], object]:
    """What is called with each input: a C function's address, or a function of no argument."""
    if name == "walker":
        return walker()
    import parts  # type: ignore[import-not-found]  # compiled by tools/fuzz.py

    address: int = parts.address(name)
    return address


def generator(step: Callable[[], object]) -> Generator[int, None, None]:
    step()
    yield 1


def names_of_all_widths(wait: Callable[[], object]) -> None:
    def straße() -> None:
        def 待つ() -> None:
            wait()

        待つ()

    straße()


def deep(depth: int, wait: Callable[[], object]) -> None:
    if depth:
        deep(depth - 1, wait)
    else:
        wait()


def walker() -> Callable[[], object]:
    from workerserver.stacks import known
    from workerserver.stacks._stacks import prepare, snapshot

    problem = prepare()
    if problem is not None:
        raise SystemExit(f"stacks can't be read here: {problem}")
    known.publish()
    for thread in waiting():
        thread.start()
    pool = ThreadPoolExecutor(1, thread_name_prefix="pool-ü")
    pool.submit(threading.Event().wait)
    for _ in range(SETTLED):  # each thread gets the GIL, and gives it away where it waits
        threading.Event().wait(0.01)

    def walk() -> None:
        try:
            taken = snapshot(mode="nogil", facts=True)
        except (NotImplementedError, RuntimeError):  # nothing could be read
            return
        for form in ("text", "json", "digest"):
            taken.render(form)

    return walk


def waiting() -> list[threading.Thread]:
    """A thread for each way to wait."""
    held, again, never = threading.Lock(), threading.RLock(), threading.Event()
    held.acquire()
    again.acquire()
    condition, slots = threading.Condition(), threading.Semaphore(0)
    barrier: threading.Barrier = threading.Barrier(2)
    things: queue.Queue[int] = queue.Queue()

    def in_with() -> None:
        with held:
            pass

    def in_condition() -> None:
        with condition:
            condition.wait()

    def holding() -> None:
        with threading.Lock(), threading.RLock():
            never.wait()

    works: list[Callable[[], object]] = [
        in_with, in_condition, holding, again.acquire, never.wait, slots.acquire, barrier.wait,
        things.get, lambda: deep(30, never.wait), lambda: names_of_all_widths(never.wait),
        lambda: list(generator(never.wait)),
    ]  # fmt: skip
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    threads.append(threading.Thread(target=threads[4].join, name="joins 漢字", daemon=True))
    return threads
