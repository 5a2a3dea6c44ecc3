"""``torch_profile``: all threads of this process under torch's profiler for a while.

torch has one profiler per process, and a second one kills it: whichever of two overlapping
sessions stops last reads a result that isn't there and dies of SIGSEGV (torch 2.13, in every order
that was tried; a session that is only prepared counts). So ours refuses to start beside another,
and gives way, before the other one is let in, if the training script starts one meanwhile. To exit
while a session runs ends in SIGSEGV, too, so exit ends ours first.

To stop a profile of all threads reads their queues while they may still write to them: beside
three threads of small operators, torch's own way of doing it killed the process after some tens of
profiles. So the operators' callbacks are removed first, and the queues read when those that were
running have returned. What is left: an operator that begins in one profile and ends in the next.

To stop and to write a profile holds the GIL, up to 15 us and 4 us per recorded operator, and takes
nine times the memory that recording took (400 bytes per operator). So what is recorded is bounded
by the growth of the process's memory: MAX_GROWTH is some 330,000 operators, which stalled the
trainer for 4 to 6 s, took 1.3 GB for that time and gave a trace of 140 to 170 MB. What the process
grows by while the trainer imports modules is left out, up to MAX_IMPORTED. Nothing is imported
here: to import a part of torch while another thread imports torch can make that one fail.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from workerserver.http.registry import Registry
from workerserver.process.loaded import imported
from workerserver.types import (
    HandlerBusy,
    NotImplementedHere,
    Range,
    Response,
    WorkerServerError,
)

__all__ = ["NoRoom", "ProfilerInUse", "TraceTooLarge", "register", "torch_profile"]

#: Seconds that may be asked for. Small operators reach MAX_GROWTH within one, a usual training
#: loop (20,000 operators a second) within 15.
MAX_DURATION = 60

#: Bytes by which the process may grow before a profile is ended early.
MAX_GROWTH = 128 * 1024 * 1024

#: Bytes of growth that are left out of account while modules are being imported: the first profile
#: of the training script imports torch._inductor (154 MiB with torch 2.15).
MAX_IMPORTED = 256 * 1024 * 1024

#: Bytes of a trace that are read into memory to be sent, and of free space that one needs.
MAX_TRACE = 256 * 1024 * 1024

#: Seconds between two looks at the process's memory and at the free space.
POLL = 0.05

#: Seconds for callbacks to return after their removal. They take microseconds, unless their thread
#: isn't run; 0.02 was too short on a machine with six busy threads to a core, 0.2 was not.
SETTLE = 0.3

#: Seconds that the interpreter's exit waits for a profile to end.
EXIT_WAIT = 10.0

#: torch.autograd.profiler's names for what begins a session, each looked up when it is called.
ENTRIES = ("_prepare_profiler", "_enable_profiler")

#: torch.profiler's name in torch's step counter, from the making of a profiler to its exit.
STEP = "ProfilerStep"

#: What of torch.autograd.profiler and torch.profiler is used and isn't public.
NEEDED = (
    *ENTRIES,
    "_ProfilerResult.save",
    "_ProfilerResult.trace_start_ns",
    "_is_profiler_enabled",
    "_toggle_collection_dynamic",
    "kineto_available",
    "profile._prepare_trace",
)
NEEDED_FRONT = (
    "ProfilerActivity.CPU",
    "_ExperimentalConfig",
    "_KinetoProfile.add_metadata_json",
    "_KinetoProfile.export_chrome_trace",
    "_KinetoProfile.start_trace",
    "_KinetoProfile.stop_trace",
)


class ProfilerInUse(WorkerServerError):
    """The training script has a profiler of its own, and there can be only one."""

    status = 409

    def __init__(self, when: str) -> None:
        super().__init__(f"torch's profiler is in use: {when}")


class TraceTooLarge(WorkerServerError):
    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(
            f"the trace has {size} bytes, more than the {MAX_TRACE} that are sent: "
            "ask for a shorter duration"
        )


class NoRoom(WorkerServerError):
    """The folder for temporary files can't take a trace."""

    status = 507

    def __init__(self, folder: str, reason: str) -> None:
        self.folder = folder
        super().__init__(
            f"the trace can't be written to {folder}: {reason}; make room there, or start the "
            "process with TMPDIR set to another folder"
        )


