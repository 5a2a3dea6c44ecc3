"""What a thread is there for, told from its name and its frames.

Only threads that run Python have frames. The C++ threads of torch and NCCL (the watchdog, the
heartbeat monitor, an autograd thread between two hooks) have none. They appear only where the
kernel lists the threads (mode "kernel"), by the names that they give themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.owners import code_file, is_standard
from workerserver.process.own import PACKAGE

__all__ = ["WAITS", "Role", "busy", "is_idle", "main_thread", "role", "roles"]

Role = Literal[
    "main",
    "autograd",
    "checkpoint",
    "compile",
    "cuda",
    "dataloader",
    "debugger",
    "elastic",
    "event loop",
    "gloo",
    "logging",
    "nccl",
    "nccl watchdog",
    "notebook",
    "other",
    "pool",
    "queue feeder",
    "store",
    "workerserver",
]
"""dataloader: the pin-memory thread, or a worker. queue feeder: the thread that writes into a queue
of multiprocessing; a DataLoader has one for each worker. notebook: of the kernel itself. pool:
concurrent.futures and multiprocessing.pool. workerserver: ours, or that of torch's own server."""

#: By name. Threads named ``pt_…`` are C++ of torch. The kernel cuts names to 15 characters.
_NAMES: tuple[tuple[str, Role], ...] = (
    ("workerserver", "workerserver"),
    ("pt_workerserver", "workerserver"),
    ("pt_autograd", "autograd"),
    ("pt_data_", "dataloader"),
    ("pt_nccl_watchdg", "nccl watchdog"),
    ("pt_nccl_heartbt", "nccl watchdog"),
    ("pt_nccl", "nccl"),
    ("NCCL ", "nccl"),
    ("pt_gloo", "gloo"),
    ("pt_tcpstore", "store"),
    ("cuda-", "cuda"),
    ("cuda0", "cuda"),
    ("QueueFeederThread", "queue feeder"),
    ("AsyncCheckpointExecutor", "checkpoint"),
    ("ThreadPoolExecutor-", "pool"),
)

#: By a function that runs the whole thread.
_LOOPS: dict[tuple[str, str], Role] = {
    ("torch/utils/data/_utils/pin_memory.py", "_pin_memory_loop"): "dataloader",
    ("torch/utils/data/_utils/worker.py", "_worker_loop"): "dataloader",
    ("multiprocessing/queues.py", "_feed"): "queue feeder",
    ("logging/handlers.py", "_monitor"): "logging",
    ("asyncio/base_events.py", "run_forever"): "event loop",
}
_POOLS: dict[tuple[str, str], Role] = {
    ("concurrent/futures/thread.py", "_worker"): "pool",
    ("concurrent/futures/process.py", "run"): "pool",
    ("multiprocessing/pool.py", "worker"): "pool",
    ("multiprocessing/pool.py", "_handle_workers"): "pool",
    ("multiprocessing/pool.py", "_handle_tasks"): "pool",
    ("multiprocessing/pool.py", "_handle_results"): "pool",
}

#: By the code that the thread was given to run: its oldest frame outside of Python's library.
_OWNERS: tuple[tuple[str, Role], ...] = (
    (f"{PACKAGE}/", "workerserver"),
    ("torch/_inductor/", "compile"),
    ("torch/autograd/", "autograd"),
    ("torch/distributed/checkpoint/", "checkpoint"),
    ("torch/distributed/elastic/", "elastic"),
    ("torch/utils/tensorboard/", "logging"),
    ("tensorboard/", "logging"),
    ("tensorboardX/", "logging"),
    ("tqdm/", "logging"),
    ("wandb/", "logging"),
    ("mlflow/", "logging"),
    ("ipykernel/", "notebook"),
    ("IPython/", "notebook"),
    ("zmq/", "notebook"),
    ("debugpy/", "debugger"),
    ("_pydevd_", "debugger"),
    ("pydevd", "debugger"),
)

#: A job never waits for these. They are shown only if one of them keeps the GIL.
_BACKGROUND = frozenset({"debugger", "logging", "notebook"})

#: Modules of Python's library that wait: they do nothing else while they are the newest frames.
WAITS = frozenset(
    {
        "multiprocessing/connection.py",
        "multiprocessing/queues.py",
        "multiprocessing/synchronize.py",
        "queue.py",
        "selectors.py",
        "threading.py",
    }
)


