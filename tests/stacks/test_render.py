"""The renderers: the same bytes as faulthandler, json and hashlib make of the same snapshot."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import FunctionType
from typing import IO, Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.lifecycle import PROGRAMS, TESTS
from support.parking import parked, plain, recursive, steady, untraced

from workerserver.stacks import _stacks
from workerserver.stacks._stacks import Snapshot, prepare, snapshot

pytestmark = [pytest.mark.cpython, untraced]

Mode = Literal["gil", "nogil"]

SOURCES = TESTS.parent / "workerserver" / "stacks"
RENDERER = (
    "render",
    "put",
    "check",
    "kernel",
    "children",
    "waits",
    "blake2b",
    "facts/put_facts",
    "facts/sleep",
    "unwind/put_native",
)

#: Characters of a name in the text, and in all other forms.
TEXT_NAME, LONG_NAME = 500, 1024


@pytest.fixture(params=["gil", "nogil"], scope="module")
def mode(request: pytest.FixtureRequest) -> Mode:
    """With and without the GIL; tests/stacks/test_selfread.py says where the latter must work."""
    if request.param == "nogil" and (problem := prepare()) is not None:
        pytest.skip(problem)
    mode: Mode = request.param
    return mode


# --- the slow way ------------------------------------------------------------------------------


def json_of(taken: Snapshot, seen: dict[str, Any]) -> bytes:
    """What json makes of *taken*; the kernel's part, which moves, is from *seen*."""
    moves = ("waits_for", "switches")
    value: dict[str, Any] = {
        "version": 1,
        "pid": taken.pid,
        "mode": taken.mode,
        "time": taken.time,
        "gil_holder": taken.holder,
        "truncated": taken.truncated,
        "threads": [
            {
                "ident": thread.ident,
                "native_id": thread.native_id,
                "name": thread.name,
                "daemon": thread.daemon,
                "current": thread.current,
                "state": entry["state"],
                "wchan": entry["wchan"],
                "truncated": thread.truncated,
                "unstable": thread.unstable,
                "frames": [frame._asdict() for frame in thread.frames],
                **{key: entry[key] for key in moves if key in entry},
            }
            for thread, entry in zip(taken.threads, seen["threads"], strict=True)
        ],
        "pid_namespace": seen["pid_namespace"],
        **{key: seen[key] for key in ("children",) if key in seen},
    }
    for thread in value["threads"]:
        for frame in thread["frames"]:
            assert list(frame) == ["file", "line", "function", "qualname"]
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def digest_of(taken: Snapshot) -> bytes:
    def hashed(text: str) -> str:
        return blake2b(text.encode("ascii"), digest_size=8).hexdigest()

    main = top = None
    others = set()
    counted = 0
    for index, thread in enumerate(taken.threads):
        if thread.ident == threading.main_thread().ident:
            main = hashed(taken.stack_text(index))
            if thread.frames:
                file, line, function, _ = thread.frames[0]
                name = file.rpartition("/")[2]
                top = f"{name[:60]}:{'???' if line is None else line} {function[:60]}"
        elif (thread.name or "").startswith("workerserver") or (
            taken.mode == "gil" and thread.current
        ):
            continue
        else:
            others.add(hashed(taken.stack_text(index)))
        counted += 1
    whole = hashed("\n".join([main or "-", *sorted(others)]))
    value = {"version": 1, "digest": whole, "main": main, "top": top, "threads": counted}
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def check(taken: Snapshot) -> None:
    rendered = taken.render("json")
    assert rendered == json_of(taken, json.loads(rendered))
    assert taken.render("digest") == digest_of(taken)
    assert taken.render("text").decode("ascii") == taken.text()


# --- names -------------------------------------------------------------------------------------

Show = Callable[[IO[bytes], Mode], Snapshot]


def show(file: IO[bytes], mode: Mode) -> Snapshot:
    # Both calls are on one line, so that our own frame is the same in both.
    # fmt: off
    faulthandler.dump_traceback(file); return snapshot(mode=mode)  # noqa: E702
    # fmt: on


def shown(file: str, function: str, qualname: str) -> Show:
    changes: dict[str, Any] = {"co_filename": file, "co_name": function}
    if sys.version_info >= (3, 11):
        changes["co_qualname"] = qualname
    return FunctionType(show.__code__.replace(**changes), globals())


@contextmanager
def thread_name(name: str) -> Iterator[None]:
    thread = threading.current_thread()
    was = thread.name
    thread.name = name
    try:
        yield
    finally:
        thread.name = was


def normal(text: str) -> str:
    """faulthandler's text without the name that CPython 3.14 adds, and as without the GIL."""
    text = re.sub(r" \[[^\]]*\] (\(most recent call first\):)", r" \1", text, flags=re.DOTALL)
    return text.replace("Current thread", "Thread")