class _Session:
    """One profile of ours: who runs it, why it is to end early if it is, whether it has ended."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.pid = os.getpid()
        self.reason = ""
        self.give_way = threading.Event()
        self.ended = threading.Event()

    def end(self, reason: str) -> None:
        """Have it end early; returns at once."""
        self.reason = reason
        self.give_way.set()

    def let_in(self) -> None:
        """Called in a thread that is about to start another profiler: end ours first.

        Returns at once in our own thread, in a forked child and once ours has ended.
        """
        if self.thread is threading.current_thread() or self.pid != os.getpid():
            return
        self.end("the training script started one meanwhile, so this one was given up")
        # No deadline: to let it in too early would kill the process.
        while not self.ended.wait(1.0) and self.thread.is_alive():
            pass


class _State:
    """Of this process: the lock that a profile holds from start to export, and its session."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        self.session: _Session | None = None
        self.closing = False


_state = _State()


def _after_fork() -> None:
    global _state
    _state = _State()


def _at_exit() -> None:
    """End a profile, and keep the lock: none starts after this."""
    _state.closing = True
    session = _state.session
    if session is not None:
        session.end("the process is ending")
    _state.running.acquire(timeout=EXIT_WAIT)


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)


def torch_profile(duration: Annotated[float, Range(0.001, MAX_DURATION)]) -> Response:
    """A Chrome trace (JSON) of *duration* seconds, operators with their shapes, all threads.

    One that was ended early, because it took too much memory, says so in the field
    ``X-Ended-Early`` and in the trace's own ``workerserver``. ProfilerInUse if the training script
    profiles, or begins to before the end; NoRoom; NotImplementedHere if torch isn't imported to the
    end or has another profiler. The first profile of a process takes longer: torch sets its
    profiler up.
    """
    lock = _state.running
    if not lock.acquire(blocking=False):
        raise HandlerBusy("torch_profile", 1)
    try:
        return _profile(duration)
    finally:
        lock.release()


def _profile(duration: float) -> Response:
    backend, front = _modules()
    folder = _folder()
    _check_room(folder)
    session = _state.session = _Session()
    with _gate(backend, session):
        if _state.closing:
            raise ProfilerInUse("the process is ending")
        if _in_use(backend):
            raise ProfilerInUse("the training script runs one itself")
        profile = _constructed(backend, front)
        try:
            profile.profiler._prepare_trace()
            profile.start_trace()
            early = _watch(session, duration, folder)
            if early:
                profile.add_metadata_json("workerserver", json.dumps({"ended_early": early}))
        finally:
            _stop(backend, front, profile)
    if session.give_way.is_set():
        raise ProfilerInUse(session.reason)
    # Somebody ended ours (C++ code can): to export a result that isn't there is a SIGSEGV.
    if not profile.profiler.kineto_results.trace_start_ns():
        raise ProfilerInUse("other code in this process ended this one")
    _check_room(folder)
    trace = _exported(profile, folder)
    headers = (("X-Ended-Early", early),) if early else ()
    return Response(trace, content_type="application/json", headers=headers)


def _modules() -> tuple[Any, Any]:
    """torch.autograd.profiler and torch.profiler, with all that is used of them.

    Asked before anything is started, so that another torch can't fail in the middle.
    """
    backend = imported("torch.autograd.profiler")
    front = imported("torch.profiler")
    # The start of a profile asks it for the ranks, and would import it.
    if backend is None or front is None or imported("torch.distributed") is None:
        raise NotImplementedHere("this process hasn't imported torch to the end")
    missing = [name for name in NEEDED if not _has(backend, name)]
    missing += [name for name in NEEDED_FRONT if not _has(front, name)]
    if missing:
        raise NotImplementedHere(f"this torch has another profiler, without {', '.join(missing)}")
    if not backend.kineto_available():
        raise NotImplementedHere("this torch was built without Kineto")
    return backend, front


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _constructed(backend: Any, front: Any) -> Any:
    """A profile with torch's own choice of devices; nothing is started yet.

    torch's prepare_trace() would import torch._inductor, seconds of work beside the training loop,
    only to read there whether CUDA graphs are on. Who hasn't imported it has none of them.
    """
    try:
        config = front._ExperimentalConfig(profile_all_threads=True)
        profile = front._KinetoProfile(record_shapes=True, experimental_config=config)
        profile.profiler = backend.profile(
            use_device=getattr(profile, "use_device", None),
            record_shapes=True,
            use_kineto=True,
            experimental_config=config,
        )
    except TypeError as error:
        raise NotImplementedHere(f"this torch has another profiler: {error}") from error
    inductor = getattr(imported("torch._inductor.config"), "triton", None)
    profile.has_cudagraphs = bool(getattr(inductor, "cudagraphs", False))
    return profile


