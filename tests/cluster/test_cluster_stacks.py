"""Stacks from the wire: what is parsed, what is refused, and what a thread is said to do."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.parking import Stay, parked, plain, recursive, renamed, untraced
from support.served import Connect, Served
from support.wire import post

from workerserver.cluster.model import Frame, Thread
from workerserver.cluster.read import stacks
from workerserver.cluster.read.blocked_on import blocked_on
from workerserver.cluster.read.roles import busy, roles
from workerserver.cluster.read.stacks import parse_json, parse_text, read_json, read_text
from workerserver.stacks._stacks import Snapshot, prepare, snapshot


def frames_of(taken: Snapshot) -> list[tuple[Frame, ...]]:
    return [tuple(Frame(*frame[:3]) for frame in thread.frames) for thread in taken.threads]


def rendered(taken: Snapshot, format: Any) -> str:
    return taken.render(format).decode("ascii")


@pytest.fixture(params=["gil", "nogil"])
def taken(request: pytest.FixtureRequest) -> Iterator[Snapshot]:
    """A snapshot with threads in odd places."""
    if request.param == "nogil" and (problem := prepare()) is not None:
        pytest.skip(problem)
    file = '/a "b", line 3 in c\\d \x1b[31mé\U0001f600.py'
    odd = renamed(plain, "fé\n\x7f\u4e2d", file)

    def deep(stay: Stay) -> None:
        recursive(stay, 150)

    with parked(odd, name="odd\n\x1b"), parked(deep), parked(plain, daemon=True):
        yield snapshot(mode=request.param)


# ---- answers of workerserver


@untraced
def test_json_of_a_snapshot(taken: Snapshot) -> None:
    read = read_json(taken.render("json"))
    assert (read.pid, read.mode, read.time, read.truncated) == (
        taken.pid,
        taken.mode,
        taken.time,
        False,
    )
    assert [thread.frames for thread in read.threads] == frames_of(taken)
    for ours, theirs in zip(read.threads, taken.threads, strict=True):
        assert (ours.name, ours.ident, ours.native_id, ours.holds_gil) == (
            theirs.name,
            theirs.ident,
            theirs.native_id,
            theirs.current,
        )
    assert [thread.name for thread in read.threads if thread.main] == ["MainThread"]
    once = taken.render("json")
    assert parse_json(once.decode()) == parse_json(once)


@untraced
def test_text_of_a_snapshot(taken: Snapshot) -> None:
    threads = parse_text(rendered(taken, "text"))
    assert [thread.frames for thread in threads] == frames_of(taken)
    assert [thread.holds_gil for thread in threads] == [each.current for each in taken.threads]
    (main,) = [thread for thread in threads if thread.main]
    assert main.ident == threading.main_thread().ident


@untraced
def test_text_of_faulthandler() -> None:
    with parked(plain), parked(lambda stay: recursive(stay, 20)):
        with tempfile.TemporaryFile() as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = file.read().decode()
        expected = frames_of(snapshot())
    threads = parse_text(text)
    # This thread went on between the two dumps, so its newest frame is not compared.
    assert [each.frames for each in threads][:-1] == expected[:-1]
    assert threads[-1].frames[1:] == expected[-1][1:]
    assert (threads[-1].main, threads[-1].holds_gil) == (True, True)


def test_digest_of_a_text_is_that_of_the_snapshot(taken: Snapshot) -> None:
    """Equal except for thread names, which decide whether a thread is the server's."""
    (main_hash,) = [json.loads(taken.render("digest"))["main"]]
    digest, main = stacks.digest_text(rendered(taken, "text"))
    assert main == main_hash
    if taken.mode == "gil":
        assert digest == json.loads(taken.render("digest"))["digest"]


def test_digests_of_texts() -> None:
    one = '  File "a.py", line 1 in a\n'
    two = '  File "b.py", line 2 in <module>\n'
    text = (
        "Current thread 0x01 (most recent call first):\n  <no Python frame>\n\n"
        f"Thread 0x02 (most recent call first):\n{one}\n"
        f"Thread 0x03 (most recent call first):\n{two}"
    )
    base = stacks.digest_text(text)
    assert stacks.digest_text(text.replace("0x0", "0x7")) == base
    named = text.replace(" (most", " [python3] (most")
    assert stacks.digest_text(named) == base
    more = text.replace("Thread 0x02", f"Thread 0x05 (most recent call first):\n{one}\nThread 0x02")
    assert stacks.digest_text(more) == base
    digest, main = stacks.digest_text(text.replace("line 1 in", "line 3 in"))
    assert (digest == base[0], main == base[1]) == (False, True)
    digest, main = stacks.digest_text(text.replace("line 2 in", "line 3 in"))
    assert (digest == base[0], main == base[1]) == (False, False)
    assert stacks.digest_text(text.replace("<module>", "f"))[1] is None


