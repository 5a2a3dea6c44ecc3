"""Dumps without the GIL while the kernel refuses what they read: what is missing is marked."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from support.chaos.faults import Control, built
from support.lifecycle import talking
from support.parking import untraced, where_it_works
from support.wire import Client, Reply, post

pytestmark = [
    pytest.mark.cpython,
    untraced,
    where_it_works,
    pytest.mark.skipif(sys.platform != "linux", reason="a preload library"),
    pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler"),
]

PARKED = 6
THREADS = PARKED + 3  # and the main thread, the loop's, the I/O thread
DUMPS = 60
#: What a dump without the GIL has where no stack at all could be read.
NONE = "No Python stacks: "


def whole_json(reply: Reply) -> bool:
    """Whether the dump has all of each thread's frames. It has each thread, or says otherwise."""
    found = json.loads(reply.body)
    if found["mode"] == "kernel" or found["truncated"]:
        return False
    threads = found["threads"]
    marked = [each for each in threads if each["truncated"] or each["unstable"]]
    assert len(threads) == THREADS, reply.text
    assert all(each["frames"] for each in threads if each not in marked), reply.text
    return not marked


def whole_text(reply: Reply) -> bool:
    text = reply.text
    if text.startswith(NONE) or text.endswith("\n...\n"):
        return False
    stacks = text.removesuffix("\n").split("\n\n")
    marked = [each for each in stacks if each.endswith(("\n  ...", "was read)"))]
    assert len(stacks) == THREADS, text
    assert all("\n  File " in each for each in stacks if each not in marked), text
    return not marked


def test_a_thread_that_can_not_be_read_is_marked(short_path: Path) -> None:
    """Where process_vm_readv is forbidden, each read opens a file. Half of the open() fail."""
    library = built(short_path)
    path = str(short_path / "s")
    settings = {"LD_PRELOAD": str(library), "CHAOS_CONTROL": str(short_path / "control")}
    with talking("stacks/parked_server.py", path, str(PARKED), **settings) as rank:
        assert rank.hear() == "ready"
        control = Control(short_path / f"control.{rank.pid}")
        formats = {"text": whole_text, "json": whole_json}
        with Client(path, 60.0) as client:

            def dump(format: str) -> Reply:
                reply = client.ask(post(f"dump_traceback?mode=nogil&format={format}"))
                assert reply.status in (200, 503), reply
                return reply

            for format, whole in formats.items():
                assert whole(dump(format))
            for seed in range(100):  # one of the first refusals is EPERM: from then on the file
                control.arm(("peek",), 1024, seed)
                dump("text")
            control.disarm()
            for format, whole in formats.items():
                assert whole(dump(format))
            answers = set()
            for seed in range(DUMPS):
                control.arm(("nofile",), (60, 250, 512)[seed % 3], seed)
                for format, whole in formats.items():
                    reply = dump(format)
                    answers.add(reply.status == 200 and whole(reply))
            assert control.injected()["nofile"] > DUMPS
            assert answers == {True, False}, "no dump met the fault, or all did"
            control.disarm()
            for format, whole in formats.items():
                assert whole(dump(format))
        control.close()
