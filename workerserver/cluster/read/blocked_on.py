"""What a rank is blocked on: other ranks, a thread of its own process, the kernel, or nothing.

:mod:`library_calls` has the one list of the library calls that tell.

C functions leave no frame. A thread in ``time.sleep()``, ``lock.acquire()`` or ``work.wait()``
appears at the user's line that calls them. Then only the kernel tells what the thread is blocked
on. The text of a stock worker does not hold that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.acting import acting, works
from workerserver.cluster.read.library_calls import (
    DECISIVE,
    FILE_LOCK,
    ON_RANKS,
    SERVES_CALLS,
    TABLE,
    Kind,
    Rule,
    by_frames,
)
from workerserver.cluster.read.waits_for import LOCKS, in_words, on_others

__all__ = [
    "CHILD",
    "FILE_LOCK",
    "POLL",
    "SOCKET",
    "STOPPED",
    "STORE",
    "TABLE",
    "UNKNOWN",
    "Blocked",
    "Kind",
    "Rule",
    "blocked_on",
]

CHILD = "a child process"
POLL = "poll"
SOCKET = "a socket"
STORE = "the store"
#: The kernel's letters of a thread or a process that was stopped, by a signal or by a debugger.
STOPPED = ("T", "t")


@dataclass(frozen=True, slots=True)
class Blocked:
    """What the thread that acts for a worker is blocked on (:mod:`acting`).

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
    """Another thread is in a collective, or works: this one may wait for that thread."""
    guessed: bool = False
    """Whoever would wake it is unknown: only the kernel says what it waits for, or it asks for a
    file's lock again and again."""
    bound: bool = False
    """It waits for a thread or for a lock of its process, nobody tells which thread that is, and
    one of them may wait for other ranks."""

    @property
    def on_ranks(self) -> bool:
        """It surely waits for other ranks."""
        return self.kind in ON_RANKS

    @property
    def told(self) -> str:
        """What it waits for, in words, if its worker tells more than its stack: a peer, a key, a
        path, a process; "" if not. The store, without a key, tells less than new_group does."""
        waits = self.thread.waits if self.thread is not None else None
        words = in_words(waits) if waits is not None else ""
        return "" if words == STORE and self.on_ranks else words

    @property
    def native(self) -> str:
        """The native function that it is in: ``ncclCommAbort()``; "" if that isn't known."""
        native = self.thread.native if self.thread is not None else None
        return "" if native is None or native.function is None else f"{native.function}()"

    @property
    def on_others(self) -> bool:
        """It surely waits for what other ranks do, by what its worker tells."""
        return on_others(self.thread)

    @property
    def on_child(self) -> bool:
        """It waits for a process of its own, by what its worker tells."""
        waits = self.thread.waits if self.thread is not None else None
        return waits is not None and waits.kind == "process"

    @property
    def on_no_rank(self) -> bool:
        """It surely waits for no other rank, whatever it has issued before."""
        if self.location is None or self.on_ranks or self.helped or self.bound:
            return False
        return self.kind in ("sleep", "dataloader", "lock", "shutdown", "debugger")

    @property
    def may_wait(self) -> bool:
        """It waits, perhaps for other ranks: for what C++ code waits for leaves no frame."""
        return self.on_ranks or self.helped or self.kind == "device" or self.guessed

    @property
    def unsure(self) -> bool:
        """Whoever would end what it is in is not known."""
        return self.guessed or self.kind == "unknown"

    @property
    def writes(self) -> bool:
        """It reads or writes, and the kernel is at work for it."""
        state = self.thread.state if self.thread is not None else None
        return self.kind == "io" and state in ("D", "R")

    @property
    def runs(self) -> bool:
        """The kernel runs it, or it would run if it had the GIL."""
        return self.thread is not None and (self.thread.state == "R" or _wants_gil(self.thread))

    @property
    def polls(self) -> bool:
        """It may wait in turns, through changing lines of the library: a wait with a timeout."""
        return not self.works and (self.on_ranks or self.kind in ("dataloader", "lock", "wait"))

    @property
    def known(self) -> bool:
        """Its stack tells where it is: in the user's code, or in a call that is known to wait."""
        return self.own or (self.location is not None and self.kind in DECISIVE)

    @property
    def inside(self) -> bool:
        """It is not at the user's own line, but in a call from there."""
        return not self.own or self.thread is None or self.location is not self.thread.frames[0]


