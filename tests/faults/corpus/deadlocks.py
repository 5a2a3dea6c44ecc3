"""Threads and ranks that wait for each other for ever, and healthy twins of them."""

from __future__ import annotations

import concurrent.futures
import fcntl
import queue
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from scenes import (
    FOLDER,
    FOREVER,
    RANK,
    STEPS,
    How,
    Suspect,
    beat,
    fault,
    healthy,
    late,
    only,
    prepare,
    reduce,
    standing,
    unclear,
)
from torch.utils.data import DataLoader

FOR_GOOD = 10**6
UNSEEN = How(beats=False)
#: A healthy job is looked at right behind each other look, and later on.
MOMENTS = (0.0, 0.0, 6.0)

# ---- in one rank


def meet(first: Any, second: Any, meeting: threading.Barrier) -> None:
    with first:
        meeting.wait()
        with second:
            pass


@only(1, late(1, "meet", "deadlock"), 3)
def saves_against_itself() -> None:
    """The main thread takes the cache's lock and then the log's, the saver the other way round."""
    cache, log, meeting = threading.Lock(), threading.Lock(), threading.Barrier(2)
    threading.Thread(target=meet, args=(log, cache, meeting), name="saver", daemon=True).start()
    meet(cache, log, meeting)


@only(1, standing(1, "meet", "deadlock"), 3, how=How(beats=False, ring=0))
def saves_against_itself_unseen() -> None:
    """No recorder and no heartbeat: the locks alone tell."""
    cache, log, meeting = threading.RLock(), threading.RLock(), threading.Barrier(2)
    threading.Thread(target=meet, args=(log, cache, meeting), name="saver", daemon=True).start()
    meet(cache, log, meeting)


@only(1, late(1, "meet", "deadlock"), 3)
def three_in_a_circle() -> None:
    locks, meeting = [threading.Lock() for _ in range(3)], threading.Barrier(3)
    for number in (1, 2):
        pair = (locks[number], locks[(number + 1) % 3], meeting)
        threading.Thread(target=meet, args=pair, daemon=True).start()
    meet(locks[0], locks[1], meeting)


@only(2, late(2, "joins_the_saver", "deadlock"), 3)
def joins_with_its_lock() -> None:
    """The main thread joins the saver, which wants the lock that the main thread has."""
    joins_the_saver(threading.Lock())


def joins_the_saver(lock: Any) -> None:
    def save() -> None:
        with lock:
            pass

    with lock:
        saver = threading.Thread(target=save, name="saver", daemon=True)
        saver.start()
        saver.join()


@only(1, late(1, "prepare"), 3)
def waits_for_a_lock_of_a_sleeper() -> None:
    """No deadlock: the thread that has the lock stands still elsewhere, and is the place to look
    at."""
    lock, taken = threading.Lock(), threading.Event()

    def save() -> None:
        with lock:
            taken.set()
            prepare()

    threading.Thread(target=save, name="saver", daemon=True).start()
    taken.wait()
    with lock:
        pass


@only(1, late(1, "prepare"), 3)
def joins_one_of_several() -> None:
    """Others are busy, too: only the join tells which one is waited for."""
    threads = [threading.Thread(target=each, daemon=True) for each in (prepare, poll, poll)]
    for thread in threads:
        thread.start()
    threads[0].join()


def poll() -> None:
    while True:
        time.sleep(0.2)


# ---- between ranks