@untraced
def test_kernel_mode() -> None:
    with parked(plain, name="parked"):
        taken = snapshot(mode="kernel")
        by_json, by_text = read_json(taken.render("json")), read_text(rendered(taken, "text"))
        alive = {int(tid) for tid in os.listdir("/proc/self/task")}
    assert (by_json.mode, by_text.mode) == ("kernel", "kernel")
    for read in (by_json, by_text):
        (main,) = [thread for thread in read.threads if thread.main]
        assert main.native_id == taken.pid
        assert not any(thread.frames for thread in read.threads)
    assert [each.native_id for each in by_json.threads] == [
        each.native_id for each in by_text.threads
    ]
    assert [each.name for each in by_json.threads] == [each.name for each in by_text.threads]
    # Threads of other tests may end between the two dumps.
    assert all(each.state for each in by_text.threads if each.native_id in alive)


def test_kernel_ids_that_started_anew() -> None:
    """Past the kernel's pid_max a process's later threads have lower ids than its first one."""
    text = (
        "No Python stacks: nothing. What the kernel says of each thread:\n\n"
        "Thread 0x0000000000007dce [python] state S wchan do_wait\n"
        "Thread 0x000000000000086b [late] state S wchan futex_do_wait\n"
    )
    assert [(each.name, each.main) for each in parse_text(text)] == [
        ("python", True),
        ("late", False),
    ]


@pytest.mark.parametrize("query", ["json", "json&mode=nogil", "text", "text&mode=nogil"])
def test_over_the_wire(ours_unix: Served, connect: Connect, query: str) -> None:
    if "nogil" in query and (problem := prepare()) is not None:
        pytest.skip(problem)
    with parked(plain, name="parked"):
        reply = connect(ours_unix.address).ask(post(f"dump_traceback?format={query}"))
    assert reply.status == 200
    threads = (
        parse_json(reply.body) if query.startswith("json") else parse_text(reply.body.decode())
    )
    assert ["plain" in [frame.function for frame in each.frames] for each in threads].count(True)
    assert sum(thread.main for thread in threads) == 1
    names = roles(threads)
    assert names.count("main") == 1
    # The loop's thread, and the I/O thread where its name is enough to know it.
    assert names.count("workerserver") >= 1
    assert not [thread for name, thread in busy(threads) if name == "workerserver"]


# ---- texts that other versions have written

SEEN = {
    "3.10": """Thread 0x00007f28573a36c0 (most recent call first):
  File "/x/fh.py", line 4 in rec
  ...

Current thread 0x00007f2857bbab80 (most recent call first):
  Garbage-collecting
  File "/x/fh.py", line 13 in <lambda>
  File "/tmp/\\xfc "q", line 3 in x.py", line 2 in f\\xe9
  File "/x/fh.py", line 13 in <module>
""",
    "3.11, torch's server": """Current thread 0x00007f2620b3c6c0 (most recent call first):
  <no Python frame>

Thread 0x00007f264141db80 (most recent call first):
  File "/v/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 83 in wrapper
  File "/x/fh.py", line 13 in <module>
""",
    "3.14": """Thread 0x00007f01c307c6c0 [worker] (most recent call first):
  File "/x/fh.py", line 4 in rec
  <truncated rest of calls>

Current thread 0x00007f01c3346200 [python3.14] (most recent call first):
  File "/x/fh.py", line 13 in <module>

Current thread's C stack trace (most recent call first):
  Binary file "/usr/bin/python3.14", at _Py_DumpStack+0x4a [0x499c1d]
""",
    "one thread": """Stack (most recent call first):
  File "/root/fh.py", line 16 in <module>
""",
    "a crash": """Fatal Python error: Segmentation fault

Current thread 0x00007f01c3346200 (most recent call first):
  File "/x/fh.py", line 13 in <module>

Extension modules: numpy, torch (total: 2)
""",
    "broken": """Thread 0x00007f01c3346200 (most recent call first):
  File ???, line ??? in ???
  <invalid frame>
  (unstable: changed each time it was read)

...
""",
}


def described(text: str) -> list[tuple[Any, ...]]:
    return [
        (
            [(f.file.rpartition("/")[2], f.line, f.function) for f in thread.frames],
            thread.name,
            *(
                name
                for name in ("main", "holds_gil", "truncated", "unstable")
                if getattr(thread, name)
            ),
        )
        for thread in parse_text(text)
    ]


