"""The work beside the soaks of snapshots: everything that makes and ends frames."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Generator
from itertools import count, islice

stop = threading.Event()
failures: list[str] = []


def recurse(n: int) -> int:
    return 0 if n == 0 else 1 + recurse(n - 1)


def nested(n: int) -> Generator[int, None, None]:
    if n:
        yield from nested(n - 1)
    yield n


async def chain(n: int) -> None:
    if n:
        await chain(n - 1)
    else:
        recurse(50)
        time.sleep(0)  # snapshots mostly see where a thread gives the GIL away
    await asyncio.sleep(0)


def generators() -> None:
    sum(nested(40))
    sorted((x * x for x in range(50)), key=lambda x: -x)


def coroutines() -> None:
    asyncio.run(chain(20))


def short_threads() -> None:
    threads = [threading.Thread(target=recurse, args=(n,), name=f"short {n}") for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


numbers = count()


def generated() -> None:
    """New functions that are freed again. File and name of a function hold the same number."""
    for n in islice(numbers, 20):
        space: dict[str, Callable[[], int]] = {}
        source = f"def f{n}():\n    return sum(i\n        for i in range(50))\n"
        exec(compile(source, f"<generated\n{n} \u00e9\u4e2d\U0001f600>", "exec"), space)
        space[f"f{n}"]()


def until_stopped(work: Callable[[], None]) -> None:
    try:
        while not stop.is_set():
            work()
    except BaseException:
        failures.append(traceback.format_exc())
        stop.set()


def soak(
    snapping: Callable[[], None], beside: list[Callable[[], None]], main_work: Callable[[], None]
) -> None:
    """Run *snapping* in a thread, each of *beside* in a thread, and *main_work* in this thread,
    until *snapping* has ended. Then ``failures`` says what went wrong."""
    threads = [threading.Thread(target=until_stopped, args=(w,), name=w.__name__) for w in beside]

    def soaking() -> None:
        try:
            snapping()
        except BaseException:
            failures.append(traceback.format_exc())
        stop.set()

    threads.append(threading.Thread(target=soaking, name="soaking"))
    for thread in threads:
        thread.start()
    until_stopped(main_work)
    for thread in threads:
        thread.join()
