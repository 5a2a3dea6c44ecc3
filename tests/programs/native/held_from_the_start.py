"""A server in a process whose main thread takes the GIL, and keeps it, right after the start.

``python held_from_the_start.py FOLDER`` serves on ``FOLDER/s`` and holds the GIL until a byte comes
through the pipe ``FOLDER/release``. The I/O thread is slow in its first steps, which need the GIL.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from unittest import mock

from workerserver import WorkerServer
from workerserver.native import _bridge
from workerserver.process.threads import name_this_thread

libc = ctypes.PyDLL(None)  # calls through it keep the GIL


def slow(name: str) -> None:
    time.sleep(0.5)
    name_this_thread(name)


def main(folder: str) -> None:
    release = os.open(os.path.join(folder, "release"), os.O_RDWR)  # both ends: nothing waits
    buffer = ctypes.create_string_buffer(1)
    read = libc.read
    with mock.patch.object(_bridge, "name_this_thread", slow):
        server = WorkerServer(os.path.join(folder, "s"))
        read(release, buffer, 1)
    server.shutdown()
    print("ended", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