def test_seen_texts() -> None:
    assert described(SEEN["3.10"]) == [
        ([("fh.py", 4, "rec")], None, "truncated"),
        (
            [
                ("fh.py", 13, "<lambda>"),
                ('ü "q", line 3 in x.py', 2, "fé"),
                ("fh.py", 13, "<module>"),
            ],
            None,
            "main",
            "holds_gil",
        ),
    ]
    assert described(SEEN["3.11, torch's server"]) == [
        ([], "pt_workerserver", "holds_gil"),
        ([("c10d_logger.py", 83, "wrapper"), ("fh.py", 13, "<module>")], None, "main"),
    ]
    assert described(SEEN["3.14"]) == [
        ([("fh.py", 4, "rec")], "worker", "truncated"),
        ([("fh.py", 13, "<module>")], "python3.14", "main", "holds_gil"),
    ]
    assert described(SEEN["one thread"]) == [([("fh.py", 16, "<module>")], None, "main")]
    assert described(SEEN["a crash"]) == [([("fh.py", 13, "<module>")], None, "main", "holds_gil")]
    assert described(SEEN["broken"]) == [([("???", None, "???")], None, "unstable")]
    assert read_text(SEEN["broken"]).truncated
    assert not read_text(SEEN["3.10"]).truncated


def test_a_hundred_frames_may_be_all_that_cpython_writes() -> None:
    line = '  File "a.py", line 1 in a\n'
    header = "Thread 0x01 (most recent call first):\n"
    assert [parse_text(header + line * count)[0].truncated for count in (99, 100, 101)] == [
        False,
        True,
        False,
    ]
    # The main thread has lost its first frame, and is the oldest thread.
    (first, last) = parse_text(f"{header}{line}\n{header}{line * 100}")
    assert (first.main, last.main) == (False, True)
    assert not parse_text(f"{header}{line}\n{header}{line * 99}")[1].main


# ---- any text

PIECES = st.sampled_from(
    [
        "Current thread 0x00007f2620b3c6c0 (most recent call first):",
        "Thread 0x1 [a] (most recent call first):",
        "Stack (most recent call first):",
        "Current thread's C stack trace (most recent call first):",
        "No Python stacks: nothing. What the kernel says of each thread:",
        "Thread 0x0000000000000007 [a] state S wchan futex_wait",
        "Thread 0x0000000000000008 [a[]",
        '  File "a\\u4e2d\\ud800\\U0010ffff\\Uffffffff.py", line 1 in <module>',
        "  File ???, line ??? in ???",
        '  File "a", line 99999999999999999999 in b',
        '  File "a", line 4294967297 in b',
        "  ...",
        "...",
        "",
        "  <no Python frame>",
        "  <freed frame>",
        "  (unstable: changed each time it was read)",
    ]
)


@given(st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text())).map("\n".join)))
def test_any_text(text: str) -> None:
    read = read_text(text)
    assert sum(thread.main for thread in read.threads) <= 1
    assert len(read.threads) <= text.count("Thread ") + text.count("Current thread ") + text.count(
        "Stack ("
    )
    assert sum(len(thread.frames) for thread in read.threads) <= text.count("  File ")
    digest, main = stacks.digest_text(text)
    assert len(digest) == 16
    assert main is None or len(main) == 16
    threads = list(read.threads)
    assert len(roles(threads)) == len(threads)
    blocked_on(threads)


@given(st.text(st.characters(exclude_characters="\\", exclude_categories=["Cs"]), min_size=1))
def test_names_come_back(name: str) -> None:
    escaped = "".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in name)
    escaped = escaped.replace("\\n", "\\x0a").replace("\\r", "\\x0d").replace("\\t", "\\x09")
    text = f'Thread 0x1 (most recent call first):\n  File "{escaped}", line 7 in f\n'
    (thread,) = parse_text(text)
    assert thread.frames == (Frame(name, 7, "f"),)


@pytest.mark.parametrize("name", [r"C:\x41\u0041\ud800\U00000041", "\\", r"\x4"])
def test_what_faulthandler_would_not_have_escaped_stays(name: str) -> None:
    (thread,) = parse_text(f'Thread 0x1 (most recent call first):\n  File "{name}", line 7 in f')
    assert thread.frames[0].file == name


def test_texts_are_bounded() -> None:
    header, line = "Thread 0x1 (most recent call first):\n", '  File "a", line 1 in b\n'
    read = read_text((header + "\n") * 5000)
    assert (len(read.threads), read.truncated) == (stacks.MAX_THREADS, True)
    (thread,) = parse_text(header + line * 2000)
    assert (len(thread.frames), thread.truncated) == (stacks.MAX_DEPTH, True)
    threads = parse_text((header + line * 1000) * 80)
    assert sum(len(each.frames) for each in threads) == stacks.MAX_FRAMES
    assert threads[-1].truncated
    (thread,) = parse_text(header + f'  File "{"a" * 20000}", line 1 in b\n')
    assert (thread.frames, thread.truncated) == ((), True)


