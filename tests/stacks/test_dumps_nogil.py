"""Dumps without the GIL as others ask for them: compiled modules, forked children, HTTP."""

from __future__ import annotations

import ctypes
import json
import platform
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, TESTS, environment, run_isolated
from support.parking import block, parked, plain, recursive, untraced, where_it_works

from workerserver.handlers.stacks import dump_traceback
from workerserver.stacks import _stacks
from workerserver.stacks._stacks import prepare, snapshot, snapshots_taken

pytestmark = [pytest.mark.cpython, untraced, where_it_works]


# --- as other compiled modules call it ---------------------------------------------------------


class Buffer(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("size", ctypes.c_size_t),
        ("capacity", ctypes.c_size_t),
    )

    def taken(self) -> bytes:
        """What it holds; and frees it."""
        found = ctypes.string_at(self.data or 0, self.size) if self.size else b""
        exported("buffer_free", None)(ctypes.byref(self))
        assert (self.data, self.size, self.capacity) == (None, 0, 0)
        return found


class Gil(ctypes.Structure):
    _fields_ = (
        ("known", ctypes.c_bool),
        ("locked", ctypes.c_bool),
        ("holder", ctypes.c_ulong),
        ("switches", ctypes.c_ulong),
    )


def exported(name: str, result: Any, *, gil: bool = False) -> Any:
    """A C function of _stacks.pxd; called without the GIL, or with it."""
    capsule = _stacks.__pyx_capi__[name]
    get_name, get_pointer = (
        ctypes.pythonapi.PyCapsule_GetName,
        ctypes.pythonapi.PyCapsule_GetPointer,
    )
    get_name.restype, get_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = get_pointer(capsule, get_name(capsule))
    return (ctypes.PYFUNCTYPE if gil else ctypes.CFUNCTYPE)(result)(address)


def in_time(lines: list[str]) -> bool:
    """Whether the kernel let the snapshot end within its budget."""
    return bool(lines) and lines[-1].startswith("  File ")


TEXT, JSON, DIGEST = range(3)


def dumped(*wanted: int, gil: bool = False) -> tuple[list[str], list[str]]:
    """One dump in the formats *wanted*: its header lines, and the text in each format or ``""``."""
    outs, headers = (Buffer * 3)(), Buffer()
    mask = sum(1 << each for each in wanted)
    assert exported("dump_reply", ctypes.c_int, gil=gil)(mask, outs, ctypes.byref(headers)) == 0
    *lines, end = headers.taken().decode("ascii").split("\r\n")
    assert end == ""
    return lines, [out.taken().decode("ascii") for out in outs]


@pytest.mark.parametrize("gil", [False, True])
def test_exported_dumps(gil: bool) -> None:
    assert prepare() is None
    before = snapshots_taken()
    with parked(recursive) as thread:
        expected = block(snapshot().text(), thread)
        digest = snapshot().render("digest")
        while True:
            headers, texts = dumped(TEXT, gil=gil)
            assert headers[0] == "X-Traceback-Mode: nogil"
            assert texts[JSON] == texts[DIGEST] == ""
            if in_time(found := block(texts[TEXT], thread)):
                break
        assert found == expected
        headers, texts = dumped(JSON, DIGEST, gil=gil)
        assert texts[TEXT] == ""
        value = json.loads(texts[JSON])
        assert value["mode"] == "nogil"
        assert list(json.loads(texts[DIGEST])) == list(json.loads(digest))
    if gil:
        assert value["gil_holder"] == threading.get_ident()
        assert headers[1] == f"X-GIL-Holder: 0x{threading.get_ident():016x} (MainThread)"
    assert snapshots_taken() >= before + 4


def test_exported_gil_state() -> None:
    assert prepare() is None
    gil = Gil()
    exported("gil_state", None, gil=True)(ctypes.byref(gil))
    assert (gil.known, gil.locked, gil.holder) == (True, True, threading.get_ident())
    before = gil.switches
    other = threading.Thread(target=lambda: None)
    other.start()
    other.join(30)
    exported("gil_state", None, gil=True)(ctypes.byref(gil))
    assert gil.switches >= before + 2


# --- in processes of their own -----------------------------------------------------------------


