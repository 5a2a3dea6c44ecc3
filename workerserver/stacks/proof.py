"""Whether waits can be read of this Python: a planted frame is read and compared with what it has.

What does not come out right is left out of all snapshots: locals, with blocks, a lock's state. The
places of a lock's state and of an RLock's owner in memory are found here too, by looking which
bytes change when the lock is taken and given back.
"""

from __future__ import annotations

import _thread
import opcode
import sys
import threading
from typing import Any

from workerserver.stacks._stacks import (
    Gate,
    learn_instructions,
    learn_locks,
    learn_proven,
    memory_of,
    probe_attribute,
    probe_locals,
    probe_lock,
    probe_value,
    probe_withs,
)

__all__ = ["proven"]

_result: bool | None = None

_VALUES = (0, 7, -3, 1 << 31, -(1 << 40), (1 << 61) + 5, "", "ckpt/7", None)


def _lock_state() -> int:
    """The offset of a byte in a lock whose bit 0 says that it is locked; 0: not found."""
    lock = threading.Lock()
    free, taken = [], []
    for _ in range(3):
        free.append(memory_of(lock))
        lock.acquire()
        taken.append(memory_of(lock))
        lock.release()
    free.append(memory_of(lock))
    found = [
        at
        for at in range(2 * tuple.__itemsize__, len(free[0]))
        if {each[at] for each in free} == {0} and {each[at] for each in taken} == {1}
    ]
    return found[0] if len(found) == 1 else 0


def _owner(lock: Any) -> int:
    """The offset of the ident of an RLock's owner, which is 0 while the lock is free; 0: not
    found."""
    me = threading.get_ident()
    word = tuple.__itemsize__
    free = [memory_of(lock)]
    lock.acquire()
    taken = [memory_of(lock)]
    lock.acquire()
    taken.append(memory_of(lock))
    lock.release()
    taken.append(memory_of(lock))
    lock.release()
    free.append(memory_of(lock))

    def at(memory: bytes, place: int) -> int:
        return int.from_bytes(memory[place : place + word], sys.byteorder)

    found = [
        place
        for place in range(2 * word, len(free[0]) - word + 1, word)
        if {at(each, place) for each in free} == {0} and {at(each, place) for each in taken} == {me}
    ]
    return found[0] if len(found) == 1 else 0


def _planted(
    zero: Any, seven: Any, negative: Any, large: Any, low: Any, wide: Any, empty: Any, text: Any,
    none: Any, lock: Any, rlock: Any, condition: Any, gate: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """What the reader finds of this very call: locals, managers, and the one just entered."""
    for _ in (1, 2):
        with lock:
            try:
                for _ in (1,):
                    with rlock, condition:
                        places = probe_locals(13)
                        inside = probe_withs()
                        with gate:
                            pass
                        break
            finally:
                outside = probe_withs()
        break
    return places, (inside, outside), gate.found


def _look() -> tuple[bool, bool]:
    """Whether locals, and whether with blocks, come out right."""
    lock, rlock, condition, gate = (
        threading.Lock(),
        threading.RLock(),
        threading.Condition(),
        Gate(),
    )
    places, (inside, outside), entering = _planted(*_VALUES, lock, rlock, condition, gate)
    managers = [id(condition), id(rlock), id(lock)]
    values = [probe_value(place) for place in places[: len(_VALUES)]]
    own: Any = condition
    good = values == list(_VALUES)
    good = good and places[len(_VALUES) :] == [id(lock), id(rlock), id(condition), id(gate)]
    good = good and probe_attribute(id(own), "_lock") == id(own._lock) == probe_lock(id(own))
    good = good and probe_lock(id(lock)) == id(lock) and probe_lock(id(gate)) == 0
    thread: Any = threading.current_thread()
    good = good and probe_attribute(id(thread), "_name") == id(vars(thread).get("_name"))
    withs = inside == (managers, 0) and outside == ([id(lock)], 0)
    # CPython 3.10 doesn't tell where the manager lies that is just entered.
    entered = (managers, id(gate) if sys.version_info >= (3, 11) else 0)
    return good, withs and entering == entered


def proven() -> bool:
    """Whether anything can be read; finds it out at the first call. After prepare() only."""
    global _result
    if _result is None:
        numbers = opcode.opmap.get
        learn_instructions(
            numbers("BEFORE_WITH", 0), numbers("WITH_EXCEPT_START", 0), numbers("LOAD_SPECIAL", 0)
        )
        learn_locks(
            _thread.LockType, type(_thread.RLock()), threading.Condition,
            _lock_state(), _owner(_thread.RLock()),
        )  # fmt: skip
        locals_good, withs_good = _look()
        learn_proven(locals_good, withs_good)
        _result = locals_good
    return _result