CHARACTERS = st.characters() | st.characters(categories=["Cs"]) | st.sampled_from('"\\/\n\x00\x7f')
EDGES = [1, 59, 60, 61, TEXT_NAME - 1, TEXT_NAME, TEXT_NAME + 1, LONG_NAME - 1, LONG_NAME]
NAMES = st.text(CHARACTERS, max_size=30) | st.builds(
    lambda c, n, rest: c * n + rest,
    CHARACTERS,
    st.sampled_from([*EDGES, LONG_NAME + 1, 5000]),
    st.text(CHARACTERS, max_size=3),
)


def names_are_rendered(mode: Mode, file: str, function: str, qualname: str, name: str) -> None:
    with tempfile.TemporaryFile() as theirs, thread_name(name):
        show_it = shown(file, function, qualname)

        def take() -> Snapshot:
            theirs.seek(0)
            theirs.truncate()
            return show_it(theirs, mode)

        taken = steady(take)
        theirs.seek(0)
        text = theirs.read().decode("utf-8", "replace")
    assert normal(taken.text()) == normal(text)
    check(taken)
    (mine,) = [each for each in taken.threads if each.ident == threading.get_ident()]

    def bounded(text: str) -> str:
        text = text[:LONG_NAME] + ("..." if len(text) > LONG_NAME else "")
        return text.encode("utf-8", "backslashreplace").decode("utf-8")

    assert mine.name == bounded(name)
    assert mine.frames[0].file == bounded(file)
    assert mine.frames[0].function == bounded(function)
    if sys.version_info >= (3, 11):
        assert mine.frames[0].qualname == bounded(qualname)


NAMED = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("kind", ["a", "\xe9", "\u6587", "\ud800", "\U0001f600", '"', "\\", "/"])
@pytest.mark.parametrize("length", [1, 60, 500, 501, 1024, 1025])
def test_names_of_every_kind_and_length(mode: Mode, kind: str, length: int) -> None:
    name = kind * length
    names_are_rendered(mode, "/x/" + name, name, "q" + name, "n" + name)


@NAMED
@given(file=NAMES, function=NAMES, qualname=NAMES, name=NAMES)
@example(file="", function="", qualname="", name="")
@example(file="".join(map(chr, range(0x120))), function="\ud83d\ude00", qualname="\0", name="\x7f")
def test_any_names(mode: Mode, file: str, function: str, qualname: str, name: str) -> None:
    # CPython 3.14 ends a thread's name at its first NUL. And its own lines look like ours.
    names_are_rendered(mode, file, function, qualname, re.sub(r"[\[\]\n]", "", name))


def test_hashes_of_every_length(mode: Mode) -> None:
    """Up to several blocks of 128 bytes, and on both sides of each end of one."""
    hashes = set()
    with tempfile.TemporaryFile() as file:
        for length in range(0, 400):
            taken = steady(partial(shown("f", "n" * length, ""), file, mode))
            rendered = taken.render("digest")
            assert rendered == digest_of(taken)
            hashes.add(json.loads(rendered)["main"])
    assert len(hashes) == 400


# --- whole snapshots ---------------------------------------------------------------------------


def test_many_threads(mode: Mode) -> None:
    def start(n: int) -> None:
        if n:
            with parked(
                recursive if n % 2 else plain, name=f"workerserver-{n}" if n % 3 else f"t{n}"
            ):
                start(n - 1)
        else:
            check(snapshot(mode=mode))

    start(9)


def test_bounded_snapshots() -> None:
    with parked(recursive):
        check(snapshot(max_depth=1))
        check(snapshot(max_threads=1))
        check(snapshot(max_frames=7))


def test_times_are_what_json_reads() -> None:
    for _ in range(200):
        taken = snapshot(max_depth=1)
        assert json.loads(taken.render("json"))["time"] == taken.time
        assert f'"time":{taken.time!r},'.encode() in taken.render("json")


def test_kernel() -> None:
    natives: list[int] = []

    def scene(stay: Callable[[], None]) -> None:
        natives.append(threading.get_native_id())
        stay()

    with parked(scene):
        taken = snapshot(mode="kernel")
        rendered = taken.render("json")
        text = taken.text()
        state = _stacks.kernel_state(natives[0])
    value = json.loads(rendered)
    assert (taken.mode, taken.holder, taken.pid) == ("kernel", None, os.getpid())
    assert (value["mode"], value["gil_holder"], value["pid"]) == ("kernel", None, os.getpid())
    assert taken.headers() == (("X-Traceback-Mode", "kernel"),)
    threads = {thread["native_id"]: thread for thread in value["threads"]}
    assert {os.getpid(), *natives} <= set(threads)
    assert set(threads) == {thread.native_id for thread in taken.threads}
    comm = Path(f"/proc/self/task/{os.getpid()}/comm").read_text().rstrip("\n")
    assert threads[os.getpid()]["name"] == comm
    assert threads[natives[0]]["state"] == state[0] == "S"
    assert [thread["frames"] for thread in threads.values()] == [[]] * len(threads)
    first, empty, *lines = text.splitlines()
    assert first.startswith("No Python stacks: ")
    assert empty == ""
    assert len(lines) == len(threads)
    (line,) = [line for line in lines if line.startswith(f"Thread 0x{natives[0]:016x} [")]
    assert " state S" in line
    assert (state[1] is None) == (" wchan " not in line)
    digest = json.loads(taken.render("digest"))
    assert list(digest) == ["version", "digest", "main", "top", "threads"]
    assert re.fullmatch("[0-9a-f]{16}", digest["main"])
    assert (digest["top"], digest["threads"]) == (None, len(threads))


