"""``torch_profile``: all threads of this process under torch's profiler for a while.

torch has one profiler per process, and a second one kills the process. Of two sessions that
overlap, the one that stops last reads a result that isn't there and dies of SIGSEGV (torch 2.13, in
every order that we tried; a session that is only prepared counts). So our session doesn't start
beside another one. If the training script starts a session during ours, ours ends first. Exiting
while a session runs ends in SIGSEGV too, so our session ends before the interpreter does.

When torch stops a profile of all threads, it reads the threads' queues while the threads may still
write to them. Beside three threads of small operators, that killed the process after some tens of
profiles. So we remove the operators' callbacks first, wait until the running ones have returned,
and then let torch read the queues. One risk is left: an operator that begins in one profile and
ends in the next.

Stopping and writing a profile hold the GIL: up to 15 us to stop and 4 us to write for each recorded
operator. They take nine times the memory that recording took (400 bytes per operator). So the
growth of the process's memory bounds a recording. MAX_GROWTH_BYTES is some 330,000 operators: that
many stalled the trainer for 4 to 6 s, took 1.3 GB during the stall and gave a trace of 140 to 170
MB. Growth while the trainer imports modules is not counted, up to MAX_IMPORTED_BYTES. This module
imports nothing of torch: such an import can make an import of torch fail that another thread is in
the middle of.
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
from workerserver.process.run_folder import fresh_folder, temporary_folder
from workerserver.types import (
    HandlerBusy,
    NotImplementedHere,
    Range,
    Response,
    WorkerServerError,
)

__all__ = ["NoRoom", "ProfilerInUse", "TraceTooLarge", "register", "torch_profile"]

#: The longest profile. Small operators reach MAX_GROWTH_BYTES within 1 s, a usual training loop
#: (20,000 operators per second) within 15 s.
MAX_DURATION_SECONDS = 60

#: A profile ends early once the process has grown by more.
MAX_GROWTH_BYTES = 128 * 1024 * 1024

#: Growth that is not counted while the process imports modules: the first profile of the training
#: script imports torch._inductor (154 MiB with torch 2.15).
MAX_IMPORTED_BYTES = 256 * 1024 * 1024

#: The largest trace that is sent, and the free space that a profile needs.
MAX_TRACE_BYTES = 256 * 1024 * 1024

#: Time between two looks at the process's memory and at the free space.
POLL_SECONDS = 0.05

#: The time that removed callbacks get to return. They take microseconds, unless the kernel doesn't
#: run their thread: with six busy threads per core, 0.02 s was too short and 0.2 s was not.
SETTLE_SECONDS = 0.3

#: The longest time that the interpreter's exit waits for a profile to end.
EXIT_WAIT_SECONDS = 10.0

#: The functions of torch.autograd.profiler that begin a session. torch looks each one up by name at
#: every call.
ENTRIES = ("_prepare_profiler", "_enable_profiler")

#: The name under which a torch.profiler stands in torch's step counter, from construction to exit.
STEP = "ProfilerStep"

#: The private names of torch.autograd.profiler and torch.profiler that this module uses.
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
    """The training script already uses the only profiler that a process can have."""

    status = 409

    def __init__(self, when: str) -> None:
        super().__init__(f"torch's profiler is in use: {when}")


class TraceTooLarge(WorkerServerError):
    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(
            f"the trace has {size} bytes, more than the {MAX_TRACE_BYTES} that are sent: "
            "ask for a shorter duration"
        )


class NoRoom(WorkerServerError):
    """The folder for temporary files has no room for a trace."""

    status = 507

    def __init__(self, folder: str, reason: str) -> None:
        self.folder = folder
        super().__init__(
            f"the trace can't be written to {folder}: {reason}; make room there, or start the "
            "process with TMPDIR set to another folder"
        )


class _Session:
    """One profile of ours: its thread and process, the reason to end early, whether it ended."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.pid = os.getpid()
        self.reason = ""
        self.give_way = threading.Event()
        self.ended = threading.Event()

    def end(self, reason: str) -> None:
        """Ask this session to end early. Returns at once."""
        self.reason = reason
        self.give_way.set()

    def let_in(self) -> None:
        """End this session and wait, in a thread that is about to start another profiler.

        Returns at once in this session's own thread, in a forked child, and after the end.
        """
        if self.thread is threading.current_thread() or self.pid != os.getpid():
            return
        self.end("the training script started one meanwhile, so this one was given up")
        # No deadline: if the other profiler starts before the end of ours, the process dies.
        while not self.ended.wait(1.0) and self.thread.is_alive():
            pass


class _State:
    """This process's lock, which a profile holds from start to export, and its session."""

    def __init__(self) -> None:
        self.running = threading.Lock()
        self.session: _Session | None = None
        self.closing = False


_state = _State()


def _after_fork() -> None:
    global _state
    _state = _State()


def _at_exit() -> None:
    """End the profile and keep the lock, so that no other profile starts."""
    _state.closing = True
    session = _state.session
    if session is not None:
        session.end("the process is ending")
    _state.running.acquire(timeout=EXIT_WAIT_SECONDS)


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)


