"""What the kernel says of sleeping threads in a snapshot's JSON: real waits, in each mode."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from support.parking import untraced
from support.waiting import wait_until

from workerserver.stacks._stacks import kernel_state, prepare, snapshot

pytestmark = [
    pytest.mark.cpython,
    untraced,
    pytest.mark.skipif(not Path("/proc/self/syscall").exists(), reason="needs /proc/PID/syscall"),
]

Mode = Literal["gil", "nogil", "kernel"]
#: The number of the system call.
FUTEX = {"x86_64": 202, "aarch64": 98}.get(os.uname().machine)
#: Holds a lock on the file argv[1] by the function argv[2], says so and stays.
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
getattr(fcntl, sys.argv[2])(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(params=["gil", "nogil", "kernel"])
def mode(request: pytest.FixtureRequest) -> Mode:
    if request.param == "nogil" and (problem := prepare()) is not None:
        pytest.skip(problem)
    mode: Mode = request.param
    return mode


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[[str, str], tuple[Path, int]]]:
    """Lets another process lock a file: the file, and the process's id."""
    holders: list[subprocess.Popen[bytes]] = []

    def hold(name: str, function: str) -> tuple[Path, int]:
        path = tmp_path / name
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        holders.append(holder)
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        return path, holder.pid

    yield hold
    for holder in holders:
        holder.communicate()  # the end of its input ends it


def wait_of(
    mode: Mode, call: Callable[[], object], end: Callable[[], object], *, futex: bool = False
) -> dict[str, Any] | None:
    """What a thread waits for that sleeps in *call*, perhaps in a *futex*; *end* then wakes it."""
    thread = threading.Thread(target=call, name="waiter")
    thread.start()
    assert thread.native_id is not None
    try:
        native: int = thread.native_id
        wait_until(lambda: kernel_state(native)[0] == "S" and settled(native, futex))
        first, second = (entry(mode, native) for _ in range(2))
    finally:
        end()
        thread.join(30)
    assert not thread.is_alive()
    assert first.get("waits_for") == second.get("waits_for")
    assert first.get("switches") == second.get("switches")
    assert "switches" in first or "waits_for" not in first
    assert first.get("switches", 1) > 0
    waits: dict[str, Any] | None = first.get("waits_for")
    return waits


def settled(native: int, futex: bool) -> bool:
    """In the call itself, and not on its way there."""
    before = Path(f"/proc/self/task/{native}/syscall").read_text()
    time.sleep(0.02)
    after = Path(f"/proc/self/task/{native}/syscall").read_text()
    return before == after and asleep(after.split(), futex)


def asleep(call: list[str], futex: bool) -> bool:
    """A thread that starts, or waits to run Python, is in a futex, too."""
    if FUTEX is None or not futex:
        return call[0] not in ("running", str(FUTEX))
    # In one without a clock of its own: not in that of a thread that wants the GIL.
    return call[0] == str(FUTEX) and call[2] != "0x89"


def entry(mode: Mode, native: int) -> dict[str, Any]:
    value = json.loads(snapshot(mode=mode).render("json"))
    (found,) = [each for each in value["threads"] if each["native_id"] == native]
    return dict(found)


def test_a_pipe(mode: Mode) -> None:
    out, into = os.pipe()
    name = os.readlink(f"/proc/self/fd/{out}")
    found = wait_of(mode, lambda: os.read(out, 1), lambda: os.write(into, b"x"))
    assert found == {
        "kind": "descriptor", "source": "kernel", "syscall": "read", "descriptor": out,
        "target": name,
    }  # fmt: skip
    os.close(into)
    os.close(out)


def test_a_full_pipe(mode: Mode) -> None:
    out, into = os.pipe()
    size = fcntl.fcntl(into, 1032)  # F_GETPIPE_SZ
    os.write(into, b"x" * size)
    found = wait_of(mode, lambda: os.write(into, b"x"), lambda: os.read(out, size))
    assert found is not None
    assert (found["syscall"], found["descriptor"]) == ("write", into)
    os.close(into)
    os.close(out)


