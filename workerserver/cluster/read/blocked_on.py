"""What a thread is blocked on: other ranks, a thread of its own process, the kernel, or nothing.

:data:`TABLE` is the one list of the library calls that tell. The frames that count are those newer
than the newest line of the user's own code: what that line has called.

C functions leave no frame. A thread in ``time.sleep()``, ``lock.acquire()`` or ``work.wait()``
appears at the user's line that calls them. Then only the kernel tells what the thread is blocked
on. The text of a stock worker does not hold that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.owners import code_file, dotted
from workerserver.cluster.read.roles import WAITS, main_thread

__all__ = ["TABLE", "UNKNOWN", "Blocked", "Kind", "blocked_on"]

Kind = Literal[
    "collective",
    "p2p",
    "rendezvous",
    "dataloader",
    "shutdown",
    "lock",
    "backward",
    "wait",
    "io",
    "sleep",
    "stopped",
    "computing",
    "library",
    "unknown",
]
"""collective: any other function of torch.distributed. rendezvous: init_process_group, new_group
and the like, where ranks wait for each other, too. lock: a lock, condition, thread or queue of
Python's threading and queue. wait: another thread or process of the same host. library: code of a
library that is not known to wait."""


class Rule(NamedTuple):
    """A library call, and what a thread in it is blocked on.

    *function* None: every function of the file. *call*: what people call it; None if the name of
    the function says it. *works*: the call computes, too, so that a later look may find the thread
    blocked on something else though the user's line is the same.
    """

    path: str
    function: str | None
    kind: Kind
    call: str | None = None
    works: bool = False


_C10D = "torch/distributed/distributed_c10d.py"
_LOADER = "torch/utils/data/dataloader.py"


def _rules(path: str, kind: Kind, *functions: str) -> Iterable[Rule]:
    return (Rule(path, function, kind) for function in functions)


#: In order: of several rules that match frames of one stack, the first group of rules decides; in a
#: group the outermost frame decides, and a rule with a function goes before one without.
TABLE: tuple[tuple[Rule, ...], ...] = (
    (
        *_rules(
            _C10D,
            "shutdown",
            "destroy_process_group",
            "_shutdown_backend",
            "_abort_process_group",
        ),
        *_rules(
            _C10D,
            "rendezvous",
            "init_process_group",
            "new_group",
            "_new_group_with_tag",
            "_new_process_group_helper",
            "split_group",
            "_store_based_barrier",
            "new_subgroups",
            "new_subgroups_by_enumeration",
            "rendezvous",
        ),
        *_rules(
            _C10D,
            "p2p",
            "send",
            "recv",
            "isend",
            "irecv",
            "batch_isend_irecv",
            "send_object_list",
            "recv_object_list",
        ),
        Rule(_C10D, None, "collective"),
        Rule("torch/distributed/rendezvous.py", None, "rendezvous"),
        Rule(
            "torch/distributed/_functional_collectives.py",
            "wait_tensor",
            "collective",
            "torch.distributed wait_tensor",
        ),
    ),
    (
        Rule(_LOADER, "__next__", "dataloader", "next batch of a DataLoader"),
        Rule(_LOADER, "__iter__", "dataloader", "start of a DataLoader"),
        Rule(_LOADER, None, "dataloader"),
    ),
    (Rule("threading.py", "_shutdown", "shutdown", "exit: joins threads"),),
    tuple(
        rule
        for path in ("threading.py", "queue.py")
        for rule in _rules(
            path,
            "lock",
            "acquire",
            "__enter__",
            "wait",
            "wait_for",
            "join",
            "_wait_for_tstate_lock",
            "get",
            "put",
        )
    ),
    (
        Rule(
            "torch/autograd/graph.py",
            "_engine_run_backward",
            "backward",
            "backward pass",
            works=True,
        ),
    ),
    (
        Rule(
            "torch/nn/parallel/distributed.py",
            "forward",
            "library",
            "DistributedDataParallel.forward",
            works=True,
        ),
    ),
    (Rule("asyncio/base_events.py", "run_forever", "wait", "asyncio event loop", works=True),),
)

#: By path and function: the number of the rule's group, and the rule.
_BY_CALL = {
    (rule.path, rule.function): (number, rule)
    for number, rules in enumerate(TABLE)
    for rule in rules
}
#: What the rules of these kinds say is true whatever the called library calls in turn.
_DECISIVE = frozenset({"collective", "p2p", "rendezvous", "dataloader", "lock", "shutdown"})

#: Of distributed_c10d.py: these frames stand between a call and what it does.
_WRAPPERS = frozenset({"wrapper", "inner", "decorate_context", "_fn"})
#: Frames that only pass a call on.
_PASSING = frozenset(
    {"_call_impl", "_wrapped_call_impl", "decorate_context", "wrapper", "__call__"}
)

#: Files of which every function waits; the newest frame that is in one of them tells.
_IO = (
    "http/", "requests/", "shutil.py", "socket.py", "ssl.py", "subprocess.py", "tarfile.py",
    "torch/serialization.py", "urllib/", "urllib3/", "zipfile.py",
)  # fmt: skip
_WAITING = frozenset({*WAITS, "concurrent/futures/_base.py", "multiprocessing/popen_fork.py"})


@dataclass(frozen=True, slots=True)
class Blocked:
    """What a worker's main thread is blocked on.

    *call*: in words; "" if nothing can be said. *location*: the thread's newest frame in the user's
    own code. Where all code is installed (``python -m package``), the newest frame in a package
    other than torch, else the newest frame. *own*: *location* is the user's own code.
    """

    kind: Kind
    call: str = ""
    location: Frame | None = None
    own: bool = False
    works: bool = False
    thread: Thread | None = None
    helped: bool = False
    """Another thread is in a collective: the main thread may wait for that thread."""

    @property
    def on_ranks(self) -> bool:
        """It surely waits for other ranks."""
        return self.kind in ("collective", "p2p", "rendezvous")

    @property
    def on_no_rank(self) -> bool:
        """It surely waits for no other rank, whatever it has issued before."""
        if self.location is None or self.on_ranks or self.helped:
            return False
        return self.kind in ("sleep", "dataloader", "lock", "shutdown")

    @property
    def polls(self) -> bool:
        """It may wait in turns, through changing lines of the library: a wait with a timeout."""
        return not self.works and (self.on_ranks or self.kind in ("dataloader", "lock", "wait"))

    @property
    def known(self) -> bool:
        """Its stack tells where it is: in the user's code, or in a call that is known to wait."""
        return self.own or (self.location is not None and self.kind in _DECISIVE)

    @property
    def inside(self) -> bool:
        """It is not at the user's own line, but in a call from there."""
        return not self.own or self.thread is None or self.location is not self.thread.frames[0]


