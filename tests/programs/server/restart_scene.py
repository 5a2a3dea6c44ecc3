"""Trainers that serve, fork, are killed and start again, always at the same addresses.

``python restart_scene.py FOLDER CYCLES``: each cycle forks a trainer. The trainer serves on
``FOLDER/s`` and on one TCP port, and makes a child in every possible way. The trainer is killed
(SIGKILL) while its children live. Then no process may listen, no child may hold a socket or a queue
of the I/O thread, and the next trainer must be able to serve at once. Prints the findings as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import Any

from support.lifecycle import ask, connect, free_port

from workerserver import WorkerServer

# The descriptors of libuv's loop itself. A forked child never uses them, but can't close them.
LIBUV = Counter(["anon_inode:[eventpoll]", "anon_inode:[eventfd]", "anon_inode:[io_uring]"])
SUBREAPER = 36  # prctl's: orphans become this process's children, which can wait for them
libc = ctypes.PyDLL(None)


def opened(pid: int | str, kinds: tuple[str, ...]) -> dict[str, str]:
    """The descriptors of a process that are of one of *kinds*, and their targets."""
    found = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            name = os.readlink(f"/proc/{pid}/fd/{fd}")
            if name.startswith(kinds):
                found[fd] = name
    return found


def stay(out: int) -> None:
    os.write(out, b"+")
    signal.pause()


def make_children() -> dict[str, int]:
    """A child of each kind, which sleeps until it is killed. Every child has already run: before
    its first step, a child still has all descriptors of its parent."""
    made = {}
    up, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        stay(out)
    made["os.fork"] = pid
    process = multiprocessing.get_context("fork").Process(target=stay, args=(out,), daemon=True)
    process.start()
    assert process.pid is not None
    made["multiprocessing"] = process.pid
    # Python doesn't know of this fork. If a thread had asked for the GIL before the fork, the child
    # would hand the GIL to that thread, which the child doesn't have, and wait for ever. So no
    # thread may ask: the interval is long, and the sleep lets waiting threads run first.
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    time.sleep(0.05)
    pid = libc.fork()
    if pid == 0:
        libc.write(out, b"+", 1)
        libc.pause()
    sys.setswitchinterval(interval)
    made["fork(2)"] = pid
    made["subprocess"] = subprocess.Popen(["sleep", "600"], close_fds=False).pid
    missing = 3
    while missing:
        missing -= len(os.read(up, missing))
    return made


def trainer(path: str, port: int, out: int) -> None:
    """Serve, make children, report their pids, and stay until killed."""
    kept = [WorkerServer(path), WorkerServer("127.0.0.1", port)]
    children = make_children()
    own = len(opened("self", ("",)))
    facts = {"children": children, "descriptors": own, "servers": len(kept)}
    os.write(out, json.dumps(facts).encode() + b"\n")
    signal.pause()


def listeners(path: str, port: int) -> tuple[int, int]:
    """The numbers of sockets that listen on the path and on the port."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
        unix = sum(line.split()[3] == "00010000" and line.split()[-1] == path for line in file)
    with open("/proc/net/tcp", encoding="ascii") as file:
        tcp = sum(line.split()[1:4:2] == [f"0100007F:{port:04X}", "0A"] for line in file)
    return unix, tcp


def refused(address: Any) -> bool:
    try:
        connect(address).connect()
    except ConnectionRefusedError:
        return True
    return False


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def cycle(path: str, port: int, problems: list[str], old: list[int]) -> tuple[int, int]:
    """Run one trainer. Returns its descriptors while it served. Its children stay, in *old*."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trainer(path, port, writing)
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading, encoding="ascii") as file:
        line = file.readline()
    if not line:
        os.waitpid(pid, 0)
        problems.append("a trainer could not serve")
        return 0, 0
    facts = json.loads(line)
    addresses = (path, ("127.0.0.1", port))
    for address in addresses * 2:
        status, body = ask(address, "/healthz", "GET")
        if (status, json.loads(body)["pid"]) != (200, pid):
            problems.append(f"{address}: {status} {body}")
    if listeners(path, port) != (1, 1):
        problems.append(f"listeners: {listeners(path, port)}")
    for child in old:  # of the trainer before
        kill(child)
    old[:] = facts["children"].values()
    open_ones = [connect(address) for address in addresses]
    for connection in open_ones:
        connection.connect()
    kill(pid)
    for address in addresses:
        if not refused(address):
            problems.append(f"{address}: a listener outlives its process")
    if listeners(path, port) != (0, 0):
        problems.append(f"listeners of a dead process: {listeners(path, port)}")
    for connection in open_ones:
        connection.sock.settimeout(5.0)
        with contextlib.suppress(ConnectionResetError):
            if connection.sock.recv(1):
                problems.append("bytes from a dead process")
        connection.close()
    for name, child in facts["children"].items():
        kept = Counter(opened(child, ("socket:", "anon_inode:")).values())
        if name != "subprocess":
            kept -= LIBUV
        if kept:
            problems.append(f"{name}: {kept}")
    return facts["descriptors"], len(opened("self", ("",)))


def main(folder: str, cycles: str) -> None:
    libc.prctl(SUBREAPER, 1, 0, 0, 0)
    path, port = os.path.join(folder, "s"), free_port()
    problems: list[str] = []
    old: list[int] = []
    begin = time.monotonic()
    counts = [cycle(path, port, problems, old) for _ in range(int(cycles))]
    for child in old:
        kill(child)
    facts = {
        "cycles": len(counts),
        "seconds": round(time.monotonic() - begin, 1),
        "problems": problems[:20],
        "trainer's descriptors": sorted({count for count, _ in counts}),
        "own descriptors": sorted({count for _, count in counts}),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
