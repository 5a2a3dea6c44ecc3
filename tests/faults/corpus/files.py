"""Frozen input and output: pipes, file locks, keys of the store, other processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from scenes import (
    FOLDER,
    FOREVER,
    RANK,
    STEPS,
    beat,
    fault,
    late,
    only,
    prepare,
    reduce,
    standing,
    unclear,
)

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
open(sys.argv[1] + ".held", "w")
time.sleep(600)
"""


def held_lock(mine: bool = True) -> Path:
    """A file that another process, which *mine* starts, keeps locked."""
    path = FOLDER / "lock"
    if mine:
        subprocess.Popen([sys.executable, "-c", HOLD, str(path)])
    while not (FOLDER / "lock.held").exists():
        time.sleep(0.05)
    return path


def lock_file(path: Path) -> None:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


# ---- one rank


@only(1, late(1, "opens_fifo"))
def opens_fifo() -> None:
    path = FOLDER / "fifo"
    os.mkfifo(path)
    with path.open("rb"):
        pass


@only(1, late(1, "fills_pipe"), 3)
def fills_pipe() -> None:
    """As a log that nobody reads."""
    read, write = os.pipe()
    while True:
        os.write(write, b"a line of the log\n")
        assert read


@only(1, late(1, "lock_file"), 3)
def waits_for_lock_of_another() -> None:
    lock_file(held_lock())


@only(1, late(1, "waits_for_key"), 3)
def waits_for_key() -> None:
    """That nobody sets."""
    store = dist.distributed_c10d._get_default_store()
    store.wait(["ready"], timedelta(seconds=FOREVER))


@only(1, late(1, "talks_to_child"), 3)
def talks_to_child() -> None:
    """Which is quiet, and goes on."""
    with subprocess.Popen(["sleep", str(FOREVER)], stdout=subprocess.PIPE) as child:
        child.communicate()


# A loop that looks and sleeps moves; and who takes the file away may be another rank.
@unclear(3, "rank 1 has not entered all_reduce #6 of default_pg")
def polls_for_file() -> None:
    """A lock that is a file; whoever made it is gone."""
    beat(STEPS)
    if RANK == 1:
        path = FOLDER / "cache.lock"
        path.touch()
        while path.exists():
            time.sleep(0.1)
    reduce()


@only(1, late(1, "waits_in_library"), 3)
def waits_in_library() -> None:
    """urlopen, from a server that takes the request and never answers it."""
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as reply:
            reply.read()


# ---- one rank keeps what the others want


@fault(3, standing(0, "prepare"))
def keeps_file_lock() -> None:
    """Rank 0 has the lock of the cache, and stands still with it."""
    beat(STEPS)
    path = FOLDER / "cache.lock"
    if RANK == 0:
        with path.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (FOLDER / "taken").touch()
            prepare()
    while not (FOLDER / "taken").exists():
        time.sleep(0.05)
    lock_file(path)


@fault(3, standing(0, "prepare"))
def owes_key() -> None:
    """The others wait until rank 0 has put a key into the store."""
    beat(STEPS)
    store = dist.distributed_c10d._get_default_store()
    if RANK == 0:
        prepare()
        store.set("ready", "1")
    store.wait(["ready"], timedelta(seconds=FOREVER))


# ---- all ranks


# Another process has the lock for which all ranks wait.
@unclear(2, "nothing has moved for")
def waits_for_file_lock() -> None:
    beat(STEPS)
    lock_file(held_lock(RANK == 0))


# All ranks wait for a writer that is none of them.
@unclear(3, "nothing has moved for")
def all_open_fifo() -> None:
    beat(STEPS)
    path = FOLDER / "fifo"
    with contextlib.suppress(FileExistsError):
        os.mkfifo(path)
    with path.open("rb"):
        pass


# All ranks wait for a reader that is none of them.
@unclear(3, "nothing has moved for")
def all_fill_pipe() -> None:
    beat(STEPS)
    _, write = os.pipe()
    while True:
        os.write(write, b"a line of the log\n")


# Who should have set the key is known to nobody.
@unclear(3, "nothing has moved for")
def all_wait_for_key() -> None:
    beat(STEPS)
    store = dist.distributed_c10d._get_default_store()
    store.wait(["ready"], timedelta(seconds=FOREVER))


# The children wait for a lock that a process outside the job has.
@unclear(3, "nothing has moved for")
def all_wait_for_children() -> None:
    """As where each rank starts a compiler that waits for its cache's lock."""
    beat(STEPS)
    path = held_lock(RANK == 0)
    subprocess.Popen(["flock", str(path), "true"]).wait()


# All ranks poll, and what they poll for is none of their business.
@unclear(3)
def all_poll_for_file() -> None:
    beat(STEPS)
    (FOLDER / "cache.lock").touch()
    while (FOLDER / "cache.lock").exists():
        time.sleep(0.1)