def test_one_descriptor_of_a_poll(mode: Mode) -> None:
    one, two = socket.socketpair()
    poll = select.poll()
    poll.register(one, select.POLLIN)
    found = wait_of(mode, poll.poll, lambda: two.send(b"x"))
    assert found is not None
    assert found["syscall"] == "poll"
    assert found["descriptor"] == one.fileno()
    assert found["target"] == os.readlink(f"/proc/self/fd/{one.fileno()}")
    one.close()
    two.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_sleeping_thread_that_runs_in_between_shows_it(again: bool) -> None:
    """A loop that sleeps at one line, and a thread that sleeps through."""
    done = threading.Event()

    def sleep() -> None:
        while not done.is_set():
            time.sleep(0.01 if again else 5.0)

    def counted() -> int | None:
        threads = json.loads(snapshot(facts=True).render("json"))["threads"]
        (found,) = (each for each in threads if each["native_id"] == thread.native_id)
        return found.get("switches") if found["state"] == "S" else None

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    wait_until(lambda: counted() is not None)
    first = counted()
    if again:
        wait_until(lambda: counted() not in (None, first))
    else:
        assert counted() == first
    done.set()


def test_several_descriptors_of_a_poll_tell_nothing(mode: Mode) -> None:
    one, two = socket.socketpair()
    poll = select.poll()
    poll.register(one, select.POLLIN)
    poll.register(two, select.POLLIN)
    assert wait_of(mode, poll.poll, lambda: two.send(b"x")) is None
    one.close()
    two.close()


