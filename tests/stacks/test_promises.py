"""What is promised of buffers, snapshots and the walker is checked in debug builds: each planted
breach ends a small C program at the assertion that names it."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from support.lifecycle import PROGRAMS, TESTS

pytestmark = pytest.mark.cpython

SOURCES = TESTS.parent / "workerserver" / "stacks"

#: Code that breaks a promise, and the assertion that reports this.
PROMISES = {
    "threads": "thread_count <= WS_MAX_THREADS",
    "frames": "frame_count <= WS_MAX_FRAMES",
    "no array of threads": "threads != NULL",
    "no array of frames": "frames != NULL",
    "frames outside the arena": "in_arena( snapshot, snapshot->frames",
    "mode": "snapshot->mode == WS_MODE_KERNEL",
    "frames of the kernel": "frame_count == 0",
    "depth": "count <= WS_MAX_DEPTH",
    "too many frames of a thread": "thread->count <= snapshot->frame_count - end",
    "overlapping threads": "thread->start == end",
    "threads in the wrong order": "thread->start == end",
    "a frame of no thread": "end == snapshot->frame_count",
    "daemon": "daemon <= 1",
    "native id": "native_id >= 0",
    "unstable with the GIL": "!thread->unstable",
    "line": "line >= -1",
    "kind": "kind == 4",
    "a length without a name": "name->length == 0",
    "a name outside the arena": "in_arena(snapshot, name->data",
    "a name without data": "name->data != NULL",
    "a name that is not aligned": "% name->kind == 0",
    "a long name": "name->length <= WS_MAX_NAME",
    "size": "buffer->size <= buffer->capacity",
    "no data": "(buffer->data != NULL) == (buffer->capacity > 0)",
    "data without room": "(buffer->data != NULL) == (buffer->capacity > 0)",
    "not ASCII": "< 128",
    "stack of no thread": "index < snapshot->thread_count",
    "digits": "digits <= (int)sizeof text",
    "character": "i < name->length",
    "part of a name": "start <= end",
    "digest": "digest_size <= 64",
    "formats": "wanted < 1 <<",
    "wait channel": "memchr(kernel->wchan",
    "a read of nothing": "reads[i].size > 0",
    "a read to nowhere": "reads[i].into != NULL",
    "a long read": "reads[i].size <= WS_LINES_MAX",
    "a long read of one": "size <= WS_LINES_MAX",
    "least": "least <= wanted",
    "an arena used up": "arena->used <= WS_ARENA",
    "an odd arena": "arena->used % 16 == 0",
}
WALKS = {
    "a stack that stood still moves": "same(chain, &ws_work->checked)",
    "a stack that was read by itself moves": "same(chain, &ws_work->checked)",
    "a second reader": "before != (int)getpid()",
    "a long frame": "size <= WS_FRAME_MAX",
    "a long chain": "at->links <= WS_LINKS",
    "a code object that is not there": "index <= ws_work->code_count",
    "a circle of code objects": "code->next < index",
    "a line of no code object": "code->good",
    "a line behind the end": "at < code->units * 2",
}

Run = Callable[[str], subprocess.CompletedProcess[str]]


def compiled(folder: Path, program: str, parts: list[str], *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not (SOURCES / "render.c").exists():
        pytest.skip("needs a C compiler and the sources")
    built = folder / program
    done = subprocess.run(
        [
            *(compiler, "-std=gnu11", "-O1", "-Wall", *flags, "-o", str(built)),
            *(f"-I{SOURCES}", *(f"-I{SOURCES}/{each}" for each in ("selfread", "facts", "unwind"))),
            f"-I{sysconfig.get_path('include')}",
            str(PROGRAMS / f"stacks/{program}.c"),
            *(str(SOURCES / f"{part}.c") for part in parts),
            "-pthread",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return built


def runner(program: Path) -> Run:
    def run(breach: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, breach], capture_output=True, text=True, timeout=60)

    return run


def ends_at(done: subprocess.CompletedProcess[str], assertion: str) -> None:
    assert done.returncode == -signal.SIGABRT, done.stdout + done.stderr
    # The C library quotes the source, with its line breaks or without them.
    failed = re.sub(r"\s+", " ", done.stderr)
    said = re.search(r"Assertion `(.*)' failed", failed)
    assert said is not None, done.stderr
    assert assertion.replace(" ", "") in said[1].replace(" ", "")


PROMISING = ["check", "render", "put", "dump", "kernel", "waits", "children", "blake2b"]
PROMISING += ["selfread/memory", "facts/put_facts", "facts/sleep", "unwind/put_native"]
WALKING = ["check"]
WALKING += [f"selfread/{name}" for name in ("chain", "code", "lines", "near", "selfread", "stack")]
WALKING += ["selfread/together"]


@pytest.fixture(scope="module")
def promises(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(compiled(tmp_path_factory.mktemp("promises"), "broken_promises", PROMISING))


@pytest.fixture(scope="module")
def walks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return runner(compiled(tmp_path_factory.mktemp("walks"), "broken_walk", WALKING))


def test_kept_promises(promises: Run) -> None:
    done = promises("nothing")
    assert (done.returncode, done.stdout, done.stderr) == (0, "whole\n", "")


@pytest.mark.parametrize("breach", PROMISES)
def test_broken_promises(promises: Run, breach: str) -> None:
    ends_at(promises(breach), PROMISES[breach])


@pytest.mark.parametrize("change", ["nothing", "a thread that stood still runs"])
def test_a_good_walk(walks: Run, change: str) -> None:
    """Also when the other thread gets the GIL, and moves, after two readings have agreed."""
    done = walks(change)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 threads, 6 frames, line -1\n"


def test_a_thread_that_gets_the_gil_is_read_again(walks: Run) -> None:
    """Its stack was read beside others, and has two frames less now."""
    done = walks("a thread gets the GIL meanwhile")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 threads, 4 frames, line -1\n"


@pytest.mark.parametrize("breach", WALKS)
def test_broken_walks(walks: Run, breach: str) -> None:
    ends_at(walks(breach), WALKS[breach])


@pytest.mark.parametrize(
    ("program", "parts"), [("broken_promises", PROMISING), ("broken_walk", WALKING)]
)
def test_release_builds_check_nothing(tmp_path: Path, program: str, parts: list[str]) -> None:
    built = compiled(tmp_path, program, parts, "-DNDEBUG")
    assert b"__assert_fail" not in built.read_bytes()
    assert b"ws_check_" not in built.read_bytes()
    assert runner(built)("nothing").returncode == 0


# --- what differs between versions --------------------------------------------------------------

VERSION = re.compile(r"^\s*#\s*(?:if|elif)\b.*\b(?:PY_VERSION_HEX|PY_MINOR_VERSION|Py_Version)\b")
BLOCK = re.compile(r"^/\* -+ CPython 3\.(\d+)\b", re.M)


def test_one_file_asks_for_the_version() -> None:
    """And it has one block for each CPython that the walker reads, in order."""
    if not (SOURCES / "selfread" / "cpython.h").exists():
        pytest.skip("needs the sources")
    written = [path for path in SOURCES.rglob("*") if path.suffix in {".c", ".h", ".pyx", ".pxd"}]
    asking = {
        path.name
        for path in written
        if any(VERSION.match(line) for line in path.read_text().splitlines())
        # In a coverage build Cython's C lies beside the .pyx.
        and not (path.suffix == ".c" and path.with_suffix(".pyx").exists())
    }
    header = (SOURCES / "selfread" / "cpython.h").read_text()
    assert asking == {"cpython.h"}
    minors = [int(minor) for minor in BLOCK.findall(header)]
    claimed = re.findall(r"Python :: 3\.(\d+)", (TESTS.parent / "pyproject.toml").read_text())
    assert minors == list(map(int, claimed))
    begin, end = re.findall(
        r"^#define WS_CPYTHON_(?:BEGIN|END) 0x03([0-9A-F]{2})0000", header, re.M
    )
    assert (int(begin, 16), int(end, 16)) == (minors[0], minors[-1] + 1)