UNKNOWN = Blocked("unknown")


def blocked_on(threads: Sequence[Thread]) -> Blocked:
    """What the main thread of *threads* is blocked on."""
    thread = main_thread(threads)
    if thread is None:
        return UNKNOWN
    told = _by_frames(thread.frames)
    kind, call = told.kind, told.call
    if kind is None:
        others = any(each.holds_gil for each in threads if each is not thread)
        kind, call = _by_kernel(thread.state, thread.wchan, others)
    return Blocked(
        kind,
        call,
        thread.frames[told.line] if thread.frames else None,
        told.own,
        told.works,
        thread,
        any(
            _by_frames(each.frames).kind in ("collective", "p2p")
            for each in threads
            if each is not thread
        ),
    )


# ---- by frames


class _Told(NamedTuple):
    """What frames alone tell. *line*: the number of the newest frame of the user's code. *kind*
    None: no library has been called from there."""

    line: int
    own: bool
    kind: Kind | None
    call: str = ""
    works: bool = False


CallSite = tuple[str, str]
"""A frame's file, as its owner calls it, and its function."""


class _Match(NamedTuple):
    """*group*: the number of the rule's group. *frame*: its number, from the outermost one."""

    group: int
    frame: int
    rule: Rule


@lru_cache(maxsize=8192)
def _by_frames(frames: tuple[Frame, ...]) -> _Told:
    line, own = _users_line(frames)
    everything = [(code_file(frame.file).path, frame.function) for frame in reversed(frames)]
    if line or (frames and code_file(frames[0].file).owner == "library"):
        # Outermost first. Without any code of the user's, all of the stack.
        called = everything[len(frames) - line :] or everything
    else:
        called = []
    if own:
        everything = called
    found = _matching(called, everything)
    if not found and not called:
        return _Told(line, own, None)
    kind = found[0].rule.kind if found else _by_files(called)
    works = found[0].group > 1 and any(each.rule.works for each in found) if found else False
    return _Told(line, own, kind, _in_words(called, everything, found), works)


