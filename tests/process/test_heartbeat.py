"""The pulse: what heartbeat takes, what /healthz says of it, and that no reader sees half of it."""

from __future__ import annotations

import ctypes
import inspect
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.lifecycle import PROGRAMS
from support.served import Served
from support.wire import ask, message

from workerserver import heartbeat
from workerserver.http.registry import Registry
from workerserver.http.routes import Router
from workerserver.process import _pulse
from workerserver.process._pulse import (
    gil_watch,
    health,
    last_heartbeat,
    reset,
    set_rank,
    watch_answered,
    watch_asked,
    watch_switch,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
SECOND = 1_000_000_000
FIELDS = (
    "status",
    "pid",
    "rank",
    "uptime_s",
    "step",
    "step_age_s",
    "gil_wait_s",
    "gil_wait_max_s",
    "gil_unavailable_s",
    "cpu_s",
    "rss_bytes",
    "step_median_s",
    "step_thread",
)
#: What a server adds, as the last fields.
IDENTITY = (
    "job",
    "job_from",
    "agent",
    "restart",
    "world_size",
    "local_rank",
    "local_world_size",
    "group_rank",
    "host",
    "started",
)
NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9]|\.0)?")


class Indexed:
    """Like numpy's integers: no int, but an integer."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    reset()
    yield
    reset()


def answer(now_ns: int, max_step_age: float | None = None, started: float = 0.0) -> dict[str, Any]:
    body, status = health(started, max_step_age, now_ns=now_ns)
    found: dict[str, Any] = json.loads(body)
    assert status == {"ok": 200, "stalled": 503}[found["status"]]
    return found


def stamp_ns() -> int:
    """The time of the last heartbeat in nanoseconds: the last moment at which its age is 0."""
    low, high = 0, time.monotonic_ns()
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (low, middle - 1) if health(0, 0, now_ns=middle)[1] == 503 else (middle, high)
    return low


# --- heartbeat ------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 7, -1, True, 2**63 - 1, -(2**63), Indexed(5)])
def test_integers_are_taken(step: Any) -> None:
    heartbeat(step)
    found, age = last_heartbeat()
    assert found == (5 if isinstance(step, Indexed) else step)
    assert age is not None
    assert 0 <= age < 60


@pytest.mark.torch
def test_integers_of_torch_and_numpy_are_taken() -> None:
    numpy = pytest.importorskip("numpy")
    torch = pytest.importorskip("torch")
    for step in (numpy.int64(3), numpy.uint8(3), torch.tensor(3), torch.tensor([3])):
        reset()
        heartbeat(step)
        assert last_heartbeat()[0] == 3
    for step in (numpy.float64(3), torch.tensor(3.0), torch.tensor([3, 4])):
        with pytest.raises(TypeError):
            heartbeat(step)
    assert last_heartbeat()[0] == 3


@pytest.mark.parametrize("step", [1.0, "1", None, b"1", 1j, Indexed(1.0)])
def test_what_is_no_integer_is_a_type_error(step: Any) -> None:
    heartbeat(4)
    with pytest.raises(TypeError, match="int"):
        heartbeat(step)
    assert last_heartbeat()[0] == 4


@pytest.mark.parametrize("step", [2**63, -(2**63) - 1, 10**100, Indexed(2**64)])
def test_what_does_not_fit_is_an_overflow_error(step: Any) -> None:
    heartbeat(4)
    with pytest.raises(OverflowError, match="too large"):
        heartbeat(step)
    assert last_heartbeat()[0] == 4


def test_an_error_of_the_step_itself_comes_through() -> None:
    class Broken:
        def __index__(self) -> int:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        heartbeat(Broken())


def test_signature() -> None:
    assert str(inspect.signature(heartbeat)) == "(step, /)"
    with pytest.raises(TypeError, match="keyword"):
        heartbeat(step=1)  # type: ignore[call-arg]


@given(steps=st.lists(INT64, min_size=1, max_size=5))
def test_the_last_step_counts(steps: list[int]) -> None:
    for step in steps:
        heartbeat(step)
    assert last_heartbeat()[0] == steps[-1]
    assert answer(time.monotonic_ns())["step"] == steps[-1]


def test_the_thread_of_the_last_step_is_known() -> None:
    def told() -> Any:
        return answer(time.monotonic_ns())["step_thread"]

    assert told() is None
    heartbeat(1)
    assert told() == threading.get_ident()
    other = threading.Thread(target=heartbeat, args=(2,))
    other.start()
    other.join()
    assert told() == other.ident
    reset()
    assert told() is None


# --- what /healthz says ---------------------------------------------------------------------------


def measured(body: bytes) -> tuple[bytes, float, int]:
    """A body without the fields that change at every moment, processor time and memory, and without
    the last ones."""
    last = rb',"step_median_s":null,"step_thread":(?:null|[0-9]+)}'
    found = re.fullmatch(rb'(.*),"cpu_s":([0-9.]+),"rss_bytes":([0-9]+)' + last, body)
    assert found is not None
    return found[1], float(found[2]), int(found[3])


def test_processor_time_and_memory() -> None:
    before = time.process_time()
    _, cpu, rss = measured(health(0)[0])
    assert before - 1e-6 <= cpu <= time.process_time() + 1e-6
    # The heap may have free memory from an earlier test. So the memory is not from the heap.
    with mmap.mmap(-1, 64 << 20) as held:
        for page in range(0, len(held), 4096):
            held[page] = 1
        assert measured(health(0)[0])[2] > rss + (48 << 20)
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    assert measured(health(0)[0])[1] >= cpu + 0.04


def test_body_to_the_byte() -> None:
    nothing = b'"gil_wait_s":null,"gil_wait_max_s":null,"gil_unavailable_s":null'
    pid = str(os.getpid()).encode()
    body, status = health(1.5, now_ns=4 * SECOND)
    assert (measured(body)[0], status) == (
        b'{"status":"ok","pid":%s,"rank":null,"uptime_s":2.5,' % pid
        + b'"step":null,"step_age_s":null,'
        + nothing,
        200,
    )
    set_rank(12)
    heartbeat(-3)
    now = stamp_ns() + 20_000
    body, status = health(now / SECOND, 0, now_ns=now)
    assert (measured(body)[0], status) == (
        b'{"status":"stalled","pid":%s,"rank":12,"uptime_s":0.0,' % pid
        + b'"step":-3,"step_age_s":0.00002,'
        + nothing,
        503,
    )


def test_never_a_heartbeat() -> None:
    now = time.monotonic_ns()
    assert answer(now)["status"] == "ok"
    assert answer(now, 0)["status"] == "stalled"
    assert answer(now, 1e9)["status"] == "stalled"


@pytest.mark.parametrize("limit", [0, 0.25, 5, 300])
def test_the_limit_itself_is_not_too_old(limit: float) -> None:
    heartbeat(1)
    edge = stamp_ns() + int(limit * SECOND)
    assert answer(edge, limit)["status"] == "ok"
    assert answer(edge, limit)["step_age_s"] == limit
    assert answer(edge + 1, limit)["status"] == "stalled"
    assert answer(edge + 1)["status"] == "ok"


@pytest.mark.parametrize("limit", [-1.0, float("nan"), float("-inf")])
def test_no_limit(limit: float) -> None:
    assert answer(SECOND, limit)["status"] == "ok"


def test_a_heartbeat_after_the_time_was_taken_has_age_0() -> None:
    heartbeat(1)
    assert answer(1, 0)["step_age_s"] == 0.0
    assert answer(stamp_ns(), 0)["step_age_s"] == 0.0


@pytest.mark.parametrize(
    ("started", "uptime"),
    [(10.0, 0.0), (20.0, 0.0), (9.9994, 0.001), (float("nan"), 0.0), (float("-inf"), 1e12)],
)
def test_uptime(started: float, uptime: float) -> None:
    assert answer(10 * SECOND, started=started)["uptime_s"] == uptime


@given(
    step=INT64,
    rank=st.none() | st.integers(0, 2**63 - 1),
    now=INT64,
    started=st.floats(),
    asked=INT64,
    waits=st.lists(st.tuples(INT64, INT64), max_size=3),
)
def test_any_values_are_json_of_fixed_form(
    step: int,
    rank: int | None,
    now: int,
    started: float,
    asked: int,
    waits: list[tuple[int, int]],
) -> None:
    heartbeat(step)
    set_rank(rank)
    watch_switch(True)
    for begin, end in waits:
        watch_asked(begin)
        watch_answered(end)
    watch_asked(asked)
    body, status = health(started, now_ns=now)
    found = json.loads(body, parse_float=Decimal)
    assert status == 200
    assert len(body) <= 512  # so that there is room for the identity
    assert tuple(found) == FIELDS
    assert (found["pid"], found["rank"], found["step"]) == (os.getpid(), rank, step)
    for text in re.findall(rb":([^\",}]+)", body):
        assert text == b"null" or NUMBER.fullmatch(text.decode()), text
    micro = Decimal("0.000001")
    unavailable = Decimal(max(0, now - max(asked, 1))) / SECOND
    assert abs(found["gil_unavailable_s"] - unavailable) <= micro / 2
    assert found["gil_unavailable_s"] % micro == 0
    assert found["step_median_s"] is None
    assert 0 <= found["uptime_s"] <= 10**12
    reset()


@given(nanoseconds=st.integers(0, 2**63 - 2))
def test_seconds_are_rounded_to_the_microsecond(nanoseconds: int) -> None:
    watch_switch(True)
    watch_asked(1)
    watch_answered(1 + nanoseconds)
    text = re.search(rb'"gil_wait_s":([0-9.]+)', health(0)[0])
    assert text is not None
    micros = (nanoseconds + 500) // 1000
    expected = f"{micros // 10**6}.{micros % 10**6:06}".rstrip("0")
    assert text[1].decode() == (expected + "0" if expected.endswith(".") else expected)


def test_nothing_is_written_past_the_capacity() -> None:
    """The C function itself, which the native I/O thread calls, on each capacity."""
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    capsule = _pulse.__pyx_capi__["health_body"]
    signature = b"Py_ssize_t (char *, size_t, int64_t, double, double, int *)"
    number, real = ctypes.c_int64, ctypes.c_double
    body = ctypes.CFUNCTYPE(
        ctypes.c_ssize_t, ctypes.c_char_p, ctypes.c_size_t, number, real, real, ctypes.c_void_p
    )(get(capsule, signature))
    heartbeat(2**63 - 1)
    whole = health(0.0, 0.5, now_ns=2**62)[0]
    fixed = measured(whole)[0]
    # Values that change at each look may have a digit more or less.
    for capacity in range(len(whole) + 20):
        out = ctypes.create_string_buffer(b"#" * 600)
        status = ctypes.c_int()
        length = body(out, capacity, 2**62, 0.0, 0.5, ctypes.byref(status))
        assert length == -1 or len(fixed) < length <= capacity
        assert length > 0 or capacity < len(whole) + 10
        assert out.raw[capacity:600] == b"#" * (600 - capacity)
        assert status.value == 503
        if length > 0:
            assert measured(out.raw[:length])[0] == fixed
    with pytest.raises(ValueError, match="more than 20 bytes"):
        health(0.0, capacity=20)


# --- the GIL watch --------------------------------------------------------------------------------


def test_watch_from_asked_to_answered() -> None:
    assert gil_watch() == (None, None, None)
    watch_switch(True)
    assert gil_watch() == (None, None, 0.0)
    assert answer(5 * SECOND)["gil_unavailable_s"] == 0.0
    watch_asked(5 * SECOND)
    watch_asked(6 * SECOND)  # asking again doesn't shorten the wait
    assert answer(8 * SECOND)["gil_unavailable_s"] == 3.0
    assert answer(8 * SECOND)["gil_wait_s"] is None
    assert answer(4 * SECOND)["gil_unavailable_s"] == 0.0
    watch_answered(9 * SECOND)
    watch_answered(99 * SECOND)  # nothing was owed
    assert gil_watch() == (4.0, 4.0, 0.0)
    watch_asked(10 * SECOND)
    watch_answered(10 * SECOND)
    assert gil_watch() == (0.0, 4.0, 0.0)
    watch_asked(1)
    watch_switch(False)
    assert gil_watch() == (0.0, 4.0, None)
    found = answer(20 * SECOND)
    assert (found["gil_wait_s"], found["gil_wait_max_s"]) == (0.0, 4.0)
    assert found["gil_unavailable_s"] is None
    watch_switch(True)
    assert gil_watch() == (0.0, 4.0, 0.0)  # what was owed before is forgotten


def test_an_unavailable_gil_alone_is_no_stall() -> None:
    heartbeat(1)
    watch_switch(True)
    watch_asked(1)
    now = stamp_ns()
    assert answer(now, 5)["status"] == "ok"
    assert answer(now, 5)["gil_unavailable_s"] > 0


# --- races and forks ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [["-O2", "-DROUNDS=10000000"], ["-O1", "-g", "-fsanitize=thread"]],
    ids=["plain", "tsan"],
)
def test_no_reader_sees_half_of_a_heartbeat(flags: list[str], tmp_path: Path) -> None:
    """The C block of the module, driven by C threads: under the GIL nothing could be torn."""
    compiler = shutil.which("cc")
    source = Path(_pulse.__file__).with_name("heartbeat.pyx")
    if compiler is None or not source.exists():
        pytest.skip("needs a C compiler and the module's source")
    block = re.search(r'cdef extern from \*:\n    """\n(.*?)    """\n', source.read_text(), re.S)
    assert block is not None
    header = tmp_path / "pulse.h"
    header.write_text(textwrap.dedent(block[1]))
    program = tmp_path / "race"
    build = [compiler, *flags, "-Wall", "-Wextra", "-Werror", f'-DPULSE="{header}"', "-pthread"]
    build += ["-o", str(program), str(PROGRAMS / "process/pulse_race.c")]
    built = subprocess.run(build, capture_output=True, text=True, timeout=60)
    if "tsan" in built.stderr and "sanitize" in " ".join(flags):
        pytest.skip("no thread sanitizer here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitizer doesn't run on this kernel")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert re.fullmatch(r"[0-9]+ reads\n", done.stdout)


def test_a_forked_child_starts_anew() -> None:
    code = """