def _watch(session: _Session, duration: float, folder: str) -> str:
    """Wait until the profile has to end; why that is before *duration*, or ``""``."""
    before = last = _resident()
    modules = len(sys.modules)
    imported_bytes = 0
    started = time.monotonic()
    while (left := started + duration - time.monotonic()) > 0:
        if session.give_way.wait(min(left, POLL)):
            return ""
        now, count = _resident(), len(sys.modules)
        if count != modules:
            imported_bytes = min(imported_bytes + max(0, now - last), MAX_IMPORTED)
        last, modules = now, count
        if now - before - imported_bytes > MAX_GROWTH:
            reason = f"the process grew by more than {MAX_GROWTH} bytes"
        elif _free(folder) < MAX_TRACE:
            reason = f"less than {MAX_TRACE} bytes are free in {folder}"
        else:
            continue
        return f"after {time.monotonic() - started:.2f} of {duration:g} s: {reason}"
    return ""


def _stop(backend: Any, front: Any, profile: Any) -> None:
    """End a profile, whatever became of its start, and leave torch's flag as it was."""
    try:
        if backend._is_profiler_enabled:
            backend._toggle_collection_dynamic(False, {front.ProfilerActivity.CPU})
            time.sleep(SETTLE)
    finally:
        try:
            profile.stop_trace()
        finally:
            # A stop that failed leaves it set, and every later profile would be refused.
            backend._is_profiler_enabled = False


def _resident() -> int:
    """Bytes of memory that this process has; 0 without /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _free(folder: str) -> int:
    """Bytes that this process may still write to *folder*; 0 if it is gone."""
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _folder() -> str:
    import tempfile

    try:
        return tempfile.gettempdir()
    except OSError as error:
        raise NoRoom("a folder for temporary files", str(error)) from error


def _check_room(folder: str) -> None:
    """NoRoom unless *folder* has as much free space as the largest trace needs."""
    free = _free(folder)
    if free < MAX_TRACE:
        raise NoRoom(folder, f"{free} bytes are free, {MAX_TRACE} are needed")


def _exported(profile: Any, folder: str) -> bytes:
    """The trace of a profile that has ended, by way of a file, as torch can't write it elsewhere.

    Kineto only prints when it can't write, and leaves a file of another name: hence the folder.
    """
    import tempfile

    try:
        with tempfile.TemporaryDirectory(prefix="workerserver-", dir=folder) as own:
            path = os.path.join(own, "trace.json")
            profile.export_chrome_trace(path)
            size = os.stat(path).st_size
            if size > MAX_TRACE:
                raise TraceTooLarge(size)
            with open(path, "rb") as file:
                trace = file.read()
    except OSError as error:
        raise NoRoom(folder, str(error)) from error
    if not trace[-64:].rstrip().endswith(b"}"):
        raise NoRoom(folder, f"torch wrote {len(trace)} bytes, which don't end as a trace does")
    return trace


@contextlib.contextmanager
def _gate(backend: Any, session: _Session) -> Iterator[None]:
    """While it is open, whoever starts a profiler through *backend* waits for *session* to end.

    There is no hook in torch for this, so its two entry points are replaced for as long as ours
    runs. A copy of a replacement that someone kept does nothing once the session has ended.
    """
    replaced: dict[str, tuple[Any, Any]] = {}
    for name in ENTRIES:
        original = getattr(backend, name)
        replacement = _guarded(original, session)
        replaced[name] = (original, replacement)
        setattr(backend, name, replacement)
    try:
        yield
    finally:
        for name, (original, replacement) in replaced.items():
            if getattr(backend, name) is replacement:
                setattr(backend, name, original)
        session.ended.set()


def _guarded(original: Callable[..., Any], session: _Session) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        session.let_in()
        return original(*args, **kwargs)

    return guarded


def _in_use(backend: Any) -> bool:
    """Whether a session is running or prepared. To be asked with the gate closed behind it.

    A prepared session (the warm-up of a schedule) shows only in its object, which notes that it
    was entered before it calls into torch, and holds a result once it has ended. To find the
    objects walks all that the garbage collector knows, under the GIL: 12 ms in a process that has
    imported torch, 23 ms with 1e6 objects more, a seventh of one full collection. Nothing cheaper
    is as safe: torch keeps no list, and its step counter misses who prepares without a schedule.
    """
    if backend._is_profiler_enabled:
        return True
    # What was frozen isn't walked. Then whoever has a profiler open may have it prepared, too.
    steps = getattr(getattr(backend, "KinetoStepTracker", None), "_step_dict", ())
    if gc.get_freeze_count() and STEP in steps:
        return True
    return any(
        # One that accumulates is entered again with its old result.
        getattr(instance, "entered", False)
        and (
            getattr(instance, "kineto_results", None) is None
            or getattr(instance, "acc_events", False)
        )
        for instance in gc.get_referrers(backend.profile)
        if issubclass(type(instance), backend.profile)
    )


def register(registry: Registry) -> None:
    registry.register("torch_profile", torch_profile, limit=1, requires="torch", shadow=True)
