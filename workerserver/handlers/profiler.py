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
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from workerserver.registry import Registry
from workerserver.types import HandlerBusy, Range, Response, WorkerServerError

__all__ = ["ProfilerInUse", "TraceTooLarge", "register", "torch_profile"]

#: Bytes of a trace that are read into memory to be sent; a busy process writes 100 MB/s.
MAX_TRACE = 1024 * 1024 * 1024

#: Seconds for callbacks to return after their removal. They take microseconds, unless their thread
#: isn't run; 0.02 was too short on a machine with six busy threads to a core, 0.2 was not.
SETTLE = 0.3

#: Seconds that the interpreter's exit waits for a profile to end.
EXIT_WAIT = 10.0

#: torch.autograd.profiler's names for what begins a session, each looked up when it is called.
ENTRIES = ("_prepare_profiler", "_enable_profiler")


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


def torch_profile(duration: Annotated[float, Range(0.001, 600)]) -> Response:
    """A Chrome trace (JSON) of *duration* seconds, operators with their shapes, all threads.

    ProfilerInUse if the training script profiles, or begins to before the end. The first profile
    of a process takes longer: torch sets its profiler up.
    """
    lock = _state.running
    if not lock.acquire(blocking=False):
        raise HandlerBusy("torch_profile", 1)
    try:
        return Response(_profile(duration), content_type="application/json")
    finally:
        lock.release()


def _profile(duration: float) -> bytes:
    backend = importlib.import_module("torch.autograd.profiler")
    front = importlib.import_module("torch.profiler")
    session = _state.session = _Session()
    with _gate(backend, session):
        if _state.closing:
            raise ProfilerInUse("the process is ending")
        if _in_use(backend):
            raise ProfilerInUse("the training script runs one itself")
        profile = _prepared(backend, front)
        profile.start_trace()
        try:
            session.give_way.wait(duration)
        finally:
            backend._toggle_collection_dynamic(False, {front.ProfilerActivity.CPU})
            time.sleep(SETTLE)
            profile.stop_trace()
    if session.give_way.is_set():
        raise ProfilerInUse(session.reason)
    # Somebody ended ours (C++ code can): to export a result that isn't there is a SIGSEGV.
    if not profile.profiler.kineto_results.trace_start_ns():
        raise ProfilerInUse("other code in this process ended this one")
    with tempfile.NamedTemporaryFile(prefix="workerserver-", suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        size = os.stat(file.name).st_size
        if size > MAX_TRACE:
            raise TraceTooLarge(size)
        with open(file.name, "rb") as written:
            return written.read()


def _prepared(backend: Any, front: Any) -> Any:
    """A profile with torch's own choice of options, prepared."""
    config = front._ExperimentalConfig(profile_all_threads=True)
    profile = front._KinetoProfile(record_shapes=True, experimental_config=config)
    if "torch._inductor.config" in sys.modules:
        profile.prepare_trace()
        return profile
    # Its prepare_trace() imports torch._inductor, seconds of work beside the training loop, only
    # to read there whether CUDA graphs are on. Who hasn't imported it has none of them.
    profile.profiler = backend.profile(
        use_device=profile.use_device,
        record_shapes=True,
        use_kineto=True,
        experimental_config=config,
    )
    profile.profiler._prepare_trace()
    return profile


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
    was entered before it calls into torch, and holds a result once it has ended.
    """
    if backend._is_profiler_enabled:
        return True
    return any(
        # One that accumulates is entered again with its old result.
        instance.entered and (instance.kineto_results is None or instance.acc_events)
        for instance in gc.get_referrers(backend.profile)
        if isinstance(instance, backend.profile)
    )


def register(registry: Registry) -> None:
    registry.register("torch_profile", torch_profile, limit=1, requires="torch", shadow=True)