def torch_profile(duration: Annotated[float, Range(0.001, MAX_DURATION_SECONDS)]) -> Response:
    """A Chrome trace (JSON) of *duration* seconds: all threads, operators with their shapes.

    A profile that takes too much memory ends early. Then the header field ``X-Ended-Early`` and the
    trace's own field ``workerserver`` say why. The first profile of a process takes longer, because
    torch sets its profiler up.

    Raises ProfilerInUse if the training script profiles or begins to profile before the end; NoRoom
    without space for the trace; NotImplementedHere if torch isn't imported to the end or has
    another profiler.
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
    # C++ code can have ended our session. Exporting a result that isn't there is a SIGSEGV.
    if not profile.profiler.kineto_results.trace_start_ns():
        raise ProfilerInUse("other code in this process ended this one")
    _check_room(folder)
    trace = _exported(profile, folder)
    headers = (("X-Ended-Early", early),) if early else ()
    return Response(trace, content_type="application/json", headers=headers)


def _modules() -> tuple[Any, Any]:
    """torch.autograd.profiler and torch.profiler, once all names that we need are found there.

    The check comes before the start of a profile, so that an unknown torch can't fail midway.
    """
    backend = imported("torch.autograd.profiler")
    front = imported("torch.profiler")
    # The start of a profile reads the ranks from torch.distributed, and would import it.
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
    """A profile with torch's own choice of devices, not started yet.

    torch's prepare_trace() would import torch._inductor, only to read there whether CUDA graphs are
    on. That import takes seconds beside the training loop. A process that hasn't imported
    torch._inductor has no such graphs, so this function reads the setting only if it is loaded.
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
    """Wait until the profile has to end. Returns why it ends before *duration*, or ``""``."""
    before = last = _resident()
    modules = len(sys.modules)
    imported_bytes = 0
    started = time.monotonic()
    while (left := started + duration - time.monotonic()) > 0:
        if session.give_way.wait(min(left, POLL_SECONDS)):
            return ""
        now, count = _resident(), len(sys.modules)
        if count != modules:
            imported_bytes = min(imported_bytes + max(0, now - last), MAX_IMPORTED_BYTES)
        last, modules = now, count
        if now - before - imported_bytes > MAX_GROWTH_BYTES:
            reason = f"the process grew by more than {MAX_GROWTH_BYTES} bytes"
        elif _free(folder) < MAX_TRACE_BYTES:
            reason = f"less than {MAX_TRACE_BYTES} bytes are free in {folder}"
        else:
            continue
        return f"after {time.monotonic() - started:.2f} of {duration:g} s: {reason}"
    return ""


def _stop(backend: Any, front: Any, profile: Any) -> None:
    """End a profile, even one whose start failed, and leave torch's flag cleared."""
    try:
        if backend._is_profiler_enabled:
            backend._toggle_collection_dynamic(False, {front.ProfilerActivity.CPU})
            time.sleep(SETTLE_SECONDS)
    finally:
        try:
            profile.stop_trace()
        finally:
            # A stop that failed leaves the flag set; then every later profile would be refused.
            backend._is_profiler_enabled = False


def _resident() -> int:
    """Bytes of resident memory of this process; 0 without /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _free(folder: str) -> int:
    """Bytes that this process may still write to *folder*; 0 if the folder is gone."""
    import shutil

    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _folder() -> str:
    try:
        return temporary_folder()
    except OSError as error:
        raise NoRoom("a folder for temporary files", str(error)) from error


def _check_room(folder: str) -> None:
    """Raise NoRoom unless *folder* has enough free space for the largest trace."""
    free = _free(folder)
    if free < MAX_TRACE_BYTES:
        raise NoRoom(folder, f"{free} bytes are free, {MAX_TRACE_BYTES} are needed")


def _exported(profile: Any, folder: str) -> bytes:
    """The trace of a profile that has ended. It goes through a file: torch writes to files only.

    When Kineto can't write, it only prints a message and leaves a file of another name behind. So
    the trace gets a folder of its own, which is removed as a whole.
    """
    import shutil

    try:
        own = fresh_folder("workerserver-", folder)
        try:
            path = os.path.join(own, "trace.json")
            profile.export_chrome_trace(path)
            size = os.stat(path).st_size
            if size > MAX_TRACE_BYTES:
                raise TraceTooLarge(size)
            with open(path, "rb") as file:
                trace = file.read()
        finally:
            shutil.rmtree(own)
    except OSError as error:
        raise NoRoom(folder, str(error)) from error
    if not trace[-64:].rstrip().endswith(b"}"):
        raise NoRoom(folder, f"torch wrote {len(trace)} bytes, which don't end as a trace does")
    return trace


@contextlib.contextmanager
def _gate(backend: Any, session: _Session) -> Iterator[None]:
    """Within this context, a thread that starts a profiler in *backend* first ends *session*.

    torch has no hook for this, so the context replaces torch's two entry points while our session
    runs. Other code may keep a copy of a replacement; after the session's end the copy just calls
    torch's function.
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
    """Whether a session is running or prepared. Call this inside ``_gate()``.

    A prepared session (the warm-up of a schedule) shows only in its object. The object notes that
    it was entered before it calls into torch, and holds a result after its end. To find such
    objects, this function walks all objects of the garbage collector under the GIL: 12 ms in a
    process that has imported torch, 23 ms with 1e6 objects more, a seventh of one full collection.
    Nothing cheaper is as safe: torch keeps no list of sessions, and torch's step counter misses a
    session that was prepared without a schedule.
    """
    if backend._is_profiler_enabled:
        return True
    # The walk misses objects that gc.freeze() has frozen. Then any open profiler counts, as that
    # profiler may be a prepared one.
    steps = getattr(getattr(backend, "KinetoStepTracker", None), "_step_dict", ())
    if gc.get_freeze_count() and STEP in steps:
        return True
    return any(
        # A profiler that accumulates events is entered again with its old result.
        getattr(instance, "entered", False)
        and (
            getattr(instance, "kineto_results", None) is None
            or getattr(instance, "acc_events", False)
        )
        for instance in gc.get_referrers(backend.profile)
        if issubclass(type(instance), backend.profile)
    )


def register(registry: Registry) -> None:
    registry.register(
        "torch_profile", torch_profile, limit=1, requires="torch", permission="profile", shadow=True
    )
