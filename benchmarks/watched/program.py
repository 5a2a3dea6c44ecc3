"""A trainer that watches itself: ``python -m benchmarks.watched.program KIND SOCKET [ENTRIES]``.

KIND is ``ours``, ``torch``, or ``naive``. The latter is our server with a handler that walks the
stacks in Python. That handler walks only parked threads: beside running threads such a walk
corrupts memory on CPython 3.11. ENTRIES is the size of torch's flight recorder. The program prints
a line of JSON for each command that it reads: ``park THREADS DEPTH``, ``hold ROUNDS`` (only for
``ours``), ``watch`` (until SIGUSR1).
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from time import perf_counter_ns as clock

from benchmarks.subjects.serve import PDEATHSIG
from benchmarks.watched.gaps import FLOOR

#: Frames of a parked thread besides its recursion: three of threading's, ours, and the last one.
BELOW = 5
#: The size of a thread's stack. On CPython 3.10, recursion in Python needs C stack.
STACK_BYTES = 1 << 20


class Crowd:
    """Parked threads, each under the same number of frames."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self._arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._over = False

    def park(self, number: int, depth: int) -> None:
        self.leave()
        self._over = False
        self._gate.acquire()
        self.threads = [
            threading.Thread(target=self._stay, args=(depth - BELOW,), daemon=True)
            for _ in range(number)
        ]
        for thread in self.threads:
            thread.start()
        self._wait()

    def again(self) -> None:
        """Let all threads unwind their stacks and build new frames at the same depth."""
        before, self._gate = self._gate, threading.Lock()
        self._gate.acquire()
        before.release()
        self._wait()

    def leave(self) -> None:
        if not self.threads:
            return
        self._over = True
        self._gate.release()
        for thread in self.threads:
            thread.join()
        self.threads = []
        self._gate = threading.Lock()
        self._arrived = queue.SimpleQueue()

    def _wait(self) -> None:
        for _ in self.threads:
            self._arrived.get()

    def _stay(self, depth: int) -> None:
        while not self._over:
            self._down(depth, self._gate)

    def _down(self, depth: int, gate: threading.Lock) -> None:
        if depth > 0:
            self._down(depth - 1, gate)
        else:
            self._arrived.put(None)
            gate.acquire()
            gate.release()


crowd = Crowd()


def naive() -> str:
    """The stacks of the parked threads only, by the standard library."""
    known = {thread.ident for thread in crowd.threads}
    lines = []
    for ident, frame in sys._current_frames().items():
        if ident in known:
            lines.append(f"Thread {ident:#x} (most recent call first):")
            for each, number in traceback.walk_stack(frame):
                code = each.f_code
                lines.append(f'  File "{code.co_filename}", line {number} in {code.co_name}')
    return "\n".join(lines)


def serve(kind: str, path: str) -> object:
    if kind == "torch":
        from torch._C import _distributed_c10d as c10d

        return c10d._WorkerServer(path)
    from workerserver import WorkerServer
    from workerserver.handlers import default_registry

    if kind == "naive":
        default_registry.register("naive", naive)
    return WorkerServer(path)


def microseconds(function: Callable[[], object]) -> float:
    start = clock()
    function()
    return (clock() - start) / 1000


def hold(rounds: int) -> dict[str, object]:
    """Times in microseconds: of the compiled walk over new frames, of a second walk over the same
    frames, of the handler with its rendering, and of a snapshot without the GIL.

    No other thread wants the GIL, so the time of the walk is the time for which it holds the GIL.
    The first walk makes frame objects, which live as long as their functions run.
    """
    from workerserver.handlers.stacks import dump_traceback
    from workerserver.stacks._stacks import snapshot

    found: dict[str, list[float]] = {"first": [], "again": [], "handler": [], "nogil": []}
    snapshot()
    for _ in range(rounds):
        crowd.again()
        found["first"].append(microseconds(snapshot))
        for _ in range(2):
            found["again"].append(microseconds(snapshot))
            found["handler"].append(microseconds(dump_traceback))
            found["nogil"].append(microseconds(lambda: snapshot(mode="nogil")))
    taken = snapshot()
    return {
        **found,
        "frames": sum(len(thread.frames) for thread in taken.threads),
        "truncated": taken.truncated or any(thread.truncated for thread in taken.threads),
    }


stopped = False


def stop(*_: object) -> None:
    global stopped
    stopped = True


def starved() -> Callable[[], int]:
    """A function that returns the nanoseconds in which the calling thread was ready to run but had
    no processor, from proc_pid_schedstat. Always 0 if the kernel doesn't say.

    The function keeps the GIL. os.pread() would release the GIL to a thread that waits for it.
    """
    try:
        fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
    except OSError:
        return lambda: 0
    # A PyDLL and not a CDLL: calls through a CDLL release the GIL.
    pread = ctypes.PyDLL(None).pread
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_long)
    buffer = ctypes.create_string_buffer(64)

    def read() -> int:
        size = pread(fd, buffer, 64, 0)
        return int(buffer.raw[:size].split()[1])

    return read


def watch() -> list[tuple[int, int, int]]:
    """Run Python without a pause until SIGUSR1. Returns the gaps between two turns of the loop that
    are longer than FLOOR: begin, end, and the part in which the thread only lacked a processor. All
    are in nanoseconds, on the clock that all processes share."""
    global stopped
    stopped = False
    gaps = []
    floor = FLOOR * 1e6
    delay = starved()
    before = delay()
    print(json.dumps("watching"), flush=True)
    last = clock()
    while not stopped:
        now = clock()
        if now - last > floor:
            after = delay()
            gaps.append((last, now, after - before))
            before = after
        last = now
    return gaps


def main() -> None:
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGUSR1, stop)
    sys.setrecursionlimit(5000)
    threading.stack_size(STACK_BYTES)
    kind, path, *entries = sys.argv[1:]
    if entries:
        os.environ["TORCH_FR_BUFFER_SIZE"] = entries[0]
        from benchmarks.subjects.flight_setup import prepare

        prepare(int(entries[0]))
    server = serve(kind, path)
    print(json.dumps("ready"), flush=True)
    answer: object
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "park":
            crowd.park(*map(int, numbers))
            answer = len(crowd.threads)
        elif command == "hold":
            answer = hold(*map(int, numbers))
        else:
            answer = watch()
        print(json.dumps(answer), flush=True)
    del server


if __name__ == "__main__":
    main()