UNKNOWN = Blocked("unknown")


def blocked_on(threads: Sequence[Thread], thread: Thread | None = None) -> Blocked:
    """What *thread*, one of *threads*, is blocked on: by default the one that acts for them."""
    thread = thread or acting(threads)
    if thread is None:
        return UNKNOWN
    told = by_frames(thread.frames)
    kind, call, guessed = told.kind, told.call, told.call == FILE_LOCK
    if kind is None:
        others = any(each.holds_gil for each in threads if each is not thread)
        kind, call = _by_waits(thread) or _by_kernel(thread.state, thread.wchan, others)
        guessed = call in _GUESSES and kind != "lock"
    return Blocked(
        kind,
        call,
        thread.frames[told.line] if thread.frames else None,
        told.own,
        told.works,
        thread,
        any(_helps(each) for each in threads if each is not thread),
        guessed,
        kind == "lock"
        and thread.waits is None
        and any(_may_wait(each) for each in threads if each is not thread),
    )


def _helps(thread: Thread) -> bool:
    told = by_frames(thread.frames)
    return told.kind in ("collective", "p2p", "meeting") and told.call != SERVES_CALLS


def _may_wait(thread: Thread) -> bool:
    """In user code, perhaps for other ranks: for what C++ code waits for leaves no frame."""
    if not works(thread) or by_frames(thread.frames).kind is not None:
        return False
    return _by_kernel(thread.state, thread.wchan, False)[0] not in ("sleep", "computing")


# ---- by what the worker tells


def _by_waits(thread: Thread) -> tuple[Kind, str] | None:
    """Of a thread at a line of the user's that calls C code."""
    if thread.waits is None:
        return None
    if thread.waits.kind in LOCKS:
        return ("lock", "a lock")
    if thread.waits.kind == "file_lock":
        return ("wait", FILE_LOCK)
    if _wants_gil(thread):
        return ("computing", "computing, as far as it has the GIL")
    if thread.waits.kind == "store":
        return ("wait", STORE)
    return None


def _wants_gil(thread: Thread) -> bool:
    """It would run Python if it could. On a busy machine, most looks find it so."""
    return thread.waits is not None and thread.waits.kind == "gil"


# ---- by what the kernel says

_SLEEPS = ("hrtimer_nanosleep", "do_nanosleep", "common_nsleep")
_POLLS = ("poll_schedule", "do_poll", "do_sys_poll", "do_select", "ep_poll", "do_epoll_wait")
_FILE_LOCKS = ("locks_lock", "flock_lock", "posix_lock", "fcntl_setlk")
#: Of these it isn't known who ends them: perhaps another rank.
_GUESSES = frozenset({"a lock", "a lock, or the GIL", FILE_LOCK, POLL, STORE, "waiting"})
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
    if state in STOPPED:
        return ("stopped", "stopped by a signal or a debugger")
    if state == "R":
        return ("computing", "computing")
    if where.startswith(_SLEEPS):
        return ("sleep", "sleep")
    if where.startswith("futex"):
        # A thread that wants to run Python waits for the GIL in the same way.
        return ("wait", "a lock, or the GIL" if gil_is_held else "a lock")
    if where.startswith(_POLLS):
        return ("wait", POLL)
    if where.startswith(("pipe_", "anon_pipe")):
        return ("io", "a pipe")
    if where.startswith(_SOCKETS):
        return ("io", SOCKET)
    if where.startswith(_FILE_LOCKS):
        return ("wait", FILE_LOCK)
    if where.startswith(_CHILDREN):
        return ("wait", CHILD)
    if state == "D" or where.startswith(_DISKS):
        return ("io", "a disk or a network file system")
    if state == "S":
        return ("wait", "waiting")
    return ("unknown", "")