import os, workerserver
from workerserver.process._pulse import *
workerserver.heartbeat(3)
set_rank(1); watch_switch(True); watch_asked(1); watch_answered(5); watch_asked(7)
child = os.fork()
if child == 0:
    print(os.getpid(), health(0)[0].decode(), flush=True)
    workerserver.heartbeat(4)
    print(last_heartbeat()[0], flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(os.getpid(), health(0)[0].decode())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    child, step, parent = done.stdout.splitlines()
    for line, rank, reached, wait in ((child, None, None, None), (parent, 1, 3, 0.0)):
        pid, _, body = line.partition(" ")
        found = json.loads(body)
        assert found["pid"] == int(pid)
        assert (found["rank"], found["step"], found["gil_wait_s"]) == (rank, reached, wait)
        assert (found["gil_unavailable_s"] is None) is (line is child)
    assert step == "4"


# --- over the wire --------------------------------------------------------------------------------


def test_the_server_answers_with_these_bytes(served: Served) -> None:
    def get(query: str = "", method: str = "GET") -> tuple[int, dict[str, Any]]:
        reply = ask(served.address, message(method, f"/healthz{query}"))
        assert reply.header("content-type") == "application/json"
        found: dict[str, Any] = json.loads(reply.body)
        assert tuple(found) == FIELDS + IDENTITY
        assert len(reply.body) <= 1536
        assert found["uptime_s"] <= served.state.router.uptime_s + 0.001  # rounded
        return reply.status, found

    assert get("?max_step_age=5")[0] == 503
    heartbeat(17)
    status, found = get("?max_step_age=300")
    assert (status, found["status"], found["step"]) == (200, "ok", 17)
    assert get()[0] == 200
    time.sleep(0.02)
    status, found = get("?max_step_age=0")
    assert (status, found["status"]) == (503, "stalled")
    assert found["step_age_s"] > 0
    head = ask(served.address, message("HEAD", "/healthz?max_step_age=0"), head_only=True)
    assert (head.status, head.body) == (503, b"")


def test_the_kubelets_own_request(ours_tcp: Served) -> None:
    request = (
        b"GET /healthz?max_step_age=300 HTTP/1.1\r\nHost: 10.12.0.7:8900\r\n"
        b"User-Agent: kube-probe/1.34\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    )
    assert ask(ours_tcp.address, request).status == 503
    heartbeat(1)
    assert ask(ours_tcp.address, request).status == 200


@pytest.mark.curl
def test_curl_as_an_exec_probe(ours_unix: Served) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    url = "http://localhost/healthz?max_step_age=300"
    probe = ["curl", "-fsS", "--max-time", "20", "--unix-socket", str(ours_unix.address), url]
    failed = subprocess.run(probe, capture_output=True, timeout=60)
    assert (failed.returncode, failed.stdout) == (22, b"")
    heartbeat(1)
    fine = subprocess.run(probe, capture_output=True, timeout=60, check=True)
    assert json.loads(fine.stdout)["status"] == "ok"


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "2000000000", "5s", ""])
def test_a_bad_limit_is_400(ours_unix: Served, value: str) -> None:
    reply = ask(ours_unix.address, message("GET", f"/healthz?max_step_age={value}"))
    assert reply.status == 400
    assert reply.text.startswith("Invalid value for max_step_age")


@pytest.mark.parametrize(
    ("text", "rank"),
    [("0", 0), ("31", 31), ("007", 7), ("", None), ("-1", None), ("x", None), ("9" * 30, None)],
)
def test_rank_is_read_when_a_server_starts(
    text: str, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", text)
    Router(Registry())
    assert answer(SECOND)["rank"] == rank