def run(*command: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    if done.returncode == 77:
        pytest.skip("no seccomp filters here")
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="call numbers")
def test_where_the_kernel_forbids_it() -> None:
    found = run(str(PROGRAMS / "native/no_self_read.py"), "before")
    assert "memory" in found["problem"]
    assert found["status"] == 501
    assert found["text"].startswith("mode=nogil is not available: ")
    assert found["problem"] in found["text"]
    assert found["gil"] == "gil"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="call numbers")
def test_what_is_left_when_the_kernel_forbids_it_later() -> None:
    found = run(str(PROGRAMS / "native/no_self_read.py"), "after")
    assert found["problem"] is None
    assert (found["status"], found["headers"]) == (200, {"X-Traceback-Mode": "kernel"})
    first, _, line = found["text"].splitlines()
    assert first.startswith("No Python stacks: they could not be read at this moment. ")
    assert re.fullmatch(rf"Thread 0x{found['pid']:016x} \[[^\]]+\] state R( wchan \S+)?", line)


@pytest.mark.parametrize("mib", ["4", "40"])
def test_a_shortage_at_the_start_passes(short_path: Path, mib: str) -> None:
    """No address space for what is kept, or for one snapshot: called so, and tried again."""
    done = run_isolated("native/short_of_memory.py", str(short_path), mib)
    assert done.returncode == 0, done.stderr
    why = "no memory for reading stacks just now"
    assert json.loads(done.stdout) == {"short": "kernel", "why": why, "later": "nogil"}


def test_fork_while_others_read() -> None:
    """The reader's lock and its knowledge belong to the parent. A child starts anew."""
    program = """
import json, os, signal, sys, threading
from workerserver.stacks._stacks import snapshot, prepare
prepare()
stop = False
def read():
    while not stop:
        try:
            snapshot(mode="nogil")
        except RuntimeError:
            pass
threads = [threading.Thread(target=read) for _ in range(3)]
for thread in threads: thread.start()
statuses = []
for n in range(30):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        good = False
        for _ in range(20):  # on a busy machine one may run out of its time
            try:
                taken = snapshot(mode="nogil")
            except RuntimeError:
                continue
            (thread,) = taken.threads
            if thread.unstable or taken.truncated:
                continue
            good = taken.pid == os.getpid() and thread.frames[0].function == "<module>"
            if sys.version_info >= (3, 11):  # 3.10 keeps the parent's
                good = good and thread.native_id == os.getpid()
            break
        os._exit(0 if good else 1)
    statuses.append(os.waitpid(child, 0)[1])
stop = True
for thread in threads: thread.join()
print(json.dumps(statuses))
"""
    assert run("-W", "ignore::DeprecationWarning", "-c", program) == [0] * 30


def test_before_it_is_prepared_a_dump_is_the_kernels() -> None:
    program = f"""
import sys, json
sys.path[:0] = [{str(TESTS)!r}, {str(TESTS / "stacks")!r}]
from test_dumps_nogil import TEXT, dumped, prepare
found = []
for _ in range(2):
    found.append(dumped(TEXT))
    assert prepare() is None
print(json.dumps(found))
"""
    (headers, texts), second = run("-c", program)
    assert headers == ["X-Traceback-Mode: kernel"]
    assert texts[TEXT].startswith("No Python stacks: ")
    assert "not prepared" in texts[TEXT]
    assert second[0][0] == "X-Traceback-Mode: nogil"


def test_handler() -> None:
    with parked(plain, name="parked") as thread:
        response = dump_traceback("text", "nogil")
        value = json.loads(dump_traceback("json", "nogil").body)
    assert response.status == 200
    assert dict(response.headers)["X-Traceback-Mode"] == "nogil"
    assert set(dict(response.headers)) <= {
        "X-Traceback-Mode", "X-GIL-Holder", "X-Traceback-Unstable",
    }  # fmt: skip
    assert f"Thread 0x{thread.ident:016x} (most recent call first):\n".encode() in response.body
    assert value["mode"] == "nogil"
    (entry,) = [each for each in value["threads"] if each["name"] == "parked"]
    assert (entry["native_id"], entry["state"]) == (thread.native_id, "S")
