"""Who waits for whom, and who holds the lock: planted scenes, with the GIL and without it."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest
from support.lifecycle import PROGRAMS
from support.parking import untraced, where_it_works

pytestmark = [pytest.mark.cpython, untraced, where_it_works]

#: CPython 3.10 doesn't tell which manager a frame is just about to enter. It does for a Condition,
#: whose __enter__ is a function of Python.
SEES_ENTRY = sys.version_info >= (3, 11)

Threads = dict[str, dict[str, Any]]


@cache
def seen(scene: str) -> dict[str, Threads]:
    script = str(PROGRAMS / "stacks/deadlocks.py")
    done = subprocess.run(
        [sys.executable, script, scene], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    return {mode: {each["name"]: each for each in threads} for mode, threads in found.items()}


@pytest.fixture(params=["gil", "nogil"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def holders(threads: Threads) -> dict[str, str | None]:
    """By the name of each thread that waits for a lock: the name of the thread that holds it."""
    names = {each["native_id"]: name for name, each in threads.items()}
    return {
        name: names.get(each["waits_for"]["holder"])
        for name, each in threads.items()
        if "holder" in each.get("waits_for", {})
    }


def holds(threads: Threads) -> dict[str, list[str]]:
    return {
        name: [h["kind"] for h in each["holds"]]
        for name, each in threads.items()
        if "holds" in each
    }


def objects(threads: Threads) -> None:
    """What a thread waits for has the address that it has among what the holder holds."""
    by_id = {each["native_id"]: each for each in threads.values()}
    for each in threads.values():
        wait = each.get("waits_for", {})
        if wait.get("holder") is not None:
            held = [(h["kind"], h["object"]) for h in by_id[wait["holder"]]["holds"]]
            assert (wait["kind"], wait["object"]) in held


@pytest.mark.parametrize(
    ("scene", "kinds"),
    [
        ("two_locks", ["lock"] * 2),
        ("two_rlocks", ["rlock"] * 2),
        ("three", ["lock", "rlock", "rlock"]),
    ],
)
def test_a_circle(mode: str, scene: str, kinds: list[str]) -> None:
    threads = seen(scene)[mode]
    size = len(kinds)
    assert holds(threads) == {f"t{n}": [kind] for n, kind in enumerate(kinds)}
    expected = {f"t{n}": f"t{(n + 1) % size}" for n in range(size)}
    if not SEES_ENTRY:
        expected = {"t1": "t2"} if scene == "three" else {}
    assert holders(threads) == expected
    objects(threads)
    for each in threads.values():
        (held,) = each["holds"]
        frame = each["frames"][held["frame"]]
        assert frame["function"] == "take"


def test_a_lock_and_a_join(mode: str) -> None:
    threads = seen("lock_and_join")[mode]
    wait = threads["t1"]["waits_for"]
    assert (wait["kind"], wait["source"]) == ("thread", "locals")
    assert wait["thread"] == {"native_id": threads["t0"]["native_id"], "name": "t0"}
    assert threads["t1"]["frames"][wait["frame"]]["function"] == "join"
    assert holds(threads) == {"t1": ["lock"]}
    assert holders(threads) == ({"t0": "t1"} if SEES_ENTRY else {})
    objects(threads)


def test_a_thread_that_waits_for_itself(mode: str) -> None:
    threads = seen("alone")[mode]
    assert holds(threads) == {"t0": ["lock"]}
    assert holders(threads) == ({"t0": "t0"} if SEES_ENTRY else {})


def test_idle_consumers_hold_nothing(mode: str) -> None:
    """They stand inside a with block of a lock that wait() has given back."""
    threads = seen("idle")[mode]
    assert len(threads) == 25
    assert (holders(threads), holds(threads)) == ({}, {})
    kinds = [threads[f"t{n}"]["waits_for"]["kind"] for n in range(25)]
    assert kinds == ["queue"] * 20 + ["condition"] * 5
    assert len({threads[f"t{n}"]["waits_for"]["object"] for n in range(20)}) == 1


def test_who_waits_for_a_condition_does_not_hold_its_lock(mode: str) -> None:
    """Two threads are inside a with block of one lock: one of them waits for its condition."""
    threads = seen("waiter_and_holder")[mode]
    assert threads["t0"]["waits_for"]["kind"] == "condition"
    assert holds(threads) == {"t1": ["lock"]}
    assert holders(threads) == {"t2": "t1", "t3": "t1"}
    assert threads["t2"]["waits_for"]["source"] == "locals"
    objects(threads)


def test_acquire_without_with_is_not_seen(mode: str) -> None:
    """A lock doesn't know who holds it. An RLock does."""
    threads = seen("by_acquire")[mode]
    assert holders(threads) == ({"t1": None, "t2": "t0"} if SEES_ENTRY else {})
    expected = {"t0": ["rlock"]} if SEES_ENTRY else {}
    assert holds(threads) == expected
    for each in expected:
        assert "frame" not in threads[each]["holds"][0]


def test_a_lock_that_was_given_back_inside_its_block_has_no_known_holder(mode: str) -> None:
    threads = seen("given_back")[mode]
    assert holders(threads) == ({"t2": None} if SEES_ENTRY else {})
    assert holds(threads) == {}


def test_a_suspended_generator_is_not_seen(mode: str) -> None:
    threads = seen("suspended")[mode]
    assert holders(threads) == ({"t0": None} if SEES_ENTRY else {})
    assert holds(threads) == {}


def test_functions_of_the_user_are_not_read(mode: str) -> None:
    """Neither by their file and names, nor in the place of the library's own."""
    for scene, count in (("same_names", 3), ("replaced", 1)):
        threads = seen(scene)[mode]
        assert len(threads) == count
        for each in threads.values():
            assert each["frames"][0]["function"] in ("park", "wait")
            assert not {"waits_for", "holds"} & set(each)
        assert "12345" not in json.dumps(threads)
        assert "secret" not in json.dumps(threads)


def test_a_child(mode: str) -> None:
    threads = seen("process")[mode]
    waits = [threads[name]["waits_for"] for name in ("t0", "t1")]
    assert [wait["kind"] for wait in waits] == ["process", "process"]
    assert waits[0]["pid"] == waits[1]["pid"] > 0
