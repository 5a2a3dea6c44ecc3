"""What threads wait for and which locks they hold, as workers tell it in ``dump_traceback``'s JSON
(docs/protocol.md).

What comes in is foreign. A fact of an unknown kind is left out, and so is a field of a wrong type
or without bounds: another worker's version may tell more than this one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

from workerserver.cluster.model import Child, Hold, Thread, WaitKind, WaitsFor
from workerserver.ranks import unpack

__all__ = [
    "DIRECTIONS",
    "LOCKS",
    "awaited",
    "by_id",
    "circles",
    "follow",
    "in_words",
    "on_others",
    "read_children",
    "read_holds",
    "read_switches",
    "read_waits",
    "tells",
    "with_beats",
    "with_names",
    "without_facts",
]

KINDS: frozenset[str] = frozenset(get_args(WaitKind))
SOURCES = frozenset({"locals", "with", "kernel", "interpreter"})
#: Of a name, of the keys of a store, of the locks that one thread holds, of a group's ranks.
MAX_TEXT = 1024
MAX_KEYS = 16
MAX_HOLDS = 64
MAX_RANKS = 1 << 16
#: Of a process, its children.
MAX_CHILDREN = 64
#: Of all its processes; and letters of their states.
MAX_CPU_SECONDS = 1e12
MAX_STATES = 16
MAX_NUMBER = 1 << 31
MAX_SWITCHES = 1 << 62
#: Digits of an address, with its "0x".
MAX_ADDRESS = 18

#: Kinds of which the owner, or the other side, may be known: worth a question to each rank.
TELLING: frozenset[WaitKind] = frozenset(
    {
        "lock",
        "rlock",
        "mutex",
        "thread",
        "process",
        "store",
        "rendezvous",
        "file_lock",
    }
)


def read_waits(value: Any) -> WaitsFor | None:
    """The thread's ``waits_for``; None for what is not understood."""
    if type(value) is not dict or _text(value, "kind") not in KINDS:
        return None
    joined, group = value.get("thread"), value.get("group")
    joined = joined if type(joined) is dict else {}
    group = group if type(group) is dict else {}
    source = _text(value, "source")
    return WaitsFor(
        kind=value["kind"],
        source=source if source in SOURCES else None,
        frame=_number(value, "frame"),
        item=_address(value.get("object")),
        holder=_number(value, "holder"),
        joined=_number(joined, "native_id"),
        name=_text(joined, "name"),
        pid=_number(value, "pid"),
        op=_text(value, "op"),
        peer=_number(value, "peer"),
        group=_text(group, "description") or _group(_text(group, "name")),
        ranks=_ranks(group.get("ranks")),
        tag=_number(value, "tag"),
        keys=_keys(value.get("keys")),
        path=_text(value, "path"),
        target=_text(value, "target"),
        descriptor=_number(value, "descriptor"),
        syscall=_text(value, "syscall"),
    )


def read_holds(value: Any) -> tuple[Hold, ...]:
    """The thread's ``holds``, without what is not understood."""
    if type(value) is not list:
        return ()
    found = []
    for each in value[:MAX_HOLDS]:
        item = _address(each.get("object")) if type(each) is dict else None
        if item is not None and _text(each, "kind") in KINDS:
            found.append(Hold(each["kind"], item, _number(each, "frame")))
    return tuple(found)


