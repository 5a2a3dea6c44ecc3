"""The one thread that runs the uvloop loop of all servers of this process."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import uvloop

from workerserver.process import threads
from workerserver.process._pulse import LoopShare, immortalise
from workerserver.process.canary import Canary

if TYPE_CHECKING:
    from workerserver.process.acceptor import Places

__all__ = ["LoopThread"]

T = TypeVar("T")
logger = logging.getLogger("workerserver")
NAME = "workerserver-loop"
READY_SECONDS = 10.0
END_SECONDS = 1.5
STOP_SECONDS = 0.5


class GuardedLoop(uvloop.Loop):
    """A loop that waits for events no more after a timer, once its descriptors are gone.

    A thread that sleeps in a closed epoll instance is woken by its timers only. If the thread
    waited again, it would wait in whatever has the number now. That may be the epoll instance of
    the next loop, whose wake-ups this thread would take.
    """

    canary: Canary

    def call_later(  # type: ignore[override]  # TypeVarTuple: Python 3.11
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return super().call_later(delay, self._run_timer, callback, args, context=context)

    def _run_timer(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.canary.hold()
        try:
            callback(*args)
        finally:
            self.canary.hold()  # a callback may take long


class LoopThread:
    """A daemon thread that runs one uvloop loop for several users, and counts them.

    ``acquire()`` returns the process's loop thread, and starts one if there is none. The last
    ``release()`` ends the thread. If a handler blocks the thread for ever, ``abandon()`` gives the
    thread up, and the next ``acquire()`` starts another one. So does the next ``acquire()`` after
    something has closed the process's descriptors: ``canary`` tells, and then nothing wakes the
    thread any more.
    """

    _current: LoopThread | None = None
    _running: ClassVar[set[LoopThread]] = set()
    _lock = threading.RLock()  # a signal handler may interrupt the holder and shut a server down

    def __init__(self) -> None:
        self.canary = Canary()
        try:
            self.loop = GuardedLoop()
        except BaseException:
            self.canary.close()
            raise
        self.loop.canary = self.canary
        self.share = LoopShare(self.loop, 1.0)
        self._users = 0
        self._ended = False
        #: Each object that serves this loop, with the function that closes the object. A forked
        #: child must never free these objects.
        self.attached: dict[object, Callable[[], None]] = {}
        self._ready = threading.Event()
        self.thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        LoopThread._running.add(self)
        try:
            threads.start(self.thread)
        except BaseException:
            LoopThread._running.discard(self)
            self.loop.close()
            self.canary.close()
            raise
        if not self._ready.wait(READY_SECONDS):
            self._ended = True  # if it comes to life after all
            raise TimeoutError(f"the server's thread did not run in {READY_SECONDS:g} s")

    @functools.cached_property
    def places(self) -> Places:
        """Of the connections that uvloop's transport has; most processes have no such listener."""
        from workerserver.process.acceptor import Places

        return Places()

    @classmethod
    def acquire(cls) -> LoopThread:
        with cls._lock:
            current = cls._current
            if current is None or not current.thread.is_alive() or not current.canary.alive:
                current = cls._current = cls()
            current._users += 1
            return current

    def abandon(self) -> None:
        """Give the thread to no new user. Its present users keep the thread."""
        with LoopThread._lock:
            if LoopThread._current is self:
                LoopThread._current = None

    def release(self, timeout: float) -> bool:
        """Give the thread back; the last user ends it. False if it didn't end in *timeout* s."""
        with LoopThread._lock:
            self._users -= 1
            if self._users > 0:
                return True
            if LoopThread._current is self:
                LoopThread._current = None
        self._stop()
        if threading.current_thread() is self.thread:
            return True  # the thread ends when the callback that called release() returns
        self.thread.join(timeout)
        return not self.thread.is_alive()

    def _stop(self) -> None:
        self._ended = True
        with contextlib.suppress(RuntimeError):  # closed already
            self.call_soon(self.loop.stop)

    def call_soon(self, callback: Callable[..., object], *args: object) -> None:
        """Call *callback* on the loop; any thread may call this. RuntimeError if the loop is
        closed, or if something has closed its descriptors."""
        if not self.canary.alive:
            raise RuntimeError("the loop's descriptors are gone")
        self.loop.call_soon_threadsafe(callback, *args)

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start *coroutine* on the loop. Any thread may call this."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Run *coroutine* on the loop from another thread; TimeoutError after *timeout* s."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:  # not the built-in one before Python 3.11
            future.cancel()
            raise TimeoutError(f"the server's loop didn't answer in {timeout:g} s") from None

    def attach(self, thing: object, close: Callable[[], None]) -> None:
        """Keep *thing* until the loop ends, then call *close* on the loop's thread. Only the loop's
        thread may call this."""
        self.attached[thing] = close

    @property
    def newest(self) -> bool:
        """Whether no other thread has taken this one's place."""
        # Without the lock: a thread that waits for this one to end may hold it.
        return LoopThread._current in (None, self)

    def _run(self) -> None:
        threads.name_this_thread(NAME)
        self._ready.set()
        while not self._ended and not self.loop.is_closed():
            # A handler's own task can stop the loop, by stop() or by raising SystemExit.
            try:
                self.loop.run_forever()
            except BaseException:
                logger.exception("a handler's task raised out of the server's loop, which goes on")
        for close in self.attached.values():
            with contextlib.suppress(BaseException):
                close()
        self.canary.hold()
        with contextlib.suppress(BaseException):
            self.loop.close()
        self.canary.close()
        LoopThread._running.discard(self)

    @classmethod
    def after_fork(cls) -> None:
        """In a forked child: the thread is gone. Keep its loop for ever, unused."""
        for each in cls._running:
            immortalise(each)
            immortalise(each.loop)
            for thing in each.attached:
                immortalise(thing)
        cls._running.clear()
        cls._current = None
        cls._lock = threading.RLock()
        Canary.after_fork()


def _end_all() -> None:
    """At interpreter exit, after all servers: wait until every thread has ended, in bounded time.

    A shutdown() that a handler calls, or that doesn't succeed in time, goes on in the thread. A
    thread that would go on longer than we wait is stopped. For when a loop wakes, uvloop calls
    PyGILState_Ensure(), and that crashes the process if the interpreter is gone. A thread that is
    in Python code then ends by itself, when it asks for the GIL.
    """
    start = time.monotonic()
    left = [each for each in list(LoopThread._running) if each.canary.alive]
    for each in left:
        each.thread.join(max(0.0, start + END_SECONDS - time.monotonic()))
        each._stop()
    for each in left:
        each.thread.join(max(0.0, start + END_SECONDS + STOP_SECONDS - time.monotonic()))


# Before anybody who acquires a thread can register a function: Python calls the last one first.
atexit.register(_end_all)
