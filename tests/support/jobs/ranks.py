"""Ranks made by hand: frames that most tests of stacks need, main threads, and states of ranks."""

from __future__ import annotations

from typing import Any

from workerserver.cluster.model import Frame, RankState, Thread, Worker

MODULE = Frame("/job/train.py", 90, "<module>")
STEP = Frame("/job/train.py", 40, "step")
LOAD = Frame("/job/data.py", 7, "load")
SITE = "/v/lib/python3.11/site-packages"
C10D = Frame(f"{SITE}/torch/distributed/distributed_c10d.py", 3252, "all_reduce")
LOGGER = Frame(f"{SITE}/torch/distributed/c10d_logger.py", 83, "wrapper")
THREADING = "/usr/lib/python3.11/threading.py"
WAIT = Frame(THREADING, 327, "wait")
REDUCE = (C10D, LOGGER, STEP, MODULE)


def main(*frames: Frame, **more: Any) -> Thread:
    return Thread(frames, "MainThread", main=True, **more)


def state(rank: int | None, *threads: Thread, **more: Any) -> RankState:
    worker = Worker(f"/r{rank}.sock", True, rank)
    return RankState(worker, rank, threads=threads, responded=True, **more)
