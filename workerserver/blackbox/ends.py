"""What Python knows of the end of its process: an exception that nobody caught, and the exit.

Signals are told by C handlers (native/box/signals.c). What was there before us is called as before.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any

__all__ = ["watch_end"]

#: Of a traceback, its end counts; of an exception's text, the beginning.
MAX_TRACEBACK = 6000
MAX_TEXT = 500
#: The record has room for 16 KiB.
MAX_BYTES = 15 << 10
#: Other threads' exceptions don't end the process; so many are told.
MAX_THREADS = 2


def watch_end(write: Callable[[bytes], object], close: Callable[[], object]) -> None:
    """From now on *write* gets a JSON object when this process ends by an exception or by its
    interpreter's exit. *close* is called after the latter."""
    _Watch(write, close)


class _Watch:
    def __init__(self, write: Callable[[bytes], object], close: Callable[[], object]) -> None:
        self._write = write
        self._close = close
        self._pid = os.getpid()
        self._threads = 0
        self._hook = sys.excepthook
        self._thread_hook = threading.excepthook
        sys.excepthook = self._uncaught
        threading.excepthook = self._uncaught_in_thread
        atexit.register(self._exits)

    def _uncaught(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        self._tell(_exception("exception", kind, error, trace))
        self._hook(kind, error, trace)

    def _uncaught_in_thread(self, args: Any, /) -> None:
        if args.exc_type is not SystemExit and self._threads < MAX_THREADS:
            self._threads += 1
            name = getattr(args.thread, "name", None)
            told = _exception("thread", args.exc_type, args.exc_value, args.exc_traceback)
            self._tell({**told, "name": str(name)[:MAX_TEXT]})
        self._thread_hook(args)

    def _exits(self) -> None:
        self._tell({"why": "exit"})
        if self._pid == os.getpid():
            with contextlib.suppress(Exception):
                self._close()

    def _tell(self, what: dict[str, Any]) -> None:
        """A forked child tells nothing: the box is its parent's."""
        if self._pid != os.getpid():
            return
        with contextlib.suppress(Exception):
            told = {**what, "thread": threading.get_native_id(), "time": time.time()}
            data = json.dumps(told).encode("ascii")
            if len(data) > MAX_BYTES:
                data = json.dumps({**told, "traceback": None, "frames": []}).encode("ascii")
            self._write(data)


def _exception(
    why: str, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> dict[str, Any]:
    """Bounded, whatever the exception's own methods do."""
    told: dict[str, Any] = {"why": why, "type": str(getattr(kind, "__qualname__", kind))[:MAX_TEXT]}
    with contextlib.suppress(Exception):
        told["text"] = str(error)[:MAX_TEXT]
    with contextlib.suppress(Exception):
        frames = traceback.extract_tb(trace)[-100:]
        told["frames"] = [
            [frame.filename[:MAX_TEXT], frame.lineno, frame.name[:MAX_TEXT]] for frame in frames
        ][-20:]
        text = "".join(traceback.format_list(frames))
        told["traceback"] = text[-MAX_TRACEBACK:]
    return told