def lock_cache(then: Callable[[], object]) -> None:
    with (FOLDER / "cache.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        then()


@fault(
    3,
    late(0, "reduce", "deadlock"),
    Suspect(1, "deadlock", None, None, None, "lock_cache"),
)
def reduces_with_file_lock() -> None:
    """Rank 0 comes to the sum with the lock that rank 1 wants before."""
    beat(STEPS)
    taken = FOLDER / "taken"

    def come() -> None:
        taken.touch()
        reduce()

    if RANK == 0:
        lock_cache(come)
    while not taken.exists():
        time.sleep(0.05)
    if RANK == 1:
        lock_cache(lambda: None)
    reduce()


@fault(
    4,
    Suspect(0, "deadlock", "default_pg", "barrier", None, "builds_cache"),
    *[Suspect(rank, "deadlock", None, None, None, "lock_cache") for rank in (1, 2, 3)],
    how=How(ring=0),
)
def meets_with_file_lock() -> None:
    """Each builds the cache under its lock, with a barrier inside of the lock. No recorder."""
    beat(STEPS)
    if RANK:
        while not (FOLDER / "taken").exists():
            time.sleep(0.05)
    lock_cache(builds_cache)


def builds_cache() -> None:
    (FOLDER / "taken").touch()
    dist.barrier()


def upload() -> None:
    lock_cache(send_parts)


def send_parts() -> None:
    for _ in range(FOR_GOOD):
        time.sleep(0.5)


# The saver gives the lock back once it has sent all parts: nobody can see that it never does.
@unclear(3, "rank 0 stands in reduce()")
def saves_with_file_lock() -> None:
    """A thread of rank 0 has the lock that rank 1 wants, and goes on; its main thread has not."""
    beat(STEPS)
    if RANK == 0:
        threading.Thread(target=upload, daemon=True).start()
    if RANK == 1:
        time.sleep(1.0)
        lock_cache(lambda: None)
    reduce()


# Who should have set the key is known to nobody, and rank 0 alone doesn't wait for it.
@unclear(3)
def two_wait_for_key() -> None:
    beat(STEPS)
    if RANK:
        store = dist.distributed_c10d._get_default_store()
        store.wait(["ready"], timedelta(seconds=FOREVER))
    reduce()


@fault(3, Suspect(0, "behind", "default_pg", "recv from rank 0", None, "prepare"))
def owes_objects() -> None:
    """The same for objects: two receives each, of the size and of the object."""
    beat(STEPS)
    if RANK == 0:
        prepare()
    dist.recv_object_list([None], src=RANK - 1)


@fault(
    3,
    Suspect(0, "p2p cycle", "default_pg", "recv from rank 2", None, "receives_in_a_ring"),
    Suspect(1, "p2p cycle", "default_pg", "recv from rank 0", None, "receives_in_a_ring"),
    Suspect(2, "p2p cycle", "default_pg", "recv from rank 1", None, "receives_in_a_ring"),
    how=UNSEEN,
)
def receives_in_a_ring() -> None:
    """Each receives before it sends."""
    dist.recv(torch.ones(4), (RANK - 1) % 3)


# ---- healthy


def go_on(pause_s: float = 0.05) -> None:
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        time.sleep(pause_s)
        reduce()


def start(*targets: Callable[[], object]) -> None:
    for target in targets:
        threading.Thread(target=target, daemon=True).start()


@healthy(2, earns=True, moments=MOMENTS)
def idle_consumers() -> None:
    """Each stands inside a with block of a lock that is free."""
    work: queue.Queue[int] = queue.Queue()
    start(*[work.get] * 20)
    go_on()


@healthy(2, earns=True, moments=MOMENTS)
def idle_conditions() -> None:
    condition, event = threading.Condition(), threading.Event()

    def wait() -> None:
        with condition:
            condition.wait()

    start(*[wait] * 20)
    start(*[event.wait] * 5)
    go_on()


@healthy(2, earns=True, moments=MOMENTS)
def busy_pool() -> None:
    """Threads that contend for a few locks, in one order."""
    locks = [threading.Lock() for _ in range(3)]

    def work() -> None:
        while True:
            for lock in locks:
                with lock:
                    time.sleep(0.01)
            with locks[0], locks[1], locks[2]:
                time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(work)
        go_on()


@healthy(2, earns=True, moments=MOMENTS)
def loads_in_workers() -> None:
    """The consumers of a DataLoader wait for its processes."""
    data: DataLoader[Any] = DataLoader(range(FOR_GOOD), num_workers=2)
    for step, _ in enumerate(data):
        beat(STEPS + step)
        time.sleep(0.05)
        reduce()


@healthy(2, earns=True, moments=MOMENTS)
def waits_beside_training() -> None:
    """Threads that wait for a child, for a file lock that another rank has, and for each other."""
    child = subprocess.Popen(["sleep", str(FOREVER)])
    joined = threading.Thread(target=child.wait, daemon=True)
    joined.start()
    start(joined.join, lambda: lock_cache(prepare))
    go_on()


@healthy(2, how=UNSEEN, earns=False, moments=MOMENTS)
def pipeline_goes_on() -> None:
    """Each look meets the second stage in the same recv."""
    for _ in range(FOR_GOOD):
        if RANK:
            dist.recv(torch.ones(4), 0)
        else:
            time.sleep(0.5)
            dist.send(torch.ones(4), 1)
