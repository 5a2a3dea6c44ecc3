"""Large numbers of pings, from a client in C, and descriptors for many clients."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from support.lifecycle import PROGRAMS
from support.wire import Address, Client, post


@contextlib.contextmanager
def descriptors(wanted: int) -> Iterator[bool]:
    """Raise this process's limit to *wanted* descriptors. Gives whether that was possible."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # only root may have more than the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), max(hard, wanted)))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, wanted)), hard))
    now, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield now >= wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def pings(folder: Path, address: Address, count: int) -> dict[str, float]:
    """Send *count* pings, one after the other. All must be answered. With more than 10,000 pings
    and a C compiler: their times in microseconds, from a client on the last core."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if count <= 10_000 or compiler is None:
        with Client(address) as client:
            for _ in range(count):
                assert client.ask(post("ping"))[::3] == (200, b"pong")
        return {}
    program = folder / "pings"
    if not program.exists():
        source = str(PROGRAMS / "native" / "pings.c")
        subprocess.run([compiler, "-O2", "-Wall", "-o", str(program), source], check=True)
    to = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    done = subprocess.run(
        [str(program), to, str(count), "1", "0"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {max(os.sched_getaffinity(0))}),
    )
    facts: dict[str, float] = json.loads(done.stdout)
    assert (facts["right"], facts["wrong"], done.stderr) == (count, 0, ""), facts
    return facts