def main_thread(threads: Sequence[Thread]) -> Thread | None:
    return next((thread for thread in threads if thread.main), None)


def role(thread: Thread) -> Role:
    """What *thread* is there for, as far as it can be told from that thread alone."""
    if thread.main:
        return "main"
    name = thread.name or ""
    for start, named in _NAMES:
        if name.startswith(start) and named != "pool":
            return named
    return _role_by_frames(thread.frames)


@lru_cache(maxsize=4096)
def _role_by_frames(frames: tuple[Frame, ...]) -> Role:
    owner: str | None = None
    pool = False
    for frame in reversed(frames):
        path = code_file(frame.file).path
        loop = _LOOPS.get((path, frame.function))
        if loop is not None:
            return loop
        pool = pool or (path, frame.function) in _POOLS
        if owner is None and not is_standard(frame.file):
            owner = path
            for start, owned in _OWNERS:
                if path.startswith(start):
                    return owned
    return "pool" if pool else "other"


def roles(threads: Sequence[Thread]) -> list[Role]:
    """The role of each thread, told from all of them: while the main thread is in a backward pass,
    a thread that no Python code started runs the hooks of that pass."""
    found = [role(thread) for thread in threads]
    main = main_thread(threads)
    if main is not None and any(frame.function == "_engine_run_backward" for frame in main.frames):
        for index, thread in enumerate(threads):
            if found[index] == "other" and thread.frames and _is_foreign(thread):
                found[index] = "autograd"
    return found


def _is_foreign(thread: Thread) -> bool:
    """Whether C++ started it. ``threading`` does not know such a thread, or has made a "Dummy-"
    for it because the thread asked for itself."""
    oldest = thread.frames[-1]
    return (
        (thread.name is None or thread.name.startswith("Dummy-"))
        and not thread.truncated
        and not (oldest.function == "_bootstrap" and code_file(oldest.file).path == "threading.py")
    )


# ---- idle or not


def is_idle(thread: Thread, its_role: Role | None = None) -> bool:
    """Whether *thread* only waits, where threads of its role wait for work.

    A pool may run a C function directly (``pool.apply(time.sleep)``). Such a call leaves no frame.
    The thread then looks idle, unless the kernel says that it sleeps.
    """
    its_role = its_role or role(thread)
    if its_role == "main":
        return False
    if its_role == "workerserver":
        return True
    if thread.holds_gil:
        return False
    if its_role in _BACKGROUND or not thread.frames:
        return True
    if thread.wchan is not None and "nanosleep" in thread.wchan:
        return False
    return _waits_for_work(thread.frames)


@lru_cache(maxsize=4096)
def _waits_for_work(frames: tuple[Frame, ...]) -> bool:
    for frame in frames:
        path, function = code_file(frame.file).path, frame.function
        if (path, function) == ("multiprocessing/queues.py", "_feed"):
            # Else it writes: the pipe is full.
            return code_file(frames[0].file).path == "threading.py"
        if (path, function) in _POOLS or (path, function) in _IDLE:
            return True
        if path not in WAITS and (path, function) not in _STEPS:
            return False
    return True  # nothing but waiting: a timer, a join


#: Idle if all newer frames wait.
_IDLE = frozenset(
    {
        ("asyncio/base_events.py", "_run_once"),
        ("torch/_inductor/compile_worker/subproc_pool.py", "_read_thread"),
        ("torch/utils/data/_utils/pin_memory.py", "_pin_memory_loop"),
        ("torch/utils/data/_utils/worker.py", "_worker_loop"),
    }
)
#: Frames between the loop and the place where it waits.
_STEPS = frozenset(
    {
        ("multiprocessing/pool.py", "_wait_for_updates"),
        ("concurrent/futures/process.py", "wait_result_broken_or_wakeup"),
        ("torch/_inductor/compile_worker/subproc_pool.py", "_recv_msg"),
        ("torch/utils/data/_utils/pin_memory.py", "do_one_step"),
    }
)


def busy(threads: Sequence[Thread]) -> list[tuple[Role, Thread]]:
    """The threads that do something, the main thread always, with their roles."""
    pairs = zip(roles(threads), threads, strict=True)
    return [(each, thread) for each, thread in pairs if not is_idle(thread, each)]