def read_switches(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MAX_SWITCHES else None


def read_children(value: Any) -> tuple[Child, ...]:
    """The worker's ``children``, without what is not understood."""
    if type(value) is not list:
        return ()
    found = (_child(each) for each in value[:MAX_CHILDREN] if type(each) is dict)
    return tuple(each for each in found if each is not None)


def _child(entry: Mapping[str, Any]) -> Child | None:
    pid, state = _number(entry, "pid"), _text(entry, "state")
    spent, moved = entry.get("cpu_s"), entry.get("io_bytes")
    if pid is None or state is None or len(state) != 1:
        return None
    if isinstance(spent, bool) or not isinstance(spent, int | float):
        return None
    if not 0 <= spent < MAX_CPU_SECONDS:
        return None
    return Child(
        pid=pid,
        name=_text(entry, "name") or "?",
        state=state,
        processes=_number(entry, "processes") or 1,
        states=(_text(entry, "states") or state)[:MAX_STATES],
        cpu_s=float(spent),
        io_bytes=moved if type(moved) is int and 0 <= moved <= MAX_SWITCHES else None,
    )


def with_names(threads: Sequence[Thread], children: Sequence[Child]) -> tuple[Thread, ...]:
    """*threads* that know the names of the children that they wait for."""
    names = {each.pid: each.name for each in children}
    return tuple(
        replace(each, waits=replace(each.waits, name=names[each.waits.pid]))
        if each.waits is not None and each.waits.kind == "process" and each.waits.pid in names
        else each
        for each in threads
    )


def _text(entry: Mapping[str, Any], name: str) -> str | None:
    value = entry.get(name)
    return value if type(value) is str and 0 < len(value) <= MAX_TEXT else None


def _group(name: str | None) -> str | None:
    """What people call a group of that name: torch's default group is the first one."""
    return "default_pg" if name == "0" else name


def _number(entry: Mapping[str, Any], name: str) -> int | None:
    value = entry.get(name)
    return value if type(value) is int and 0 <= value <= MAX_NUMBER else None


def _address(value: Any) -> str | None:
    """As a number has it, so that two spellings of one address are equal."""
    if type(value) is not str or not 2 < len(value) <= MAX_ADDRESS or value[:2] != "0x":
        return None
    try:
        number = int(value[2:], 16)
    except ValueError:
        return None
    return hex(number) if number > 0 and value[2:].isalnum() else None


def _keys(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        return ()
    return tuple(each for each in value[:MAX_KEYS] if type(each) is str and len(each) <= MAX_TEXT)


def _ranks(value: Any) -> tuple[int, ...]:
    """All of a group's ranks, as a list or as "0-3,8", or none: a part would be taken for all of
    them."""
    if type(value) is list and len(value) <= MAX_RANKS:
        good = all(type(each) is int and 0 <= each < MAX_RANKS for each in value)
        return tuple(sorted({*value})) if good else ()
    if type(value) is not str or len(value) > MAX_TEXT:
        return ()
    try:
        return tuple(sorted({*unpack(value, MAX_RANKS)}))
    except ValueError:
        return ()


# ---- the threads of one process that wait for each other

#: Kinds of what one thread at a time may hold.
LOCKS: frozenset[WaitKind] = frozenset({"lock", "rlock", "mutex"})

ById = Mapping[int, Thread]


def by_id(threads: Sequence[Thread]) -> ById:
    """The threads by their native ids; ids that two threads claim are nobody's."""
    found: dict[int, Thread] = {}
    twice: set[int] = set()
    for each in threads:
        if each.native_id is None:
            continue
        if each.native_id in found:
            twice.add(each.native_id)
        found[each.native_id] = each
    return {native: each for native, each in found.items() if native not in twice}


def awaited(thread: Thread, threads: ById) -> Thread | None:
    """The thread that *thread* waits for: one that it joins, or that surely holds its lock. A lock
    without an owner of its own needs a thread that says the same; who holds an RLock or a mutex
    stands in it, and holds it twice without waiting."""
    waits = thread.waits
    if waits is None:
        return None
    if waits.kind == "thread":
        joined = threads.get(waits.joined) if waits.joined is not None else None
        return joined if joined is not thread else None
    if waits.kind not in LOCKS or waits.holder is None:
        return None
    holder = threads.get(waits.holder)
    if holder is None or waits.kind != "lock":
        return holder if holder is not thread else None
    held = waits.item is not None and any(each.item == waits.item for each in holder.holds)
    return holder if held else None


def follow(thread: Thread, threads: ById) -> list[Thread]:
    """*thread*, the one that it waits for, and so on, to the end or until one comes again."""
    path = [thread]
    while (after := awaited(path[-1], threads)) is not None and after not in path:
        path.append(after)
    return path


def circles(threads: Sequence[Thread]) -> list[tuple[Thread, ...]]:
    """The threads that wait for each other in a circle, each circle once, from its main thread or
    its first one on: what is behind one of its threads waits for the next one."""
    known = by_id(threads)
    done: set[int] = set()
    found: list[tuple[Thread, ...]] = []
    for start in sorted(known.values(), key=lambda each: not each.main):
        path: list[Thread] = []
        at: Thread | None = start
        while at is not None and id(at) not in done:
            done.add(id(at))
            path.append(at)
            at = awaited(at, known)
        here = next((number for number, each in enumerate(path) if each is at), None)
        if here is None:
            continue
        circle = path[here:]
        first = next((number for number, each in enumerate(circle) if each.main), 0)
        found.append((*circle[first:], *circle[:first]))
    return found


# ---- what follows from them


#: What other ranks end: nobody who waits so owes anything.
ON_OTHERS: frozenset[WaitKind] = frozenset({"operation", "store", "rendezvous"})


def on_others(thread: Thread | None) -> bool:
    """*thread* surely waits for other ranks."""
    return thread is not None and thread.waits is not None and thread.waits.kind in ON_OTHERS


def tells(threads: Sequence[Thread]) -> bool:
    """One of *threads* waits for something that may have an owner."""
    found = (each.waits for each in threads if each.waits is not None)
    return any(each.kind in TELLING or each.op in DIRECTIONS for each in found)


def with_beats(threads: Sequence[Thread], ident: int | None) -> tuple[Thread, ...]:
    """*threads* of which the one with *ident* has made the last heartbeat."""
    if ident is None or all(each.ident != ident for each in threads):
        return tuple(threads)
    return tuple(
        replace(each, beats=True) if each.ident == ident and not each.beats else each
        for each in threads
    )


def without_facts(threads: Sequence[Thread]) -> tuple[Thread, ...]:
    """*threads* for ranks that have the same stacks: what they wait for is not known. The same
    object, if *threads* tell nothing of the kind."""
    facts = (each for each in threads if each.waits is not None or each.holds)
    if next(facts, None) is None and all(each.switches is None for each in threads):
        return tuple(threads)
    return tuple(
        replace(each, waits=None, holds=(), switches=None)
        if each.waits is not None or each.holds or each.switches is not None
        else each
        for each in threads
    )


def in_words(waits: WaitsFor) -> str:
    """What is waited for: "recv from rank 2 of default_pg", "the file lock on /data/lock"."""
    say = _SAY.get(waits.kind)
    return say(waits) if say is not None else ""


def _operation(waits: WaitsFor) -> str:
    if waits.op is None:
        return ""
    name = f"torch.distributed.{waits.op}"
    group = f" of {waits.group}" if waits.group is not None else ""
    if waits.peer is None or waits.op not in DIRECTIONS:
        return name + group
    return f"{name} {DIRECTIONS[waits.op]} rank {waits.peer}{group}"


#: Operations between two ranks, and the word before the other rank.
DIRECTIONS = {
    "send": "to",
    "isend": "to",
    "send_object_list": "to",
    "recv": "from",
    "irecv": "from",
    "recv_object_list": "from",
}


def _store(waits: WaitsFor) -> str:
    if not waits.keys:
        return "the store"
    more = f" and {len(waits.keys) - 1} more" if len(waits.keys) > 1 else ""
    return f"the store, for key {waits.keys[0]!r}{more}"


def _file_lock(waits: WaitsFor) -> str:
    lock = "a file lock" if waits.path is None else f"the file lock on {waits.path}"
    return lock if waits.pid is None else f"{lock}, which process {waits.pid} holds"


def _process(waits: WaitsFor) -> str:
    if waits.pid is None:
        return "a child process"
    name = f" ({waits.name})" if waits.name is not None else ""
    return f"process {waits.pid}{name}, its child"


def _thread(waits: WaitsFor) -> str:
    return "a thread" if waits.name is None else f"thread {waits.name}"


def _descriptor(waits: WaitsFor) -> str:
    """A pipe or a socket has only a number, which says nothing."""
    if waits.path is None:
        return ""
    return f"{waits.syscall} of {waits.path}" if waits.syscall is not None else waits.path


_SAY: Mapping[WaitKind, Callable[[WaitsFor], str]] = {
    "operation": _operation,
    "store": _store,
    "rendezvous": _store,
    "file_lock": _file_lock,
    "process": _process,
    "thread": _thread,
    "descriptor": _descriptor,
    "mutex": lambda waits: "a pthread mutex",
}
