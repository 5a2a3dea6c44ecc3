"""Whose code a frame is, and what a thread is there for, told from names and frames alone.

Nothing is known of the other machine's folders, so files are told apart by how paths look.

Seen is what runs Python. The C++ threads of torch and NCCL (the watchdog, the heartbeat monitor,
an autograd thread between two hooks) have no Python frames, so they appear only where the kernel
lists threads (mode "kernel"), by the names that they give themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame, Thread
from workerserver.process.own import PACKAGE, own_path

__all__ = [
    "WAITS",
    "Place",
    "Role",
    "busy",
    "is_idle",
    "is_library",
    "place",
    "role",
    "roles",
]

Owner = Literal["user", "package", "library"]
"""package: somebody's installed package, or code made from a string. library: Python's own, torch
and workerserver."""


class Place(NamedTuple):
    """Whose file it is. *path* is without what is this machine's: ``torch/nn/modules/linear.py``,
    ``threading.py``; a user's file is as it was. *file*: the same for every machine, too, and of
    the same place."""

    owner: Owner
    path: str
    file: str


_PACKAGES = re.compile(r"(?:.*/)?(?:site|dist)-packages/(.+)\Z", re.DOTALL)
_STANDARD = re.compile(
    r"(?:.*/)?(?:lib|lib64)/(?:python3|python3\.\d{1,2}t?|python3\d{1,2}\.zip)/(.+)\Z", re.DOTALL
)
#: torch where it is worked on: not below site-packages.
_TORCH = re.compile(
    r".*/(torch/(?:_dynamo|_inductor|_functorch|_prims|_decomp|_higher_order_ops|autograd|cuda|"
    r"distributed|fx|jit|nn/modules|nn/parallel|nn/functional\.py|nn/utils|optim|profiler|sparse|"
    r"multiprocessing|utils/_\w+\.py|utils/data|utils/checkpoint\.py|utils/hooks\.py|"
    r"utils/tensorboard|serialization\.py|functional\.py|overrides\.py|_ops\.py|_tensor\.py|"
    r"_compile\.py|accelerator|amp|library\.py)(?:/.*)?)\Z",
    re.DOTALL,
)
#: Written by torch.compile: ``/tmp/torchinductor_root/ab/cab….py``.
_COMPILED = re.compile(r".*/(torchinductor_[^/]+/.+)\Z", re.DOTALL)
#: No files, and yet the user's: what was typed.
_TYPED = ("<stdin>", "<ipython-input", "<python-input")


@lru_cache(maxsize=8192)
def place(file: str) -> Place:
    if file.startswith(_TYPED):
        return Place("user", file, file)
    if file.startswith("<"):
        return Place("library" if file.startswith("<frozen ") else "package", _frozen(file), file)
    if file == "???":
        return Place("library", file, file)
    if match := _PACKAGES.match(file):
        return _installed(match[1])
    if match := _STANDARD.match(file):
        return Place("library", match[1], f"lib/python3/{match[1]}")
    if match := _TORCH.match(file):
        return _installed(match[1])
    if (path := own_path(file)) is not None:
        return _installed(f"{PACKAGE}/{path}")
    if match := _COMPILED.match(file):
        return _installed("torchinductor/" + match[1].rpartition("/")[2])
    return Place("user", file, file)


def _installed(path: str) -> Place:
    ours = path.startswith(("torch/", "torchinductor/", f"{PACKAGE}/"))
    return Place("library" if ours else "package", path, f"site-packages/{path}")


def _frozen(file: str) -> str:
    """``<frozen importlib._bootstrap>`` and ``<frozen runpy>`` as the files that they come from."""
    if file.startswith("<frozen ") and file.endswith(">"):
        return file[8:-1].replace(".", "/") + ".py"
    return file


def is_library(frame: Frame) -> bool:
    """Whether *frame* is not the user's own code: folded when a stack is shown."""
    return place(frame.file).owner != "user"


# ---- roles

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
    "other",
    "pool",
    "queue feeder",
    "store",
    "workerserver",
]
"""dataloader: the pin-memory thread, or a worker. queue feeder: what multiprocessing's queues write
through; DataLoader has one for each worker. pool: concurrent.futures and multiprocessing.pool.
workerserver: ours, or that of torch's own server."""

#: By name. What names itself ``pt_…`` is C++ of torch, cut by the kernel to 15 characters.
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

#: By whose code the thread was given to run: its oldest frame beyond Python's own library.
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
    ("debugpy/", "debugger"),
    ("_pydevd_", "debugger"),
    ("pydevd", "debugger"),
)

#: Never what a job waits for: not shown, unless one of them keeps the GIL.
_BACKGROUND = frozenset({"debugger", "logging"})

#: Where Python's library waits: modules that do nothing else while they are the newest frames.
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


def role(thread: Thread) -> Role:
    """What *thread* is there for, as far as it shows by itself."""
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
        path = place(frame.file).path
        loop = _LOOPS.get((path, frame.function))
        if loop is not None:
            return loop
        pool = pool or (path, frame.function) in _POOLS
        if owner is None and not _is_standard(frame.file):
            owner = path
            for start, owned in _OWNERS:
                if path.startswith(start):
                    return owned
    return "pool" if pool else "other"


def _is_standard(file: str) -> bool:
    """Python's own library, and what has no file at all."""
    return file.startswith("<") or bool(_STANDARD.match(file) and not _PACKAGES.match(file))


def roles(threads: Sequence[Thread]) -> list[Role]:
    """The role of each, told also from the others: while the main thread is in a backward pass, a
    thread that no Python code started runs its hooks."""
    found = [role(thread) for thread in threads]
    main = next((thread for thread in threads if thread.main), None)
    if main is not None and any(frame.function == "_engine_run_backward" for frame in main.frames):
        for index, thread in enumerate(threads):
            if found[index] == "other" and thread.frames and _is_foreign(thread):
                found[index] = "autograd"
    return found


def _is_foreign(thread: Thread) -> bool:
    """Whether C++ started it: threading doesn't know it, or only since it asked for itself."""
    oldest = thread.frames[-1]
    return (
        (thread.name is None or thread.name.startswith("Dummy-"))
        and not thread.truncated
        and not (oldest.function == "_bootstrap" and place(oldest.file).path == "threading.py")
    )


# ---- idle or not


def is_idle(thread: Thread, its_role: Role | None = None) -> bool:
    """Whether it only waits in the place where threads of its role wait for work.

    A C function that a pool was given directly (``pool.apply(time.sleep)``) leaves no frame of its
    own, so that thread looks idle unless the kernel says where it sleeps.
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
    return _stands_idle(thread.frames)


@lru_cache(maxsize=4096)
def _stands_idle(frames: tuple[Frame, ...]) -> bool:
    for frame in frames:
        path, function = place(frame.file).path, frame.function
        if (path, function) == ("multiprocessing/queues.py", "_feed"):
            return place(frames[0].file).path == "threading.py"  # else it writes: the pipe is full
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
#: Between the loop and where it waits.
_STEPS = frozenset(
    {
        ("multiprocessing/pool.py", "_wait_for_updates"),
        ("concurrent/futures/process.py", "wait_result_broken_or_wakeup"),
        ("torch/_inductor/compile_worker/subproc_pool.py", "_recv_msg"),
        ("torch/utils/data/_utils/pin_memory.py", "do_one_step"),
    }
)


def busy(threads: Sequence[Thread]) -> list[tuple[Role, Thread]]:
    """The main thread, and those that do something, with their roles."""
    pairs = zip(roles(threads), threads, strict=True)
    return [(each, thread) for each, thread in pairs if not is_idle(thread, each)]
