"""A process whose descriptors are all closed under a server, and given to files of training's.

    closerange_scene.py native|uvloop asleep|awake|timer

``timer``: a handler's timer wakes the loop's thread after the close, before any deadline of the
server's does. Prints one JSON object: what became of the files, of the server's threads, and of a
second server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

from support.lifecycle import sleeps

from workerserver import WorkerServer, handler
from workerserver.server import Limits

#: Connects, leaves half a request on each connection, and asks on one of them without a pause.
CLIENT = """
import socket, sys
path, busy = sys.argv[1:]
idle = [socket.socket(socket.AF_UNIX) for _ in range(20)]
for sock in idle:
    sock.connect(path)
    sock.sendall(b"POST /handler/pi")
asks = socket.socket(socket.AF_UNIX)
asks.connect(path)
def ask():
    asks.sendall(b"POST /handler/ping HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    return asks.recv(4096)
ask()
print("ready", flush=True)
try:
    while busy == "awake" and ask():
        pass
except OSError:
    pass
sys.stdin.read()
"""
FILES = 200
CONTENT = b"what training writes\n"
LIMITS = Limits(head_timeout=0.3, idle_timeout=0.3)
TIMER_SECONDS = 1.0


@handler("later", permission="read")
async def later() -> str:
    asyncio.get_running_loop().call_later(TIMER_SECONDS, str)
    return "later"


def main(transport: str, busy: str) -> None:
    logging.basicConfig(format="%(message)s")
    limits = Limits() if busy == "timer" else LIMITS
    with tempfile.TemporaryDirectory(prefix="ws-") as folder:
        path = f"{folder}/server"
        server = WorkerServer(path, limits=limits, transport=transport)  # type: ignore[arg-type]
        tcp = WorkerServer("127.0.0.1", 0, limits=limits, transport=transport)  # type: ignore[arg-type]
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, path, busy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        assert client.stdin is not None
        assert client.stdout.readline() == b"ready\n"
        os.dup2(client.stdin.fileno(), 5000)  # beyond what is closed
        if busy == "timer":
            assert ask(path, "later").endswith("later")
        time.sleep(0.1)  # the loop has done what a start leaves behind
        threads = [each.native_id for each in threading.enumerate() if each.native_id]
        threads.remove(threading.get_native_id())

        os.closerange(3, 4096)
        files = [
            os.open(f"{folder}/file{number}", os.O_RDWR | os.O_CREAT) for number in range(FILES)
        ]
        for fd in files:
            os.write(fd, CONTENT)
        kept = [os.fstat(fd).st_ino for fd in files]

        # Every deadline passes, and the timer.
        time.sleep(TIMER_SECONDS + 0.5 if busy == "timer" else 4 * LIMITS.head_timeout)
        quiet = all(map(sleeps, threads))
        server.shutdown()
        tcp.shutdown()

        def whole(fd: int) -> bool:
            with contextlib.suppress(OSError):
                return os.pread(fd, 100, 0) == CONTENT and os.lseek(fd, 0, os.SEEK_CUR) == len(
                    CONTENT
                )
            return False

        print(
            json.dumps(
                {
                    "numbers": files[0] == 3 and len(files) == FILES,
                    "whole": sum(map(whole, files)),
                    "same": sum(
                        os.fstat(fd).st_ino == inode for fd, inode in zip(files, kept, strict=True)
                    ),
                    "quiet": quiet,
                    "again": ask_a_new_server(f"{folder}/again"),
                }
            ),
            flush=True,
        )
        os.close(5000)
        client.wait(10)


def ask(path: str, name: str) -> str:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        head = "Host: x\r\nConnection: close\r\n\r\n"
        sock.sendall(f"POST /handler/{name} HTTP/1.1\r\n{head}".encode())
        with sock.makefile("rb") as reply:
            return reply.read().decode()


def ask_a_new_server(path: str) -> str:
    with WorkerServer(path):
        return ask(path, "dump_traceback")[:15]


if __name__ == "__main__":
    main(*sys.argv[1:3])
