"""Whom a rank waits for, told from its stacks: other ranks, its own threads, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read import calls
from workerserver.cluster.read.roles import place

__all__ = ["UNKNOWN", "Place", "Standing", "main_thread", "stand"]

Place = Literal[
    "collective",
    "p2p",
    "rendezvous",
    "dataloader",
    "lock",
    "shutdown",
    "library",
    "user",
    "unknown",
]
"""rendezvous: init_process_group, new_group and the like, where ranks wait for each other too.
lock: what Python's threading and queue wait for. user: the user's own line, or a C function called
there, which leaves no frame: ``time.sleep()``, ``with lock:``, ``work.wait()``."""

C10D = "torch/distributed/distributed_c10d.py"
POINT_TO_POINT = frozenset(
    {
        "send",
        "recv",
        "isend",
        "irecv",
        "batch_isend_irecv",
        "send_object_list",
        "recv_object_list",
    }
)
RENDEZVOUS = frozenset(
    {
        "init_process_group",
        "new_group",
        "_new_group_with_tag",
        "_new_process_group_helper",
        "split_group",
        "_store_based_barrier",
        "new_subgroups",
        "new_subgroups_by_enumeration",
        "rendezvous",
    }
)
TEARDOWN = frozenset({"destroy_process_group", "_shutdown_backend", "_abort_process_group"})
#: They stand between a call and what it is.
WRAPPERS = frozenset({"wrapper", "inner", "decorate_context", "_fn"})
LOCKS = frozenset({"acquire", "__enter__", "wait", "wait_for", "join", "_wait_for_tstate_lock"})

main_thread = calls.main_thread


@dataclass(frozen=True, slots=True)
class Standing:
    """*location*: the newest frame in user code. *call*: what it does there, in words."""

    place: Place
    location: Frame | None = None
    call: str | None = None
    thread: Thread | None = None
    helped: bool = False
    """Another thread stands in a collective: the main thread may wait for that one."""
    sleeps: bool = False

    @property
    def waits(self) -> bool:
        """It surely waits for other ranks."""
        return self.place in ("collective", "p2p", "rendezvous")

    @property
    def elsewhere(self) -> bool:
        """It surely waits for no other rank, whatever it has issued before."""
        if self.thread is None or self.waits or self.helped:
            return False
        return self.sleeps or self.place in ("dataloader", "lock", "shutdown")

    @property
    def polls(self) -> bool:
        """It may wait in turns, through changing lines of the library."""
        return self.waits or self.place in ("dataloader", "lock")

    @property
    def alike(self) -> tuple[Place, Frame | None]:
        """What stays the same meanwhile."""
        return self.place, self.location

    @property
    def known(self) -> bool:
        return self.place != "unknown"


UNKNOWN = Standing("unknown")


def stand(threads: Sequence[Thread]) -> Standing:
    thread = main_thread(threads)
    if thread is None or not thread.frames:
        return Standing("unknown", thread=thread)
    call = calls.stand(threads)
    return Standing(
        place=_place(thread),
        location=calls.location(threads),
        call=call.text or None,
        thread=thread,
        helped=any(_place(each) in ("collective", "p2p") for each in threads if each is not thread),
        sleeps=call.kind == "sleep",
    )


def _place(thread: Thread) -> Place:
    above: list[tuple[str, str]] = []  # file and function, newest first
    for frame in thread.frames:
        where = place(frame.file)
        if where.owner == "user":
            break
        above.append((where.path, frame.function))
    else:
        return _in_library(above) or "unknown"
    return _in_library(above) or ("library" if above else "user")


def _in_library(above: Sequence[tuple[str, str]]) -> Place | None:
    """Told by *above*, what the user's code has called."""
    for path, function in reversed(above):  # the outermost call says the most
        if path == C10D and function not in WRAPPERS:
            if function in TEARDOWN:
                return "shutdown"
            if function in RENDEZVOUS:
                return "rendezvous"
            return "p2p" if function in POINT_TO_POINT else "collective"
        if path == "torch/distributed/rendezvous.py":
            return "rendezvous"
        if path == "torch/distributed/_functional_collectives.py" and function == "wait_tensor":
            return "collective"
        if path == "torch/utils/data/dataloader.py":
            return "dataloader"
    for path, function in above:
        if path == "threading.py" and function == "_shutdown":
            return "shutdown"
        if path in ("threading.py", "queue.py") and function in (*LOCKS, "get", "put"):
            return "lock"
    return None
