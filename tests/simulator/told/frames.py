"""Python stacks, as CPython 3.11 and torch 2.13 have them: which frames of the libraries lie above
the user's line, and what the kernel says of the thread. tests/simulator/recorded has real ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from ..job.machine import Thread
from ..job.program import Op

__all__ = ["LIBRARY", "ROOTS", "Stack", "stack_of"]

SITE = "/usr/lib/python3.11/site-packages/"
STD = "/usr/lib/python3.11/"
USER = "/home/user/train.py"

FUTEX = ("S", "futex_do_wait")
SLEEP = ("S", "hrtimer_nanosleep")
POLL = ("S", "poll_schedule_timeout.constprop.0")
RUNS = ("R", None)

FrameLike = tuple[str, int, str, str]
Kernel = tuple[str, str | None]


def _c10d(line: int, function: str) -> FrameLike:
    return (SITE + "torch/distributed/distributed_c10d.py", line, function, function)


def _std(file: str, line: int, qualname: str) -> FrameLike:
    return (STD + file, line, qualname.rpartition(".")[2], qualname)


def _torch(file: str, line: int, qualname: str) -> FrameLike:
    return (SITE + "torch/" + file, line, qualname.rpartition(".")[2], qualname)


_LOGGED: FrameLike = (
    SITE + "torch/distributed/c10d_logger.py", 83, "wrapper", "_exception_logger.<locals>.wrapper",
)  # fmt: skip
_TIMED: FrameLike = (
    SITE + "torch/distributed/c10d_logger.py", 97, "wrapper", "_time_logger.<locals>.wrapper",
)  # fmt: skip
_DEPRECATED: FrameLike = (
    SITE + "typing_extensions.py", 3140, "wrapper", "deprecated.__call__.<locals>.wrapper",
)  # fmt: skip
_WAIT = _std("threading.py", 327, "Condition.wait")

#: The frames above the user's line, newest first, and what the kernel says; by the operation's
#: name or kind. Calls of C leave no frame.
LIBRARY: dict[str, tuple[tuple[FrameLike, ...], Kernel]] = {
    "all_reduce": ((_c10d(3252, "all_reduce"), _LOGGED), FUTEX),
    "broadcast": ((_c10d(3151, "broadcast"), _LOGGED), FUTEX),
    "barrier": ((_c10d(5356, "barrier"), _LOGGED), FUTEX),
    "all_gather": ((_c10d(4287, "all_gather"), _LOGGED), FUTEX),
    "all_gather_into_tensor": (
        (
            _c10d(4394, "all_gather_single"),
            _LOGGED,
            _c10d(4413, "all_gather_into_tensor"),
            _DEPRECATED,
            _LOGGED,
        ),
        FUTEX,
    ),
    "reduce_scatter_tensor": (
        (
            _c10d(4943, "reduce_scatter_single"),
            _LOGGED,
            _c10d(4962, "reduce_scatter_tensor"),
            _DEPRECATED,
            _LOGGED,
        ),
        FUTEX,
    ),
    "all_gather_object": (
        (_c10d(4287, "all_gather"), _LOGGED, _c10d(3513, "all_gather_object"), _LOGGED),
        FUTEX,
    ),
    "all_gather_object data": (
        (_c10d(4287, "all_gather"), _LOGGED, _c10d(3525, "all_gather_object"), _LOGGED),
        FUTEX,
    ),
    "monitored": ((_c10d(5435, "monitored_barrier"),), FUTEX),
    "send": ((_c10d(2753, "send"), _LOGGED), FUTEX),
    "recv": ((_c10d(2799, "recv"), _LOGGED), FUTEX),
    "new_group": (
        (
            _c10d(2169, "_new_process_group_helper"),
            _c10d(6056, "_new_group_with_tag"),
            _c10d(5863, "new_group"),
            _TIMED,
        ),
        POLL,
    ),
    "store_wait": ((), POLL),
    "wait": ((), FUTEX),
    "poll": ((), SLEEP),
    "synchronize": ((_torch("cuda/__init__.py", 1219, "synchronize"),), RUNS),
    "event": ((_torch("cuda/streams.py", 254, "Event.synchronize"),), FUTEX),
    "item": ((), RUNS),
    "sleep": ((), SLEEP),
    "lock": ((), FUTEX),
    "acquire": ((), FUTEX),
    "await": ((_WAIT, _std("threading.py", 629, "Event.wait")), FUTEX),
    "condition": ((_WAIT,), FUTEX),
    "get": ((_WAIT, _std("queue.py", 171, "Queue.get")), FUTEX),
    "join": (
        (
            _std("threading.py", 1139, "Thread._wait_for_tstate_lock"),
            _std("threading.py", 1119, "Thread.join"),
        ),
        FUTEX,
    ),
    "result": ((_WAIT, _std("concurrent/futures/_base.py", 451, "Future.result")), FUTEX),
    "child": (
        (
            _std("subprocess.py", 2004, "Popen._try_wait"),
            _std("subprocess.py", 2046, "Popen._wait"),
            _std("subprocess.py", 1264, "Popen.wait"),
            _std("subprocess.py", 1201, "Popen.communicate"),
            _std("subprocess.py", 550, "run"),
        ),
        ("S", "do_wait"),
    ),
    "open": ((_std("pathlib.py", 1044, "Path.open"),), ("S", "wait_for_partner")),
    "flock": ((), ("S", "locks_lock_inode_wait")),
    "write": (
        (_torch("serialization.py", 1312, "_save"), _torch("serialization.py", 1003, "save")),
        ("S", "anon_pipe_write"),
    ),
    "data": (
        (
            _std("selectors.py", 415, "_PollLikeSelector.select"),
            _std("multiprocessing/connection.py", 947, "wait"),
            _std("multiprocessing/connection.py", 440, "Connection._poll"),
            _std("multiprocessing/connection.py", 257, "_ConnectionBase.poll"),
            _std("multiprocessing/queues.py", 113, "Queue.get"),
            _torch(
                "utils/data/dataloader.py", 1291, "_MultiProcessingDataLoaderIter._try_get_data"
            ),
            _torch("utils/data/dataloader.py", 1464, "_MultiProcessingDataLoaderIter._get_data"),
            _torch("utils/data/dataloader.py", 1505, "_MultiProcessingDataLoaderIter._next_data"),
            _torch("utils/data/dataloader.py", 725, "_BaseDataLoaderIter.__next__"),
        ),
        POLL,
    ),
    "gil": ((), SLEEP),
    "ended": ((), SLEEP),
}

#: What a computing thread goes through: frames above the user's line, and how far the line moves.
_LAYER = (
    _torch("nn/modules/linear.py", 134, "Linear.forward"),
    _torch("nn/modules/module.py", 1789, "Module._call_impl"),
    _torch("nn/modules/module.py", 1778, "Module._wrapped_call_impl"),
)
_BACKWARD = (
    _torch("autograd/graph.py", 979, "_engine_run_backward"),
    _torch("autograd/__init__.py", 395, "backward"),
    _torch("_tensor.py", 623, "Tensor.backward"),
)
_COMPUTING: tuple[tuple[tuple[FrameLike, ...], int, Kernel], ...] = (
    ((), 0, FUTEX),  # it wants the GIL, which somebody has for the look
    (_LAYER, 1, RUNS),
    ((), 1, RUNS),
    (_BACKWARD, 2, RUNS),
)
#: A file grows: from Python, and from within the kernel.
_WRITING: tuple[tuple[tuple[FrameLike, ...], int, Kernel], ...] = (
    (LIBRARY["write"][0], 0, ("D", "folio_wait_bit_common")),
    (LIBRARY["write"][0], 0, ("R", None)),
    ((_torch("serialization.py", 1298, "_save"), *LIBRARY["write"][0][1:]), 0, RUNS),
)

#: The oldest frames of a thread.
_BOOTSTRAP = (
    _std("threading.py", 982, "Thread.run"),
    _std("threading.py", 1045, "Thread._bootstrap_inner"),
    _std("threading.py", 1002, "Thread._bootstrap"),
)
ROOTS: dict[bool, tuple[FrameLike, ...]] = {
    True: ((USER, 300, "main", "main"), (USER, 310, "<module>", "<module>")),
    False: _BOOTSTRAP,
}
#: User functions through which a thread comes to its line.
_PATHS = {
    "main": ((USER, 210, "train", "train"),),
    "consume": (),
    "refresh": (),
    "save_all": (),
    "help": (),
}


class Stack(NamedTuple):
    """*frames*: (file, line, function, qualname), newest first. *text*: faulthandler's lines.
    *number*: the same for equal stacks, another one for others."""

    frames: tuple[FrameLike, ...]
    json: list[dict[str, Any]]
    text: str
    number: int


_numbers: dict[tuple[FrameLike, ...], int] = {}


@lru_cache(maxsize=65536)
def _stack(
    library: tuple[FrameLike, ...], function: str, line: int, root: str, main: bool
) -> Stack:
    user: list[FrameLike] = [(USER, line, function, function)]
    user += _PATHS[root]
    if not main and root == "main":
        user.append((USER, 280, "run_training", "run_training"))
    if function == root and not main:
        user = user[:1]
    elif root != "main":
        user.append((USER, 250, root, root))
    frames = (*library, *user, *ROOTS[main])
    described = [
        {"file": file, "line": at, "function": name, "qualname": qualname}
        for file, at, name, qualname in frames
    ]
    lines = [f'  File "{file}", line {at} in {name}\n' for file, at, name, _ in frames]
    number = _numbers.setdefault(frames, len(_numbers))
    return Stack(frames, described, "".join(lines), number)


def stack_of(thread: Thread, now: float) -> tuple[Stack, Kernel]:
    """Where *thread* stands at the time *now*, and what the kernel says."""
    op, main = thread.op, thread.strand.name == "main"
    root = thread.strand.root
    if op is None:
        return _stack((), "wait_for_the_end", 290, root, main), SLEEP
    function, line = op.place
    library: tuple[FrameLike, ...]
    kernel: Kernel
    if op.kind == "compute" and thread.state != "frozen":
        turn = (int(now * 997) * 7 + thread.rank.number * 3) % 4
        library, moved, kernel = _COMPUTING[turn]
        return _stack(library, function, line + moved, root, main), kernel
    if op.kind == "write" and op.key != "still":
        library, moved, kernel = _WRITING[int(now * 997) % 3]
        return _stack(library, function, line, root, main), kernel
    library, kernel = LIBRARY.get(_name(op, thread), ((), FUTEX))
    if op.kind == "call" and thread.in_stream:
        kernel = RUNS
    if op.kind == "poll" and int(now * 613) % 4 == 0:
        return _stack(library, function, line - 1, root, main), FUTEX
    return _stack(library, function, line, root, main), kernel


def _name(op: Op, thread: Thread) -> str:
    """Under what the table has it. What waits for its turn on NCCL's stream has already returned,
    so nobody is ever seen in its call."""
    if op.kind == "call":
        return op.name
    if op.kind == "sync":
        return op.name
    if op.kind in ("issue", "isend", "irecv", "batch"):
        return "wait"
    return op.kind
