"""Our native stacks beside those of ``gdb -p``, address by address: ``make native``.

Starts a process whose threads wait in a lock, a mutex, a condition, recv, sleep, in code that
counts from its frame pointer and, where torch is installed, in an operation of gloo. In each round
all threads wait anew, at other depths. Then the process tells its native stacks, and gdb attaches
and tells its own. A frame that gdb does not have there is wrong. The exit status is 1 if there is a
wrong frame, or if less than 95 % of the stacks are whole. Needs gdb, and gcc for the code that
counts from its frame pointer.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.lifecycle import PROGRAMS, environment

__all__ = ["Compared", "compare", "compiled_frames", "waiting"]

UNWIND = PROGRAMS / "unwind"
#: The share of stacks that has to be whole.
WHOLE = 0.95


@dataclass
class Compared:
    """*samples*: stacks of threads that had not moved when gdb looked. *whole*: those that we gave
    to the end, as gdb did. *wrong*: those with a frame that gdb doesn't have there."""

    samples: int = 0
    whole: int = 0
    cut: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    moved: int = 0
    by_name: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, name: str, ours: dict[str, Any], theirs: list[int]) -> None:
        frames = [frame["address"] for frame in ours["frames"]]
        end = str(ours["end"])
        if not frames or frames[0] != theirs[0]:
            self.moved += 1
            return
        self.samples += 1
        whole = end == "whole"
        good = frames == theirs if whole else frames == theirs[: len(frames)]
        if not good:
            mine, other = [list(map(hex, each)) for each in (frames, theirs)]
            self.wrong.append(f"{name}: {end}\n  ours {mine}\n  gdb  {other}")
        elif whole:
            self.whole += 1
        else:
            self.cut[end] += 1
        self.by_name.setdefault(name, Counter())[end] += 1


def compiled_frames(folder: Path, *flags: str) -> Path | None:
    """The library that counts from its frame pointer; None without a compiler."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    made = folder / f"framed{''.join(flags)}.so"
    subprocess.run(
        [
            *(compiler, "-shared", "-fPIC", "-fno-omit-frame-pointer", *(flags or ("-O0",))),
            *(str(UNWIND / "framed.c"), "-o", str(made)),
        ],
        check=True,
    )
    return made


@contextlib.contextmanager
def waiting(path: Path, *arguments: str) -> Iterator[int]:
    """The process of waiting.py, once it listens on the socket *path*."""
    with subprocess.Popen(
        [sys.executable, str(UNWIND / "waiting.py"), str(path), *arguments],
        env=environment(),
        stdout=subprocess.DEVNULL,
    ) as process:
        try:
            until = time.monotonic() + 120
            while not path.exists() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
            assert path.exists(), "waiting.py does not listen"
            yield process.pid
        finally:
            process.kill()


def compare(pid: int, path: Path, rounds: int, out: Path, seconds: float) -> Compared:
    told = {
        "WS_PID": str(pid), "WS_SOCKET": str(path), "WS_ROUNDS": str(rounds), "WS_OUT": str(out),
    }  # fmt: skip
    log = subprocess.run(
        ["gdb", "-nx", "-batch", "-x", str(UNWIND / "beside_gdb.py")],
        env=os.environ | told,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    found = Compared()
    lines = out.read_text().splitlines() if out.exists() else []
    assert len(lines) == rounds, log.stdout[-2000:]
    known: set[int] = set()
    for line in lines:
        _add_round(found, json.loads(line), known)
    return found


def _add_round(found: Compared, line: dict[str, Any], known: set[int]) -> None:
    """Each stack counts once: threads of an earlier round that still wait are left out."""
    ours, theirs = line["ours"], line["gdb"]
    for thread in (*ours["threads"], *ours["native"]["threads"]):
        number = thread["native_id"]
        if number not in known and str(number) in theirs:
            known.add(number)
            found.add(str(thread["name"]), thread["native"], theirs[str(number)][0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=120, help="gdb attaches so often (120)")
    parser.add_argument("--without-torch", action="store_true", help="leave gloo out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = [compiled_frames(folder, *flags) for flags in ((), ("-O2",))]
        more = [str(library) for library in made if library is not None]
        if not options.without_torch and importlib.util.find_spec("torch") is not None:
            more.append("--gloo")
        with waiting(folder / "socket", *more) as pid:
            found = compare(pid, folder / "socket", options.rounds, folder / "out", 7200)
    for scene, ends in sorted(found.by_name.items()):
        print(f"{scene:<28}{', '.join(f'{count} {end}' for end, count in ends.most_common())}")
    print(
        f"{found.samples} stacks of threads that stood still ({found.moved} had moved): "
        f"{found.whole} whole, {sum(found.cut.values())} cut, {len(found.wrong)} with a wrong frame"
    )
    print(*found.wrong[:10], sep="\n")
    return 1 if found.wrong or found.whole < WHOLE * found.samples else 0


if __name__ == "__main__":
    sys.exit(main())