def test_the_store_of_the_job(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known by its port, on either address family."""
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        try:
            server = socket.create_server((host, 0), family=family)
        except OSError:
            continue  # no IPv6 here
        client = socket.create_connection(server.getsockname()[:2])
        answers, _ = server.accept()
        for port, kind in (
            (server.getsockname()[1], "store"),
            (1, "descriptor"),
            ("x", "descriptor"),
        ):
            monkeypatch.setenv("MASTER_PORT", str(port))
            prepare()
            found = wait_of(mode, partial(client.recv, 1), partial(answers.send, b"x"))
            assert found is not None
            assert (found["kind"], found["syscall"]) == (kind, "recvfrom")
            assert found["descriptor"] == client.fileno()
        for each in (client, answers, server):
            each.close()
    monkeypatch.delenv("MASTER_PORT")
    prepare()


def test_a_fifo_that_nobody_writes(mode: Mode, tmp_path: Path) -> None:
    path = tmp_path / "it's \x1b[31m a \N{EURO SIGN} fifo\n"
    os.mkfifo(path)
    found = wait_of(mode, lambda: path.open("rb").close(), lambda: path.open("wb").close())
    assert found is not None
    assert found == {
        "kind": "descriptor", "source": "kernel", "syscall": "openat", "path": str(path),
    }  # fmt: skip


def test_bytes_that_are_no_text(mode: Mode, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xe2\x82 \xed\xa0\x80\xf5"
    os.mkfifo(path)
    open_ = os.open
    found = wait_of(
        mode,
        lambda: os.close(open_(path, os.O_RDONLY)),
        lambda: os.close(open_(path, os.O_WRONLY)),
    )
    assert found is not None
    # As every name in JSON: a lone surrogate is spelled out.
    assert found["path"] == os.fsdecode(path).encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize(("function", "syscall"), [("flock", "flock"), ("lockf", "fcntl")])
def test_a_file_lock_and_who_holds_it(
    mode: Mode, function: str, syscall: str, held: Callable[[str, str], tuple[Path, int]]
) -> None:
    path, pid = held("cache.lock", function)
    other, _ = held("another", function)  # a line more, whose owner is somebody else
    with path.open("w") as file, other.open("w"):
        found = wait_of(
            mode,
            lambda: getattr(fcntl, function)(file, fcntl.LOCK_EX),
            lambda: os.kill(pid, 15),
        )
        descriptor = file.fileno()
    assert found == {
        "kind": "file_lock", "source": "kernel", "syscall": syscall, "descriptor": descriptor,
        "path": str(path), "pid": pid,
    }  # fmt: skip


def test_a_lock_with_several_holders_has_no_owner(
    mode: Mode, held: Callable[[str, str], tuple[Path, int]], tmp_path: Path
) -> None:
    """Two threads wait for ranges of one file that two processes hold: who waits for whom of them
    is not told."""
    code = HOLDER.replace("LOCK_EX)", "LOCK_EX, 1, int(sys.argv[3]))")
    path = tmp_path / "ranges"
    holders = []
    for start in (0, 5):
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(path), "lockf", str(start)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holders.append(holder)
    with path.open("w") as file:
        second = threading.Thread(target=fcntl.lockf, args=(file, fcntl.LOCK_EX, 1, 5))
        second.start()
        assert second.native_id is not None
        native: int = second.native_id
        wait_until(lambda: (kernel_state(native)[1] or "").startswith("fcntl"))
        found = wait_of(
            mode,
            lambda: fcntl.lockf(file, fcntl.LOCK_EX, 1, 0),
            lambda: [holder.communicate() for holder in holders],
        )
        second.join()
    assert found is not None
    assert (found["kind"], found.get("pid")) == ("file_lock", None)


def test_a_child(mode: Mode) -> None:
    code = "import sys; sys.stdin.read()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    assert child.stdin is not None
    found = wait_of(mode, child.wait, child.stdin.close)
    assert found == {
        "kind": "process", "source": "kernel", "syscall": "wait4", "pid": child.pid,
    }  # fmt: skip


@pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="needs glibc")
def test_the_owner_of_a_mutex(mode: Mode) -> None:
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)  # all zero: PTHREAD_MUTEX_INITIALIZER
    libc.pthread_mutex_lock(mutex)
    found = wait_of(
        mode,
        lambda: (libc.pthread_mutex_lock(mutex), libc.pthread_mutex_unlock(mutex)),
        lambda: libc.pthread_mutex_unlock(mutex),
        futex=True,
    )
    assert found == {
        "kind": "mutex", "source": "kernel", "syscall": "futex",
        "object": f"0x{ctypes.addressof(mutex):016x}", "holder": threading.get_native_id(),
    }  # fmt: skip


def test_a_futex_that_is_no_mutex_has_no_owner(mode: Mode) -> None:
    """The same system call on memory that only begins like a mutex."""
    libc = ctypes.CDLL(None)
    words = (ctypes.c_int * 8)(2, 0, 0, 1, 0)
    if FUTEX is None:
        pytest.skip("the number of futex() is not known here")

    def wake() -> None:
        words[0] = 0
        libc.syscall(FUTEX, words, 129, 1)

    for owner in (0, 2**30, -1):
        words[0], words[2] = 2, owner
        assert (
            wait_of(mode, lambda: libc.syscall(FUTEX, words, 128, 2, None), wake, futex=True)
            is None
        )


def test_a_lock_of_python_has_no_owner_in_the_kernel(mode: Mode) -> None:
    lock = threading.Lock()
    lock.acquire()

    def take() -> None:
        with lock:
            pass

    found = wait_of(mode, take, lock.release, futex=True)
    assert found is None or found["source"] != "kernel"


def test_a_thread_that_sleeps_or_runs_waits_for_nothing(mode: Mode) -> None:
    done = threading.Event()
    found = wait_of(mode, done.wait, done.set, futex=True)
    assert found is None or found["source"] != "kernel"
    me = entry(mode, threading.get_native_id())
    assert "waits_for" not in me


def test_our_own_threads_are_left_out(mode: Mode) -> None:
    out, into = os.pipe()
    thread = threading.Thread(target=lambda: os.read(out, 1), name="workerserver-test")
    thread.start()
    assert thread.native_id is not None
    native: int = thread.native_id
    wait_until(lambda: "pipe" in (kernel_state(native)[1] or ""))
    found = entry(mode, native)
    os.write(into, b"x")
    thread.join()
    # In mode kernel the name is the kernel's, which Python sets only from 3.14 on.
    assert mode == "kernel" or "waits_for" not in found
    os.close(into)
    os.close(out)
