"""``deadlocks.py SCENE``: threads that stand in locks for ever, and what two snapshots say of them.

Prints one line of JSON: for each mode a list of the threads of the last snapshot. A snapshot is
taken again until each thread that a scene counts on has come to its place.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from workerserver.stacks import known
from workerserver.stacks._stacks import kernel_state, snapshot

there: list[str] = []  # names of threads that go on into their last wait


def start(name: str, function: Callable[..., object], *args: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=args, name=name, daemon=True)
    thread.start()
    return thread


def arrive(meeting: threading.Barrier) -> None:
    meeting.wait()
    there.append(threading.current_thread().name)


def take(locks: list[Any], meeting: threading.Barrier) -> None:
    """Hold the first of *locks*, and go for the second once all others hold theirs."""
    with locks[0]:
        arrive(meeting)
        with locks[1]:
            pass


def circle(*locks: Any) -> None:
    meeting = threading.Barrier(len(locks))
    for n in range(len(locks)):
        start(f"t{n}", take, [locks[n], locks[(n + 1) % len(locks)]], meeting)


def two_locks() -> None:
    circle(threading.Lock(), threading.Lock())


def two_rlocks() -> None:
    circle(threading.RLock(), threading.RLock())


def three() -> None:
    circle(threading.Lock(), threading.RLock(), threading.Condition())


def lock_and_join() -> None:
    lock, meeting = threading.Lock(), threading.Barrier(2)

    def joined() -> None:
        arrive(meeting)
        with lock:
            pass

    def joins() -> None:
        with lock:
            arrive(meeting)
            other.join()

    other = start("t0", joined)
    start("t1", joins)


def alone() -> None:
    lock = threading.Lock()

    def again() -> None:
        there.append("t0")
        with lock, lock:
            pass

    start("t0", again)


def idle() -> None:
    """20 consumers of a queue, 5 that wait for a condition, each inside a with block of a lock."""
    channel: queue.Queue[int] = queue.Queue()
    condition = threading.Condition()

    def waits() -> None:
        with condition:
            there.append(threading.current_thread().name)
            condition.wait()

    def consumes() -> None:
        there.append(threading.current_thread().name)
        channel.get()

    for n in range(20):
        start(f"t{n}", consumes)
    for n in range(20, 25):
        start(f"t{n}", waits)


def waiter_and_holder() -> None:
    """t0 waits for the condition, t1 holds its lock, t2 and t3 want the lock."""
    condition = threading.Condition(threading.Lock())
    waiting, held = threading.Event(), threading.Event()

    def waits() -> None:
        with condition:
            there.append("t0")
            waiting.set()
            condition.wait()

    def holds() -> None:
        waiting.wait()
        with condition:
            held.set()
            there.append("t1")
            time.sleep(1000)

    def wants(name: str) -> None:
        held.wait()
        there.append(name)
        with condition:
            pass

    start("t0", waits)
    start("t1", holds)
    start("t2", wants, "t2")
    start("t3", wants, "t3")


def by_acquire() -> None:
    """A lock and an RLock that are held, but not by a with block."""
    lock, rlock, meeting = threading.Lock(), threading.RLock(), threading.Barrier(3)

    def holds() -> None:
        lock.acquire()
        rlock.acquire()
        arrive(meeting)
        time.sleep(1000)

    def wants(what: Any) -> None:
        arrive(meeting)
        with what:
            pass

    start("t0", holds)
    start("t1", wants, lock)
    start("t2", wants, rlock)


def given_back() -> None:
    """t0 stands in a with block of a lock that it gave back, and t1 has taken without a block."""
    lock, first, second = threading.Lock(), threading.Event(), threading.Event()

    def gives() -> None:
        with lock:
            lock.release()
            first.set()
            there.append("t0")
            time.sleep(1000)

    def takes() -> None:
        first.wait()
        lock.acquire()
        second.set()
        there.append("t1")
        time.sleep(1000)

    def wants() -> None:
        second.wait()
        there.append("t2")
        with lock:
            pass

    start("t0", gives)
    start("t1", takes)
    start("t2", wants)


def suspended() -> None:
    """A generator holds the lock, and no thread runs it."""
    lock = threading.Lock()

    def generator() -> Iterator[int]:
        with lock:
            yield 1

    kept = generator()
    next(kept)

    def wants(_: object) -> None:
        there.append("t0")
        with lock:
            pass

    start("t0", wants, kept)


def same_names() -> None:
    """Functions of the user, in files and with variables as those of the library."""
    source = (
        "def wait(self, timeout=None):\n"
        "    src = dst = pid = 12345\n"
        "    tag = group = 'secret'\n"
        "    park()\n"
        "class Condition: wait = wait\n"
    )

    def park() -> None:
        there.append(threading.current_thread().name)
        time.sleep(1000)

    for n, file in enumerate(
        (
            "/job/threading.py",
            threading.__file__,
            "/job/torch/distributed/distributed_c10d.py",
        )
    ):
        space: dict[str, Any] = {"park": park, "__name__": "threading"}
        exec(compile(source, file, "exec"), space)
        start(f"t{n}", space["Condition"]().wait)


def replaced() -> None:
    """threading.Barrier.wait is a function of the user."""

    def wait(self: object, timeout: float | None = None) -> int:
        there.append("t0")
        time.sleep(1000)
        return 0

    threading.Barrier.wait = wait  # type: ignore[method-assign]
    start("t0", threading.Barrier(2).wait)


def process() -> None:
    """Threads that wait for a child."""
    child = subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE)

    def wait(call: Callable[[], object]) -> None:
        there.append(threading.current_thread().name)
        call()

    start("t0", wait, child.wait)
    start("t1", wait, child.communicate)
    children.append(child)


children: list[subprocess.Popen[bytes]] = []


def facts(mode: Any) -> list[dict[str, Any]]:
    value = json.loads(snapshot(mode=mode, facts=True).render("json"))
    threads: list[dict[str, Any]] = value["threads"]
    return [each for each in threads if (each["name"] or "").startswith("t")]


def asleep() -> bool:
    """Whether every thread has come to its last wait, and sleeps there."""
    threads = [each for each in threading.enumerate() if each.name[0] == "t"]
    return {each.name for each in threads} <= set(there) and all(
        kernel_state(each.native_id or 0)[0] in ("S", None) for each in threads
    )


def settled(mode: Any) -> list[dict[str, Any]]:
    """The facts that three snapshots in a row agree on; the last ones after 20 seconds."""
    end = time.monotonic() + 20
    last: list[list[dict[str, Any]]] = []
    while time.monotonic() < end:
        time.sleep(0.02)
        if not asleep():
            continue
        last.append(facts(mode))
        if len(last) >= 3 and last[-1] == last[-2] == last[-3]:
            break
    return last[-1]


def main() -> None:
    scene: Callable[[], None] = globals()[sys.argv[1]]
    if scene is not replaced:
        known.publish()
    scene()
    known.publish()
    found = {mode: settled(mode) for mode in ("gil", "nogil")}
    for child in children:
        child.kill()
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
