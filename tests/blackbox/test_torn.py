"""A writer that is killed at any moment loses one record at most.

WORKERSERVER_BLACKBOX_KILLS=100000 for the long form (``make blackbox``).
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import pytest
from support.waiting import wait_until

from workerserver.blackbox.format import LEAST_BYTES, parse

if sys.platform != "linux":
    pytest.skip("black boxes need Linux", allow_module_level=True)

from workerserver.native import _bridge

KILLS = int(os.environ.get("WORKERSERVER_BLACKBOX_KILLS", "150"))
MOST = 10
PAYLOAD = 3000
PDEATHSIG = 1  # prctl's


def write_for_ever(descriptor: int, counters: mmap.mmap) -> None:
    """In a child: *counters* has how many records were begun, and how many were written. It ends
    with its parent."""
    ctypes.CDLL(None).prctl(PDEATHSIG, signal.SIGKILL)
    _bridge.open_box(descriptor, LEAST_BYTES)
    for number in range(1, 1 << 40):
        text = json.dumps({"number": number, "fill": "x" * (number % PAYLOAD)}).encode()
        struct.pack_into("<Q", counters, 0, number)
        _bridge.write_identity(text)
        struct.pack_into("<Q", counters, 8, number)
        if number % 7 == 0:
            _bridge.write_end(b'{"why":"exit"}')


@pytest.mark.timeout(7200 if KILLS > 1000 else 600)
def test_killed_at_a_random_moment() -> None:
    folder = Path(f"/dev/shm/workerserver-torn-{os.getpid()}")
    folder.mkdir(mode=0o700)
    caught = kills = 0
    try:
        # Some kills have to come in the middle of a record, else this test shows nothing. On a busy
        # machine the writer mostly waits for a processor, and few kills do.
        while kills < KILLS or (not caught and kills < MOST * KILLS):
            caught += killed(folder / "box", random.Random(kills))
            kills += 1
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    print(f"{kills} kills, {caught} of them in the middle of a record")
    assert caught > 0


def killed(path: Path, chance: random.Random) -> bool:
    """Whether the kill came in the middle of a record."""
    counters = mmap.mmap(-1, 16)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.posix_fallocate(descriptor, 0, LEAST_BYTES)
    child = os.fork()
    if child == 0:
        try:
            write_for_ever(descriptor, counters)
        finally:
            os._exit(1)
    os.close(descriptor)
    try:
        wait_until(lambda: struct.unpack_from("<Q", counters, 8)[0] >= 3)
        time.sleep(chance.random() * 0.003)
    finally:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    begun, written = struct.unpack("<QQ", counters[:])
    contents = parse(path.read_bytes())
    path.unlink()
    counters.close()
    numbers = [json.loads(record.payload)["number"] for record in contents.records["identity"]]
    assert numbers[-1] in (begun, written)
    assert len(numbers) >= 1
    # Every record before the one that was being written is there, as long as the ring keeps it.
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert contents.torn <= 1
    for lane in ("state", "end", "last"):
        for record in contents.records[lane]:
            assert isinstance(json.loads(record.payload), dict)
    return bool(begun != written)
