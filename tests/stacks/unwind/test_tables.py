"""The interpreter of unwind tables, fed with bytes that no compiler has written."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.lifecycle import PROGRAMS, ROOT, run_isolated
from support.parking import untraced, where_it_works

SOURCES = ROOT / "workerserver" / "stacks" / "unwind"
STRICT = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
needs_compiler = pytest.mark.skipif(
    shutil.which("gcc") is None or not (SOURCES / "cfi.c").exists(),
    reason="needs gcc and the sources",
)


@needs_compiler
def test_random_tables(tmp_path: Path) -> None:
    """No read behind the end, no endless loop; and the tables that GCC writes have a row."""
    program = tmp_path / "tables"
    built = subprocess.run(
        [
            *("gcc", "-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *STRICT),
            *(f"-I{SOURCES}", str(PROGRAMS / "unwind" / "tables.c")),
            *(str(SOURCES / f"{name}.c") for name in ("cfi", "expression")),
            *("-o", str(program)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if re.search("lib[au]san", built.stderr):
        pytest.skip("no sanitizers here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "200000", "1"], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    rows = re.fullmatch(r"200000 inputs, (\d+) rows\n", done.stdout)
    assert rows is not None
    assert int(rows[1]) > 10000  # the fed tables are not all refused at once


@untraced
@where_it_works
@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="ELF")
def test_a_library_with_broken_tables(tmp_path: Path) -> None:
    """Threads wait in code whose tables are damaged: a stack is cut, and the process lives.

    The library calls the kernel by syscall(), which no sanitizer replaces. A sanitizer's read()
    jumps into a function that counts from its frame pointer. The kernel does not tell that pointer,
    and no call of that function proves a guess of it: each stack would be cut there, undamaged
    tables or not."""
    source = tmp_path / "waits.c"
    source.write_text(
        "#include <sys/syscall.h>\n"
        "#include <unistd.h>\n"
        "int __attribute__((noinline)) inner(int d)\n"
        "{ char c[64]; return (int)syscall(SYS_read, d, c, 1) + c[0]; }\n"
        "int wait_in(int d) { return inner(d) + 1; }\n"
    )
    library = tmp_path / "waits.so"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True, timeout=60
    )
    done = run_isolated("unwind/broken_tables.py", str(library), str(tmp_path), "24")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    ends = dict(line.split() for line in done.stdout.splitlines())
    assert int(ends["good"]) == 1  # the library as it was made
    assert int(ends["whole"]) < 24  # the damage is seen


@untraced
@where_it_works
@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its machine code is x86-64's")
def test_code_without_a_file_and_a_signal(tmp_path: Path) -> None:
    """A JIT compiler's code has no tables: it is shown, and the stack is cut. The way through a
    signal's frame is known."""
    library = tmp_path / "signalled.so"
    source = PROGRAMS / "unwind" / "signalled.c"
    subprocess.run(
        ["gcc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True, timeout=60
    )
    done = run_isolated("unwind/odd_frames.py", str(library))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    found = json.loads(done.stdout)
    made = found["made"]["frames"]
    assert found["made"]["end"] == "generated"
    assert [("module" in frame) for frame in made] == [True, False]
    signalled = found["signalled"]["frames"]
    assert found["signalled"]["end"] == "whole"
    marks = [frame.get("signal", False) for frame in signalled]
    assert marks.count(True) == 1
    assert 1 < marks.index(True) < len(marks) - 4  # read and the handler, then who raised it
