"""Where a thread stands: in which line of the user's code, and in which call from there.

C functions leave no frame: a thread in ``time.sleep()``, ``lock.acquire()`` or ``work.wait()``
stands in the line that calls them. What the kernel says of the thread then tells some of them
apart; a stock worker's text doesn't hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.roles import WAITS, place

__all__ = ["Call", "Kind", "call", "dotted", "location", "main_thread", "stand"]

Kind = Literal[
    "backward",
    "collective",
    "computing",
    "data",
    "io",
    "library",
    "sleep",
    "stopped",
    "unknown",
    "wait",
]
"""collective: any function of torch.distributed. data: the next batch of a DataLoader. wait: for
another thread or process of the same host. library: in the code of one that isn't known to wait."""


class Call(NamedTuple):
    """*text*: short, and "" if nothing can be said."""

    kind: Kind
    text: str


def main_thread(threads: Sequence[Thread]) -> Thread | None:
    return next((thread for thread in threads if thread.main), None)


def location(threads: Sequence[Thread]) -> Frame | None:
    """The main thread's newest frame in the user's own code.

    Where all of it is installed (``python -m package``): the newest one in a package other than
    torch, else the newest one. None without a main thread, or without its frames.
    """
    main = main_thread(threads)
    return main.frames[_own(main.frames)] if main is not None and main.frames else None


def call(threads: Sequence[Thread]) -> str:
    """What the main thread does at its :func:`location`: ``torch.distributed.all_reduce``."""
    return stand(threads).text


def stand(threads: Sequence[Thread]) -> Call:
    """As :func:`call`, with its kind."""
    main = main_thread(threads)
    if main is None:
        return Call("unknown", "")
    known = _by_frames(main.frames)
    if known is not None:
        return known
    others = any(thread.holds_gil for thread in threads if thread is not main)
    return _by_kernel(main.state, main.wchan, others)


# ---- by frames


@lru_cache(maxsize=4096)
def _own(frames: tuple[Frame, ...]) -> int:
    """The number of the newest frame of the user's code, as :func:`location` has it."""
    package = None
    for index, frame in enumerate(frames):
        owner = place(frame.file).owner
        if owner == "user":
            return index
        if owner == "package" and package is None:
            package = index
    return package or 0


#: Of distributed_c10d.py; they stand between the call and what it is.
_WRAPPERS = frozenset({"wrapper", "inner", "decorate_context", "_fn"})
_C10D = "torch/distributed/distributed_c10d.py"

_NAMED: dict[tuple[str, str], Call] = {
    ("torch/utils/data/dataloader.py", "__next__"): Call("data", "next batch of a DataLoader"),
    ("torch/utils/data/dataloader.py", "__iter__"): Call("data", "start of a DataLoader"),
    ("torch/autograd/graph.py", "_engine_run_backward"): Call("backward", "backward pass"),
    ("torch/nn/parallel/distributed.py", "forward"): Call(
        "library", "DistributedDataParallel.forward"
    ),
    ("asyncio/base_events.py", "run_forever"): Call("wait", "asyncio event loop"),
    ("threading.py", "_shutdown"): Call("wait", "exit: joins threads"),
}
#: Which of several named ones on a stack says the most.
_ORDER: tuple[Kind, ...] = ("data", "backward", "library", "wait")

_IO = (
    "http/", "requests/", "shutil.py", "socket.py", "ssl.py", "subprocess.py", "tarfile.py",
    "torch/serialization.py", "urllib/", "urllib3/", "zipfile.py",
)  # fmt: skip
_WAITING = frozenset({*WAITS, "concurrent/futures/_base.py", "multiprocessing/popen_fork.py"})
#: Frames that only pass a call on.
_PASSING = frozenset(
    {"_call_impl", "_wrapped_call_impl", "decorate_context", "wrapper", "__call__"}
)


@lru_cache(maxsize=4096)
def _by_frames(frames: tuple[Frame, ...]) -> Call | None:
    """From the frames newer than the user's; None if there are none."""
    if not frames:
        return None
    own = _own(frames)
    if own == 0 and place(frames[0].file).owner != "library":
        return None
    # Oldest first: from the user's line inwards. Without a line of the user's, all of them.
    above = frames[own - 1 :: -1] if own else frames[::-1]
    places = [(place(frame.file).path, frame.function) for frame in above]
    collective = _collective(places)
    if collective:
        return Call("collective", collective)
    named = [_NAMED[each] for each in places if each in _NAMED]
    if named:
        return min(named, key=lambda each: _ORDER.index(each.kind))
    path, function = next((each for each in places if each[1] not in _PASSING), places[0])
    return Call(_kind_of(places), dotted(path, function))


def _collective(places: Sequence[tuple[str, str]]) -> str | None:
    """The outermost function of torch.distributed's own on the way in, a public one if possible."""
    private = None
    for path, function in places:
        if path == _C10D and function not in _WRAPPERS:
            if not function.startswith("_"):
                return f"torch.distributed.{function}"
            private = private or f"torch.distributed.{function}"
        elif path == "torch/distributed/_functional_collectives.py" and function == "wait_tensor":
            return "torch.distributed wait_tensor"
    return private


def _kind_of(places: Sequence[tuple[str, str]]) -> Kind:
    for path, _ in reversed(places):
        if path.startswith(_IO):
            return "io"
        if path in _WAITING:
            return "wait"
    return "library"


def dotted(path: str, function: str) -> str:
    """``torch/optim/adam.py`` and ``step`` as ``torch.optim.adam.step``; of private modules only
    the packages that they are in."""
    if path.startswith("<") or path == "???":
        return function
    parts = path.removesuffix(".py").split("/")
    return ".".join([*(part for part in parts if not part.startswith("_")), function])


# ---- by what the kernel says

_SLEEPS = ("hrtimer_nanosleep", "do_nanosleep", "common_nsleep")
_POLLS = ("poll_schedule", "do_poll", "do_sys_poll", "do_select", "ep_poll", "do_epoll_wait")
_CHILDREN = ("do_wait", "kernel_wait", "kernel_clone")
_SOCKETS = (
    "unix_stream",
    "unix_wait",
    "sk_",
    "__sk",
    "skb_",
    "__skb",
    "wait_woken",
    "inet_",
    "tcp_",
)
_DISKS = ("io_schedule", "folio_", "wait_on_page", "nfs", "rpc_", "fuse", "request_wait", "jbd2",
          "xfs", "ext4", "btrfs", "cl_sync", "ll_", "lustre", "submit_bio", "blk_")  # fmt: skip


def _by_kernel(state: str | None, wchan: str | None, gil_is_held: bool) -> Call:
    where = wchan or ""
    if state in ("T", "t"):
        return Call("stopped", "stopped by a signal or a debugger")
    if state == "R":
        return Call("computing", "computing")
    if where.startswith(_SLEEPS):
        return Call("sleep", "sleep")
    if where.startswith("futex"):
        # A thread that wants to run Python waits for the GIL in the same way.
        return Call("wait", "a lock, or the GIL" if gil_is_held else "a lock")
    if where.startswith(_POLLS):
        return Call("wait", "poll")
    if where.startswith(("pipe_", "anon_pipe")):
        return Call("io", "a pipe")
    if where.startswith(_SOCKETS):
        return Call("io", "a socket")
    if where.startswith(_CHILDREN):
        return Call("wait", "a child process")
    if state == "D" or where.startswith(_DISKS):
        return Call("io", "a disk or a network file system")
    if state == "S":
        return Call("wait", "waiting")
    return Call("unknown", "")
