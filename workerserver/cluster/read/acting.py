"""The thread that acts for a rank: on which the other ranks depend.

That is mostly the main thread. But the training loop may run in a thread while the main thread
joins it or polls, and a checkpoint may be written by a thread for which the main thread waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read.library_calls import ON_RANKS, by_frames
from workerserver.cluster.read.owners import code_file
from workerserver.cluster.read.roles import is_idle, main_thread
from workerserver.cluster.read.waits_for import awaited, by_id, follow

__all__ = [
    "Root",
    "acting",
    "root",
    "roots_of_waits",
    "roots_of_work",
    "roots_seen_waiting",
    "works",
]

Root = tuple[str, str]
"""The file and function in which a thread's user code began."""


def root(thread: Thread) -> Root | None:
    """The user's function that the thread was given to run, or the module of the main thread."""
    return _root(thread.frames)


@lru_cache(maxsize=8192)
def _root(frames: tuple[Frame, ...]) -> Root | None:
    for frame in reversed(frames):
        if code_file(frame.file).owner == "user":
            return frame.file, frame.function
    return None


def roots_of_waits(many: Iterable[Sequence[Thread]]) -> tuple[Root, ...]:
    """Where the threads began that wait for other ranks, the commonest root first; of as common
    ones, a module. If nobody is seen to wait: where the threads began that act for most ranks.
    *many*: the threads of each rank."""
    many = list(many)
    found = roots_seen_waiting(many)
    return roots_of_work(many) if not found and len(many) > 1 else found


def roots_seen_waiting(many: Sequence[Sequence[Thread]]) -> tuple[Root, ...]:
    """The same; none if nobody is seen to wait."""
    found: Counter[Root] = Counter()
    for threads in many:
        own = {root(each) for each in threads if by_frames(each.frames).kind in ON_RANKS}
        found.update(each for each in own if each is not None)
    return tuple(sorted(found, key=lambda each: (-found[each], each[1] != "<module>", each)))


def roots_of_work(many: Sequence[Sequence[Thread]]) -> tuple[Root, ...]:
    """Where the threads began that act for most ranks. If all main threads poll at one line, these
    are others: a training loop that runs in a thread."""
    mains = [main_thread(threads) for threads in many]
    polls = len({main.frames for main in mains if main is not None}) == 1 and all(
        main is not None and by_frames(main.frames).kind is None and _sleeps(main) for main in mains
    )
    found: Counter[Root] = Counter()
    acts: Counter[Root] = Counter()
    for threads, main in zip(many, mains, strict=True):
        if polls:
            each = [thread for thread in threads if thread is not main and not is_idle(thread)]
            found.update({its for thread in each if (its := root(thread)) is not None})
            each = [thread for thread in each if works(thread)]
        else:
            thread = acting(threads)
            each = [] if thread is None else [thread]
        acts.update({its for thread in each if (its := root(thread)) is not None})
    found = found or acts
    most = sorted(found, key=lambda each: (-found[each], -acts[each], each))[:1]
    return tuple(each for each in most if 2 * acts[each] > len(many))


def acting(threads: Sequence[Thread], roots: Sequence[Root] = ()) -> Thread | None:
    """The thread that stands for the rank: the one on which the other ranks depend.

    *roots*: where the threads of other ranks began that wait for ranks; one that began there owes
    them something. Else the thread acts that made the last heartbeat, if the main thread is in no
    operation. Else the main thread acts, unless it only waits for a thread of its own. Then
    the thread acts that it joins, or that has its lock, if that is known; else the one single other
    thread in user code that doesn't wait for work. So does that other thread where the one that
    owes something joins it, or waits for its result; and where the main thread is Ray's event loop.
    """
    main = main_thread(threads)
    if len(threads) < 2:
        return main
    for each in roots:
        same = [thread for thread in threads if thread.frames and root(thread) == each]
        if same:
            bound = [thread for thread in same if by_frames(thread.frames).kind in ON_RANKS]
            owes = next(iter(bound or [thread for thread in same if thread is main] or same))
            return _end(owes, threads) or _joined(owes, threads, main) or owes
    if main is None:
        return None
    kind = by_frames(main.frames).kind
    if kind in ON_RANKS:
        return main
    beats = next((each for each in threads if each.beats and each is not main), None)
    if beats is not None and root(beats) is not None:
        return _end(beats, threads) or _joined(beats, threads, main) or beats
    end = _end(main, threads)
    if end is not None:
        return end
    others = [thread for thread in threads if thread is not main and works(thread)]
    bound = [thread for thread in others if by_frames(thread.frames).kind in ON_RANKS]
    serves = kind in ("lock", "wait", "shutdown") or _is_loop(main)
    if (serves or (kind is None and _sleeps(main))) and bound:
        return bound[0]
    if serves and len(others) == 1:
        return others[0]
    return main


