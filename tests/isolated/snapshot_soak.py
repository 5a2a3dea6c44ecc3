"""``snapshot_soak.py SECONDS [torch]``: snapshots at full speed beside everything that moves.

Beside it run deep recursion, generators, coroutines, short-lived threads and generated code, with
``torch`` also a training loop with AdamW and a DataLoader with a forked worker. Every line of every
snapshot must be in faulthandler's form. Prints the number of snapshots; exit 0 if all were well.
"""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from itertools import count

from workerserver._stacks import snapshot

HEAD = re.compile(r"(Current t|T)hread 0x[0-9a-f]{16} \(most recent call first\):")
FRAME = re.compile(r'  File "[ -~]+", line (\d+|\?\?\?) in [ -~]+')
MORE = "  ..."

stop = threading.Event()
failures: list[str] = []


def check(text: str, known: set[str]) -> None:
    """Raise ValueError at the first line that is not well formed; *known* lines are not read."""
    wanted = "head"
    for line in text[:-1].split("\n"):
        if wanted == "head":
            good, wanted = HEAD.fullmatch(line) is not None, "frame"
        elif line == "":
            good, wanted = True, "head"
        elif line == MORE:
            good, wanted = wanted == "frame", "end"
        else:
            good = wanted == "frame" and (line in known or FRAME.fullmatch(line) is not None)
            known.add(line)
        if not good:
            raise ValueError(f"not in faulthandler's form: {line!r}")
    if not text.endswith("\n"):
        raise ValueError("does not end with a line end")
    if len(known) > 20_000:
        known.clear()


def recurse(n: int) -> int:
    return 0 if n == 0 else 1 + recurse(n - 1)


def nested(n: int) -> Generator[int, None, None]:
    if n:
        yield from nested(n - 1)
    yield n


async def chain(n: int) -> None:
    if n:
        await chain(n - 1)
    await asyncio.sleep(0)


def deep() -> None:
    recurse(700)


def generators() -> None:
    sum(nested(40))
    sorted((x * x for x in range(50)), key=lambda x: -x)


def coroutines() -> None:
    asyncio.run(chain(20))


def short_threads() -> None:
    threads = [threading.Thread(target=recurse, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


numbers = count()


def generated() -> None:
    n = next(numbers)
    space: dict[str, Callable[[], int]] = {}
    source = f"def f{n}():\n    return sum(i for i in range(50))\n"
    exec(compile(source, f"<generated\n{n} \u00e9\u4e2d\U0001f600>", "exec"), space)
    space[f"f{n}"]()


def until_stopped(work: Callable[[], None]) -> None:
    try:
        while not stop.is_set():
            work()
    except BaseException:
        failures.append(traceback.format_exc())
        stop.set()


def train() -> Callable[[], None]:
    """One epoch of a small training run, as a function to call again and again."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(6)])
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.TensorDataset(torch.randn(256, 32))
    loader = torch.utils.data.DataLoader(
        data, batch_size=16, num_workers=1, multiprocessing_context="fork", timeout=30
    )

    def epoch() -> None:
        for _ in range(8):  # many steps for each forked worker
            for (batch,) in loader:
                for _ in range(8):
                    optimizer.zero_grad()
                    model(batch).sum().backward()
                    optimizer.step()
                if stop.is_set():
                    return

    return epoch


def snap(seconds: float) -> int:
    end = time.monotonic() + seconds
    known: set[str] = set()
    taken = 0
    while time.monotonic() < end and not stop.is_set():
        check(snapshot().text(), known)
        taken += 1
        if taken % 50 == 0:
            assert all(thread.frames for thread in snapshot().threads)
    return taken


def main() -> int:
    sys.setswitchinterval(1e-4)
    work = [deep, generators, coroutines, short_threads, generated]
    threads = [threading.Thread(target=until_stopped, args=(w,), name=w.__name__) for w in work]
    total: list[int] = []

    def snapping() -> None:
        try:
            total.append(snap(float(sys.argv[1])))
        except BaseException:
            failures.append(traceback.format_exc())
        stop.set()

    threads.append(threading.Thread(target=snapping, name="snapping"))
    main_work = train() if "torch" in sys.argv[2:] else generators
    for thread in threads:
        thread.start()
    until_stopped(main_work)
    for thread in threads:
        thread.join()
    print("snapshots:", *total)
    print(*failures, sep="\n")
    return 1 if failures or not total or total[0] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