# ---- JSON that is wrong


FRAME = {"file": "a.py", "line": 1, "function": "<module>", "qualname": None}


def answer(**changes: Any) -> dict[str, Any]:
    thread = {
        "ident": 1, "native_id": 7, "name": "MainThread", "daemon": False, "current": True,
        "state": "S", "wchan": "futex_wait", "truncated": False, "unstable": False,
        "frames": [dict(FRAME)],
    }  # fmt: skip
    whole = {"version": 1, "pid": 7, "mode": "gil", "time": 1.5, "gil_holder": 1}
    return {**whole, "truncated": False, "threads": [thread], **changes}


def with_thread(**changes: Any) -> dict[str, Any]:
    value = answer()
    value["threads"][0].update(changes)
    return value


def with_frame(**changes: Any) -> dict[str, Any]:
    value = answer()
    value["threads"][0]["frames"][0].update(changes)
    return value


def test_the_right_json() -> None:
    (thread,) = parse_json(json.dumps(answer()))
    assert thread == Thread(
        (Frame("a.py", 1, "<module>"),), "MainThread", 1, 7, "S", "futex_wait", True, True
    )
    assert parse_json(json.dumps(answer(more=1, threads=[]))) == []
    (thread,) = parse_json(json.dumps(with_frame(line=None, function=None, file=None)))
    assert thread.frames == (Frame("???", None, "???"),)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "the answer: an array, not an object"),
        ({}, "version: missing"),
        (answer(version=2), "version: 2, and this reads version 1"),
        (answer(version=True), "version: true or false, not an integer"),
        (answer(pid=-1), "pid: out of range"),
        (answer(pid=2**40), "pid: out of range"),
        (answer(mode="x" * 100), f"mode: '{'x' * 40}...', not one of gil, nogil, kernel"),
        (answer(time="now"), "time: a string, not an integer or a number"),
        (answer(truncated=0), "truncated: an integer, not true or false"),
        (answer(threads={}), "threads: an object, not an array"),
        (answer(threads=[1]), "threads[0]: an integer, not an object"),
        (answer(threads=[{}] * 4097), "threads: 4097, more than 4096"),
        (with_thread(name=3), "threads[0].name: an integer, not a string or null"),
        (with_thread(name="n" * 7000), "threads[0].name: 7000 characters, more than 6147"),
        (with_thread(ident=2**65), "threads[0].ident: out of range"),
        (with_thread(native_id=1.0), "threads[0].native_id: a number, not an integer or null"),
        (with_thread(state="SS"), "threads[0].state: 2 characters, more than 1"),
        (with_thread(current=None), "threads[0].current: null, not true or false"),
        (with_thread(frames=[{}] * 1001), "threads[0].frames: 1001, more than 1000"),
        (with_thread(frames=["a"]), "threads[0].frames[0]: a string, not an object"),
        (with_frame(line="1"), "threads[0].frames[0].line: a string, not an integer or null"),
        (with_frame(line=-1), "threads[0].frames[0].line: out of range"),
        (with_frame(file=[]), "threads[0].frames[0].file: an array, not a string or null"),
        (
            answer(threads=with_thread(frames=[FRAME] * 1000)["threads"] * 70),
            "threads: more than 65536 frames in all",
        ),
    ],
)  # fmt: skip
def test_wrong_json_is_named(value: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        parse_json(json.dumps(value))


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b'{"version":', b"[" * 100_000, b"NaN", b"1" * 5000, b'{"version": NaN}']
)
def test_no_json(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(not JSON: |the answer: an integer)"):
        parse_json(body)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_any_json(data: st.DataObject) -> None:
    """The right one, with any value in any place: threads or a ValueError."""
    value = answer()
    thread = value["threads"][0]
    spot = data.draw(st.sampled_from([value, thread, thread["frames"][0]]))
    spot[data.draw(st.sampled_from(sorted(spot)))] = data.draw(JSON)
    try:
        threads = parse_json(json.dumps(value))
    except ValueError:
        return
    assert sum(each.main for each in threads) <= 1


@pytest.mark.parametrize(
    ("changes", "main"),
    [
        ({}, 1),
        ({"native_id": None}, 1),  # by its name
        ({"native_id": None, "name": "renamed"}, 1),  # by its first frame
        ({"native_id": 99, "name": "renamed", "frames": []}, None),
    ],
)
def test_the_main_thread(changes: dict[str, Any], main: int | None) -> None:
    value = answer()
    other = {**value["threads"][0], "native_id": 8, "name": "Thread-1", "frames": []}
    value["threads"] = [other, {**value["threads"][0], **changes}]
    found = [index for index, thread in enumerate(parse_json(json.dumps(value))) if thread.main]
    assert found == ([] if main is None else [main])