def _in_words(
    called: Sequence[CallSite], everything: Sequence[CallSite], found: Sequence[_Match]
) -> str:
    if found and found[0].group == 0 and (name := _function_of_torch(everything)) is not None:
        return name
    for each in found:
        if each.rule.call is not None:
            return each.rule.call
    places = called or [everything[found[0].frame]]
    return dotted(*next((each for each in places if each[1] not in _PASSING), places[0]))


def _users_line(frames: Sequence[Frame]) -> tuple[int, bool]:
    """The number of the newest frame of the user's code, and whether it is the user's own."""
    package = None
    for index, frame in enumerate(frames):
        owner = code_file(frame.file).owner
        if owner == "user":
            return index, True
        if owner == "package" and package is None:
            package = index
    return package or 0, False


def _matching(called: Sequence[CallSite], everything: Sequence[CallSite]) -> list[_Match]:
    """The rules that match, the one that decides first."""
    found: list[_Match] = []
    for index, (path, function) in enumerate(everything):
        if path == _C10D and function in _WRAPPERS:
            continue
        match = _BY_CALL.get((path, function)) or _BY_CALL.get((path, None))
        newer = index >= len(everything) - len(called)
        if match is not None and (newer or match[1].kind in _DECISIVE):
            found.append(_Match(match[0], index, match[1]))
    return sorted(found, key=lambda each: (each.group, each.frame))


def _function_of_torch(places: Sequence[CallSite]) -> str | None:
    """The outermost function of torch.distributed, a public one if possible."""
    private = None
    for path, function in places:
        if path == _C10D and function not in _WRAPPERS:
            if not function.startswith("_"):
                return f"torch.distributed.{function}"
            private = private or f"torch.distributed.{function}"
        elif (rule := _BY_CALL.get((path, function))) and rule[0] == 0:
            return rule[1].call
    return private


def _by_files(places: Sequence[CallSite]) -> Kind:
    for path, _ in reversed(places):
        if path.startswith(_IO):
            return "io"
        if path in _WAITING:
            return "wait"
    return "library"


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


def _by_kernel(state: str | None, wchan: str | None, gil_is_held: bool) -> tuple[Kind, str]:
    where = wchan or ""
    if state in ("T", "t"):
        return ("stopped", "stopped by a signal or a debugger")
    if state == "R":
        return ("computing", "computing")
    if where.startswith(_SLEEPS):
        return ("sleep", "sleep")
    if where.startswith("futex"):
        # A thread that wants to run Python waits for the GIL in the same way.
        return ("wait", "a lock, or the GIL" if gil_is_held else "a lock")
    if where.startswith(_POLLS):
        return ("wait", "poll")
    if where.startswith(("pipe_", "anon_pipe")):
        return ("io", "a pipe")
    if where.startswith(_SOCKETS):
        return ("io", "a socket")
    if where.startswith(_CHILDREN):
        return ("wait", "a child process")
    if state == "D" or where.startswith(_DISKS):
        return ("io", "a disk or a network file system")
    if state == "S":
        return ("wait", "waiting")
    return ("unknown", "")