def _end(thread: Thread, threads: Sequence[Thread]) -> Thread | None:
    """The last one of the threads that *thread* waits for, if it is in user code. If they wait for
    each other, *thread*: none of them acts more than another."""
    if thread.waits is None:
        return None
    known = by_id(threads)
    end = follow(thread, known)[-1]
    if awaited(end, known) is not None:
        return thread
    return end if end is not thread and root(end) is not None else None


#: Where the main thread of a process serves others while the user's code runs in a thread.
_LOOPS = frozenset({("ray/_private/worker.py", "main_loop")})


def _is_loop(main: Thread) -> bool:
    newest = main.frames[0] if main.frames else None
    return newest is not None and (code_file(newest.file).path, newest.function) in _LOOPS


#: Calls that end when other threads of the process have ended, or have worked off a queue...
_ENDS = frozenset({("threading.py", "_shutdown"), ("queue.py", "join")})
#: ... or when they have a result.
_RESULTS = frozenset(
    {
        ("concurrent/futures/_base.py", "result"),
        ("concurrent/futures/_base.py", "exception"),
        ("concurrent/futures/_base.py", "wait"),
        ("concurrent/futures/_base.py", "as_completed"),
        ("concurrent/futures/thread.py", "shutdown"),
    }
)
#: The function that a pool's threads run.
_WORKER = ("concurrent/futures/thread.py", "_worker")


def _joined(thread: Thread, threads: Sequence[Thread], main: Thread | None) -> Thread | None:
    """The thread whose end, or whose result, *thread* waits for, if it works. The worker tells the
    one that is joined. At the end of the program, of a queue, and of a pool, it is the only one
    that works. If none works, it is the only thread of a pool in the user's code: it waits itself,
    perhaps for a result of its own pool."""
    rest = [each for each in threads if each not in (thread, main)]
    others = [each for each in rest if works(each)]
    if thread.waits is not None and thread.waits.joined is not None:
        return next((each for each in others if each.native_id == thread.waits.joined), None)
    calls = {(code_file(each.file).path, each.function) for each in _called(thread)}
    if calls.isdisjoint(_ENDS):
        if calls.isdisjoint(_RESULTS):
            return None
        others = [each for each in others if _is_of_pool(each)]
        if not others:
            others = [each for each in rest if _is_of_pool(each) and root(each) is not None]
    return others[0] if len(others) == 1 else None


def _is_of_pool(thread: Thread) -> bool:
    return any((code_file(each.file).path, each.function) == _WORKER for each in thread.frames)


def _called(thread: Thread) -> Sequence[Frame]:
    """The frames that are newer than the user's newest line."""
    own = (n for n, each in enumerate(thread.frames) if code_file(each.file).owner == "user")
    return thread.frames[: next(own, 0)]


def works(thread: Thread) -> bool:
    """It is in the user's code, and doesn't wait for work there. The thread that took the snapshot
    holds the GIL, and is none of the job's."""
    if thread.holds_gil or is_idle(thread) or root(thread) is None:
        return False
    return by_frames(thread.frames).kind not in ("lock", "wait")


def _sleeps(thread: Thread) -> bool:
    """As a loop does that polls now and then."""
    return thread.state != "R" and (thread.wchan is None or "nanosleep" in thread.wchan)
