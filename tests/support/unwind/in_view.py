"""Whether native frames show the interpreter's loop."""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading
import time
from typing import Any

import pytest

from workerserver.stacks._stacks import snapshot


def need_the_loop_in_view() -> None:
    """Skip where no native frame stands for Python frames."""
    if hidden():
        pytest.skip(f"this CPython's loop calls its parts by tail calls ({hidden()})")


@functools.cache
def hidden() -> str:
    """How such a stack ends; "" if native frames stand for Python frames.

    CPython 3.14 and later may be compiled so that the interpreter's loop calls its parts by tail
    calls, as Debian's is. There the Python frames follow after the native ones, or the stack is
    cut. Older versions have no excuse.
    """
    if sys.version_info < (3, 14):
        return ""
    mine, other = socket.socketpair()
    with mine, other:
        thread = threading.Thread(target=mine.recv, args=(1,), daemon=True)
        thread.start()
        until = time.monotonic() + 60
        native = _of(thread)
        while native["end"] == "running" and time.monotonic() < until:
            time.sleep(0.1)
            native = _of(thread)
        other.send(b"x")
        thread.join(60)
    return "" if any("python" in frame for frame in native["frames"]) else str(native["end"])


def _of(thread: threading.Thread) -> dict[str, Any]:
    told = json.loads(snapshot(mode="nogil", native=True).render("json"))
    (found,) = (each["native"] for each in told["threads"] if each["ident"] == thread.ident)
    return dict(found)