def test_wrong_words() -> None:
    with pytest.raises(ValueError, match="mode must be gil, nogil or kernel, not ptrace"):
        snapshot(mode="ptrace")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="format must be text, json or digest, not xml"):
        snapshot().render("xml")  # type: ignore[arg-type]


# --- a snapshot made by hand -------------------------------------------------------------------

TEXT = r"""Current thread 0x0000000000000abc (most recent call first):
  File "/a/b.py", line 1 in f
  File "/a/b.py", line ??? in x\ud83d\ude00\u2028
  (unstable: changed each time it was read)

Thread 0x0000000000000def (most recent call first):
  File "a\U0010ffff\U00110000\Uffffffff"", line 2147483647 in ???
  File ???, line 0 in cut...
  ...

Thread 0x0000000000000123 (most recent call first):
  File "/a/b.py", line 1 in f

Thread 0x0000000000000456 (most recent call first):

...
"""


@pytest.mark.parametrize(
    "flags", [["-O1"], ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]]
)
def test_by_hand(tmp_path: Path, flags: list[str]) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not (SOURCES / "render.c").exists():
        pytest.skip("needs a C compiler and the sources")
    program = tmp_path / "scene"
    built = subprocess.run(
        [
            *(compiler, "-std=gnu11", "-Wall", "-Wextra", "-Werror", *flags),
            *(f"-I{SOURCES}", f"-I{SOURCES}/selfread", f"-I{SOURCES}/facts", f"-I{SOURCES}/unwind"),
            *("-o", str(program)),
            str(PROGRAMS / "stacks/render_scene.c"),
            *(str(SOURCES / f"{name}.c") for name in RENDERER),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if len(flags) > 1 and re.search("lib[au]san", built.stderr):
        pytest.skip("no sanitizers here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program], capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    parts = done.stdout.decode("ascii").split("==== ")
    by_name = dict(part.split("\n", 1) for part in parts[1:])
    assert by_name["text"] == TEXT
    value = json.loads(by_name["json"])
    assert (value["mode"], value["time"], value["gil_holder"]) == ("nogil", 1700000000.25, 0xABC)
    first, second, _, fourth = value["threads"]
    assert (first["unstable"], first["truncated"], first["current"]) == (True, False, True)
    assert (second["unstable"], second["truncated"], second["current"]) == (False, True, False)
    assert (first["name"], first["native_id"], first["daemon"]) == ("trainer \xe9\n)", None, False)
    assert (second["name"], second["native_id"], second["daemon"]) == (None, 2147483647, None)
    assert (second["state"], second["wchan"]) == (None, None)
    assert first["frames"][1] == {
        "file": "/a/b.py", "line": None, "function": "x\\ud83d\\ude00\u2028", "qualname": None,
    }  # fmt: skip
    assert first["frames"][0]["qualname"] == "C.f"
    assert second["frames"][0]["file"] == 'a\U0010ffff\ufffd\ufffd"'
    assert [frame["file"] for frame in second["frames"]][1] == "???"
    assert second["frames"][1]["function"] == "cut..."
    assert fourth["frames"] == []
    # The main thread, and two others: the GIL's holder, and the one without frames.
    digest = json.loads(by_name["digest"])
    assert (digest["threads"], digest["top"]) == (3, 'a\U0010ffff\ufffd\ufffd":2147483647 ???')
    assert by_name["headers"] == (
        "X-Traceback-Mode: nogil\r\n"
        "X-GIL-Holder: 0x0000000000000abc (trainer ??))\r\n"
        "X-Traceback-Unstable: 1\r\n"
    )
    nameless = by_name["headers of a nameless holder"].split("\r\n")
    assert nameless[1] == "X-GIL-Holder: 0x0000000000000def"
    assert by_name["headers of nobody"] == "X-Traceback-Mode: nogil\r\n"
    assert by_name["kernel"].startswith("No Python stacks: they could not be read at this ")
    assert " [scene] state R\n" in by_name["kernel"]
