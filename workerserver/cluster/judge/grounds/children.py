"""Whether a rank that waits for a process of its own waits for work that goes on.

A child works if the processor time of its processes or what they read and write grows between two
looks, if one of them would run, or if they change. Where the rank is known to wait for one child,
any such sign counts. Where any of its children may be meant, small signs don't: a monitor that a
rank has started takes a little processor time, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from workerserver.cluster.judge.facts import IdleChild
from workerserver.cluster.judge.job import Job
from workerserver.cluster.model import Child
from workerserver.cluster.read.blocked_on import CHILD, POLL, STOPPED
from workerserver.cluster.read.owners import code_file

__all__ = [
    "is_open",
    "is_unclear",
    "looked_at",
    "may_work",
    "one_works",
    "waits_for_child",
    "working",
]

#: Of a core: more than a process takes that looks around once a second, and less than one that
#: copies 100 kB a second from a socket, whose bytes the kernel counts nowhere.
MIN_CORES = 0.001
#: Of a child that may not be the one that the rank waits for: of a core, and bytes in a second.
MIN_CORES_OF_ANY = 0.1
MIN_BYTES_OF_ANY = 65536.0
#: The name of the processes of torch's DataLoader.
LOADER = "pt_data_worker"
#: Calls that wait for a process of the rank's own, as stacks alone tell them.
CALLS = ("subprocess.", "multiprocessing.popen_")
#: Calls that wait for a result of a pool of processes, or perhaps of threads; and the file in which
#: a thread looks after a pool of processes.
POOL, FUTURES = "multiprocessing.pool.", "concurrent.futures."
EXECUTOR = "concurrent/futures/process.py"
#: The kernel's letters of processes that run or would run, and of those that wait for a disk.
RUNS, ON_DISK = "R", "D"
#: Of those that go on only if somebody lets them, or not at all.
ENDED = frozenset((*STOPPED, "Z", "X"))


def waits_for_child(job: Job, rank: int) -> bool:
    """Its acting thread surely waits for a process of its own."""
    blocked = job.blocked.get(rank)
    if blocked is None or blocked.on_ranks:
        return False
    return blocked.on_child or blocked.call == CHILD or blocked.call.startswith(CALLS)


def working(job: Job, rank: int) -> Child | None:
    """A child of *rank* that works, and for which its acting thread may wait."""
    for child, surely in _awaited(job, rank):
        if _works(job, rank, child, surely):
            return child
    return None


def one_works(job: Job, rank: int) -> bool:
    return working(job, rank) is not None


def looked_at(job: Job, rank: int) -> Iterator[IdleChild]:
    """The children for which its acting thread surely waits, and that don't work."""
    for child, surely in _awaited(job, rank):
        before = _before(job, rank, child)
        if surely and not _works(job, rank, child, surely):
            yield IdleChild(child, before[1] if before is not None else None)


def may_work(job: Job, rank: int) -> bool:
    """It waits for a child of which another look will tell whether it works."""
    return any(_unseen(job, rank))


def is_open(job: Job, rank: int) -> bool:
    """It may wait for a child of which another look will tell whether it works."""
    return any(True for _ in _unseen(job, rank))


def _unseen(job: Job, rank: int) -> Iterator[bool]:
    """Whether it surely waits for each such child."""
    for child, surely in _awaited(job, rank):
        if child.state not in ENDED and _before(job, rank, child) is None:
            yield surely


def is_unclear(job: Job, rank: int) -> bool:
    """It waits for a child that waits for a disk, or of which its worker tells nothing."""
    if not waits_for_child(job, rank):
        return False
    children = [child for child, _ in _awaited(job, rank)]
    return not children or any(ON_DISK in each.states for each in children)


def _awaited(job: Job, rank: int) -> Iterator[tuple[Child, bool]]:
    """The children for which the acting thread may wait, and whether it surely waits for each."""
    state = job.now.states.get(rank)
    blocked = job.blocked.get(rank)
    if state is None or state.own is None or blocked is None or blocked.thread is None:
        return
    children = state.own.children
    waits = blocked.thread.waits
    if waits is not None and waits.kind == "process" and waits.pid is not None:
        yield from ((each, True) for each in children if each.pid == waits.pid)
    elif waits_for_child(job, rank):
        yield from ((each, len(children) == 1) for each in children)
    elif children and _waits_for_pool(job, rank):
        names = Counter(each.name for each in children)
        most = max(names.values())
        yield from ((each, names[each.name] == most) for each in children)
    elif blocked.kind == "dataloader":
        loaders = [each for each in children if each.name == LOADER]
        yield from ((each, bool(loaders)) for each in loaders or children)
    elif _may_be_for_any(job, rank):
        yield from ((each, False) for each in children)


def _waits_for_pool(job: Job, rank: int) -> bool:
    """For what the processes of a pool work out, which mostly are the most of its children."""
    call = job.blocked[rank].call
    if call.startswith(POOL):
        return True
    return call.startswith(FUTURES) and any(
        code_file(frame.file).path == EXECUTOR
        for thread in job.now.states[rank].threads
        for frame in thread.frames
    )


def _may_be_for_any(job: Job, rank: int) -> bool:
    """It waits for what another process may give: bytes in a pipe, a result, an event."""
    blocked = job.blocked[rank]
    if blocked.on_ranks or blocked.kind in ("sleep", "debugger", "stopped", "device", "computing"):
        return False
    waits = blocked.thread.waits if blocked.thread is not None else None
    if waits is not None and waits.kind in ("lock", "rlock", "mutex", "thread", "store"):
        return False
    return blocked.kind in ("io", "lock", "shutdown", "wait") or blocked.call == POLL


def _before(job: Job, rank: int, child: Child) -> tuple[Child, float] | None:
    """The same child as the earliest look has seen it, and how many seconds before."""
    now = job.now.states[rank].own
    for look in job.rounds[:-1]:
        state = look.states.get(rank)
        if state is None or state.own is None or now is None or state.own.pid != now.pid:
            continue
        for each in state.own.children:
            if each.pid == child.pid:
                return each, job.now.time - look.time
    return None


def _works(job: Job, rank: int, child: Child, surely: bool) -> bool:
    before = _before(job, rank, child)
    if before is None:
        return surely and RUNS in child.states
    then, seconds = before
    spent, moved = abs(child.cpu_s - then.cpu_s), 0
    if then.io_bytes is not None and child.io_bytes is not None:
        moved = abs(child.io_bytes - then.io_bytes)
    if surely:
        others = (then.name, then.processes) != (child.name, child.processes)
        return others or moved > 0 or spent > MIN_CORES * seconds or RUNS in child.states
    if spent >= MIN_CORES_OF_ANY * seconds or moved >= MIN_BYTES_OF_ANY * seconds:
        return True
    return RUNS in child.states and RUNS in then.states
