"""How ranks start: late, again, without torchrun's variables, beside stock workers, alone."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from datetime import timedelta

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
    begun,
    fault,
    late,
    prepare,
    reduce,
    sleeps_with_gil,
    standing,
    train,
)

import workerserver

MIXED = How(kind="mixed", deadline_s=3.0)


def join() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=FOREVER))


# ---- at the start


@fault(3, standing(1, "prepare"), how=How(joined=False))
@fault(3, standing(1, "prepare"), how=How(joined=False, ring=0), name="late_init_without_recorder")
def late_init() -> None:
    """Rank 1 loads its data before it comes to init_process_group; the others are there."""
    begun()
    if RANK == 1:
        prepare()
    join()


@fault(4, standing(0, "prepare"), how=How(joined=False))
def late_master() -> None:
    """The rank that holds the store is the late one."""
    begun()
    if RANK == 0:
        prepare()
    join()


@fault(3, Suspect(2, "behind", "default_pg", "broadcast", 1, "prepare"), how=How(joined=False))
def late_first_broadcast() -> None:
    """All have joined, and rank 2 builds its model for ever; nobody has ever made a step."""
    join()
    begun()
    if RANK == 2:
        prepare()
    dist.broadcast(torch.ones(4), 0)


# ---- again


def orphan() -> None:
    """A process of the last life that keeps this one's connections open, as a loader's does. It has
    given up the server's sockets by the time that this returns."""
    begun_, begins = os.pipe()
    if not os.fork():
        os.write(begins, b".")
        time.sleep(FOREVER)
    os.read(begun_, 1)


# Whoever stands in the rendezvous of a new round hasn't come to the operation of the old one.
@fault(3, late(1, "join", "order"), how=How(joined=False))
def restarted_alone() -> None:
    """Rank 1 is started again while the others are in an operation of the old round; they don't
    notice, for a process that it has left behind keeps its connections open."""
    if "AGAIN" in os.environ:
        begun()
        join()
    join()
    train(STEPS)
    beat(STEPS)
    if RANK == 1:
        orphan()
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "AGAIN": "1"})
    begun()
    reduce()


def dies_once() -> bool:
    """In the first round of an elastic job. torchrun starts all ranks again."""
    if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if RANK == 2:
            time.sleep(1)
            os._exit(1)
        return True
    return False


#: Each round gets a store of its own: in a shared one, gloo finds the addresses of the last round.
OWN_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
ELASTIC = How(
    words=("--max-restarts", "2"), settings=OWN_STORES, watched_by_torchrun=True, joined=False
)


@fault(3, late(1, "prepare"), how=ELASTIC)
def second_round() -> None:
    """One rank has died, all were started again, and the second round stops."""
    join()
    train(STEPS)
    if dies_once():
        reduce()
        time.sleep(FOREVER)
    beat(STEPS)
    begun()
    if RANK == 1:
        prepare()
    reduce()


@fault(3, standing(1, "prepare"), how=ELASTIC)
def late_in_the_second_round() -> None:
    """After a restart, rank 1 restores its checkpoint before it joins."""
    if dies_once():
        join()
        reduce()
        time.sleep(FOREVER)
    begun()
    if RANK == 1:
        prepare()
    join()


def spawned(rank: int) -> None:
    """As torch.multiprocessing.spawn and launchers of notebooks start it: the environment does not
    tell the rank."""
    store = dist.TCPStore("127.0.0.1", int(os.environ["OWN_PORT"]), 3, rank == 0)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=3, timeout=timedelta(seconds=FOREVER)
    )
    for name in ("RANK", "LOCAL_RANK"):
        os.environ.pop(name, None)
    os.environ["TORCH_WORKER_SERVER_SOCKET"] = str(FOLDER / "own{pid}.sock")
    with workerserver.worker_main():
        train(STEPS)
        (FOLDER / f"begun{rank}").touch()
        workerserver.heartbeat(STEPS)
        if rank == 1:
            prepare()
        reduce()


# The recorders tell the ranks.
@fault(
    3,
    late(1, "prepare"),
    how=How(joined=False, processes=1, sockets="own*.sock"),
)
def spawns() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        os.environ["OWN_PORT"] = str(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=spawned, args=(rank,)) for rank in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()


# ---- beside stock workers: odd ranks have torch's server


@fault(4, late(1, "prepare"), how=MIXED)
def stock_rank_stops() -> None:
    beat(STEPS)
    if RANK == 1:
        prepare()
    reduce()


@fault(4, late(2, "prepare"), how=MIXED)
def own_rank_stops_beside_stock() -> None:
    beat(STEPS)
    if RANK == 2:
        prepare()
    reduce()


@fault(4, late(2, "sleeps_with_gil", "gil held"), how=MIXED)
def own_rank_keeps_gil_beside_stock() -> None:
    beat(STEPS)
    if RANK == 2:
        sleeps_with_gil()
    reduce()


# A stock worker whose GIL is held doesn't answer.
@fault(4, late(3, None, "unreachable"), how=MIXED)
def stock_rank_keeps_gil() -> None:
    beat(STEPS)
    if RANK == 3:
        sleeps_with_gil()
    reduce()


@fault(
    4,
    Suspect(3, "behind", "right", "all_reduce", 1, "prepare"),
    how=MIXED,
)
def pair_stops_beside_stock() -> None:
    """Of the pair of ranks 2 and 3 the stock one stands still."""
    right = dist.new_group([2, 3], group_desc="right")
    beat(STEPS)
    if RANK == 3:
        prepare()
    if RANK > 1:
        dist.all_reduce(torch.ones(4), group=right)
    reduce()


# ---- alone


ALONE = How(settled_s=11.0)


# A GIL that is held for ten seconds is a fault, though nobody waits for the rank.
@fault(1, standing(0, "sleeps_with_gil", "gil held"), how=ALONE)
def alone_with_gil() -> None:
    for step in range(STEPS, STEPS + 100):
        beat(step)
        time.sleep(0.01)
    sleeps_with_gil()


# Steps took ten milliseconds, and for half a minute there has been none.
@fault(1, standing(0, "prepare", "stalled"), how=How(settled_s=25.0))
def alone_and_stalled() -> None:
    for step in range(STEPS, STEPS + 100):
        beat(step)
        time.sleep(0.01)
    prepare()


@fault(1, standing(0, "prepare", "stalled"), how=How(settled_s=25.0, joined=False))
def alone_without_torch() -> None:
    """A program without any process group."""
    for step in range(STEPS):
        beat(step)
        time.sleep(0.01)
    begun()
    prepare()
