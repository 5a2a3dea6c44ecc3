"""What one rank's flight recorder holds, as plain data, and how one recorded operation is read.

Nothing that a worker sends is trusted. Every field has its type and its bound. What does not fit is
left out, and named in :attr:`RankRecord.problems`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from workerserver.ranks import unpack

__all__ = [
    "MAX_IN_FLIGHT",
    "Counters",
    "GroupRecord",
    "Key",
    "Operation",
    "RankRecord",
    "Shared",
    "Tensors",
    "counters_of",
    "integer",
    "is_name",
    "key_of",
    "operation_of",
]

#: Bounds of what is kept of one rank.
MAX_GROUPS = 4096
MAX_NAME = 200
MAX_TENSORS = 64
MAX_DIMENSIONS = 16
MAX_RANKS = 1 << 20
MAX_INTEGER = 1 << 63
MAX_PROBLEMS = 8
#: A rank issues fewer operations while one of them goes on. So a ring that holds as many has lost
#: only operations that have ended.
MAX_IN_FLIGHT = 256

#: Backends with a watchdog that also retires what has timed out: only "completed" is done.
WATCHED = frozenset({"nccl", "ncclx", "rccl", "rcclx", "xccl", "hccl", "mccl"})
#: Backends that retire an operation at its end, and never say "completed". A name without a
#: backend is of an old torch.
RETIRING = frozenset({"gloo", ""})

#: torch's names of the backends' point-to-point operations: "nccl:send 0->1", "nccl:recv 1<-0".
PEERS = re.compile(r"(?:send (\d{1,9})->(\d{1,9})|recv (\d{1,9})<-(\d{1,9}))\Z")

Shape = tuple[int, ...]


class Key(NamedTuple):
    """torch's name and description of a group ("0" and "default_pg" for the default group), and the
    backend whose operations are meant. Each backend of a group counts its own operations, and torch
    2.15 has a recorder for each. *backend* is empty where nothing of the group is recorded."""

    name: str
    desc: str
    backend: str = ""

    @property
    def label(self) -> str:
        """What people call it."""
        return self.desc if self.desc not in ("", "undefined") else self.name or "unnamed group"


class Tensors(NamedTuple):
    """The tensors on one side of an operation; None where the record doesn't say."""

    shapes: tuple[Shape, ...] | None
    dtypes: tuple[str, ...] | None

    @property
    def sizes(self) -> tuple[int, ...] | None:
        """How many elements each tensor has: what has to agree, whatever the shapes."""
        if self.shapes is None:
            return None
        sizes = []
        for shape in self.shapes:
            size = 1
            for length in shape:
                size *= length
            sizes.append(size)
        return tuple(sizes)


NO_TENSORS = Tensors(None, None)


@dataclass(frozen=True, slots=True)
class Operation:
    """One recorded operation. *seq* counts the group's collectives, the same on each rank."""

    seq: int
    op: str
    """Without the backend: ``all_reduce``, ``send 0->1``."""
    backend: str
    done: bool
    """torch knows that it has ended."""
    unknown: bool = False
    """torch has retired it when it was issued, because the backend tells no end: it may go on."""
    p2p: bool = False
    p2p_seq: int = 0
    source: int | None = None
    """*source* and *target*: ranks within the group, of a point-to-point operation."""
    target: int | None = None
    inputs: Tensors = NO_TENSORS
    outputs: Tensors = NO_TENSORS
    state: str = ""
    created_ns: int | None = None
    record: int = -1
    """Its place in the recorder; -1 from a summary, which has only a few of the operations."""
    thread: int | None = None
    """The thread that issued it, by its ident; None where that isn't told, as in a summary."""
    duration_ms: float | None = None
    """How long it ran on the GPU, if torch measures that (TORCH_NCCL_ENABLE_TIMING)."""
    timeout_ms: int | None = None
    """When torch ends it, at the latest; None where that isn't told, as in a summary."""

    @property
    def name(self) -> str:
        return f"{self.op} #{self.seq}"

    @property
    def pending(self) -> bool:
        """torch knows that it has not ended."""
        return not self.done and not self.unknown


@dataclass(slots=True)
class GroupRecord:
    """What one rank knows of one group."""

    key: Key
    ranks: tuple[int, ...] | None = None
    """Global ranks, sorted; None if this rank doesn't say."""
    collectives: dict[int, tuple[Operation, ...]] = field(default_factory=dict)
    """By sequence number; more than one if they were coalesced."""
    p2p: tuple[Operation, ...] = ()
    """In the order in which they were issued."""
    partial: frozenset[int] = frozenset()
    """Sequence numbers of which not all operations may be known."""
    number: int | None = None
    """torch's own number of the group on this rank; ranks may number one group differently."""
    earlier: frozenset[int] = frozenset()
    """The numbers of groups of the same name that were destroyed before this one was made."""

    @property
    def last_issued(self) -> Operation | None:
        return self.collectives[max(self.collectives)][-1] if self.collectives else None

    @property
    def last_retired(self) -> Operation | None:
        done = [seq for seq, ops in self.collectives.items() if all(op.done for op in ops)]
        return self.collectives[max(done)][-1] if done else None

    @property
    def first_pending(self) -> Operation | None:
        """The first collective that has not ended."""
        pending = [seq for seq, ops in self.collectives.items() if any(op.pending for op in ops)]
        if not pending:
            return None
        return next(op for op in self.collectives[min(pending)] if op.pending)

    @property
    def may_go_on(self) -> bool:
        """A collective has not ended, or nobody knows whether it has."""
        last = self.last_issued
        return self.first_pending is not None or (last is not None and last.unknown)

    @property
    def issued(self) -> tuple[int, int]:
        """How far the group's two counters (collectives, point-to-point) had come with the last
        operation that was issued; -1 for none. A summary and a full trace give the same."""
        return self._counted(done=False)

    @property
    def finished(self) -> tuple[int, int]:
        """The same with the last operation that is done."""
        return self._counted(done=True)

    def _counted(self, *, done: bool) -> tuple[int, int]:
        known = [*(op for ops in self.collectives.values() for op in ops), *self.p2p]
        counted = [op for op in known if op.done or not done]
        seq = max((op.seq for op in counted), default=-1)
        return seq, max((op.p2p_seq for op in counted), default=-1)


Counters = dict[tuple[str, str], tuple[int, ...]]


@dataclass(slots=True)
class RankRecord:
    """What one rank's recorders hold. It has no groups if the rank has none or sent nonsense."""

    groups: dict[Key, GroupRecord] = field(default_factory=dict)
    enqueued: int = 0
    """The most that torch's own counters say of any group: 0 if it keeps none."""
    counters: Counters = field(default_factory=dict)
    """By backend and torch's number of the group: how many operations torch has enqueued, started
    and completed, also those that it does not record. -1: none, or not told."""
    problems: list[str] = field(default_factory=list)
    unrecorded: bool = False
    """It has issued operations that no recorder holds: gloo's point-to-point ones."""
    short: bool | None = None
    """A ring has overwritten operations, and holds so few that one of the lost ones may go on.
    None: only a full trace tells that."""

    @property
    def empty(self) -> bool:
        """Not one operation: nothing was issued, or torch doesn't record (a buffer size of 0)."""
        return not any(group.collectives or group.p2p for group in self.groups.values())

    def complain(self, problem: str) -> None:
        if problem not in self.problems and len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class Shared:
    """What ranks of a large job send alike, each read only once: lists of ranks, and summaries.

    A list is known by its identity, so it is kept for as long as this object lives.
    """

    def __init__(self) -> None:
        self.by_shape: dict[object, RankRecord] = {}
        self._kept: list[Any] = []
        self.by_source: dict[int | str, tuple[int, ...] | None] = {}
        self.alike: dict[tuple[int, ...], tuple[int, ...]] = {}

    def ranks(self, value: Any) -> tuple[int, ...] | None:
        """*value*, sorted. Equal lists are the same object. None if it is no list of ranks."""
        if not isinstance(value, (list, str)):
            return None
        source = value if isinstance(value, str) else id(value)
        if source not in self.by_source:
            found = _ranks(value)
            self._kept.append(value)
            self.by_source[source] = None if found is None else self.alike.setdefault(found, found)
        return self.by_source[source]

    def packed(self, text: str, most: int) -> tuple[int, ...] | None:
        """As :meth:`ranks`, for the text of a summary (``"0-4095"``). Few characters may mean many
        ranks: None if there are more than *most*."""
        found = self.by_source.get(text)
        if found is None:
            try:
                found = tuple(sorted(set(unpack(text, most))))
            except ValueError:
                return None
            found = self.by_source[text] = self.alike.setdefault(found, found)
        return found if 0 < len(found) <= most else None


# --- fields -------------------------------------------------------------------------------------


def operation_of(
    facts: Mapping[Any, Any],
    seq: Any,
    p2p_seq: Any,
    name: Any,
    p2p: Any,
    created: Any,
    number: int | None,
) -> Operation | None:
    """The operation that *facts* describe; None if they can't. The other parameters are the fields
    that a trace and a summary call by different names."""
    seq = integer(seq)
    if seq is None or not is_name(name) or not name:
        return None
    backend, colon, op = name.partition(":")
    if not colon:
        backend, op = "", name
    state = facts.get("state")
    if not isinstance(state, str) or not is_name(state):
        state = ""
    retired = facts.get("retired") is True and state != "completed"
    done = state == "completed" or (retired and backend in RETIRING)
    source = target = None
    if p2p is True and (match := PEERS.match(op)) is not None:
        ends = [int(each) for each in match.groups() if each is not None]
        source, target = ends if op.startswith("send") else reversed(ends)
    return Operation(
        seq=seq,
        op=op,
        backend=backend,
        done=done,
        unknown=retired and not done and backend not in WATCHED,
        p2p=p2p is True,
        p2p_seq=integer(p2p_seq) or 0,
        source=source,
        target=target,
        inputs=Tensors(_shapes(facts.get("input_sizes")), _names(facts.get("input_dtypes"))),
        outputs=Tensors(_shapes(facts.get("output_sizes")), _names(facts.get("output_dtypes"))),
        state=state,
        created_ns=integer(created) or None,
        record=-1 if number is None else number,
        duration_ms=_duration(facts.get("duration_ms")),
        timeout_ms=integer(facts.get("timeout_ms")) or None,
        thread=ident if (ident := _counter(facts.get("thread_id"))) > 0 else None,
    )


def _duration(value: Any) -> float | None:
    known = type(value) in (int, float) and 0 < value < 1e12
    return float(value) if known else None


def key_of(value: Any) -> Key | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    name, desc = value
    return Key(name, desc) if is_name(name) and is_name(desc) else None


def is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME


def integer(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 <= value < MAX_INTEGER else None


def _shapes(value: Any) -> tuple[Shape, ...] | None:
    if not isinstance(value, list):
        return None
    shapes = []
    for shape in value[:MAX_TENSORS]:
        if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
            return None
        for length in shape:
            if type(length) is not int or not 0 <= length < MAX_INTEGER:
                return None
        shapes.append(tuple(shape))
    return tuple(shapes)


def _names(value: Any) -> tuple[str, ...] | None:
    if not isinstance(value, list) or not all(is_name(each) for each in value[:MAX_TENSORS]):
        return None
    return tuple(value[:MAX_TENSORS])


def _ranks(value: list[Any] | str) -> tuple[int, ...] | None:
    """A list of ranks, or its text as torch writes it: ``"[0, 1]"``. None for none."""
    if isinstance(value, str):
        if len(value) > 8 * MAX_RANKS:
            return None
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    if not isinstance(value, list) or not 0 < len(value) <= MAX_RANKS:
        return None
    if not all(type(rank) is int and 0 <= rank < MAX_RANKS for rank in value):
        return None
    return tuple(sorted(set(value)))


def counters_of(value: Any, name: str) -> tuple[int, ...] | None:
    """torch's own counters of one group, as :attr:`RankRecord.counters` has them. *name*: what a
    counter is called, with ``{}`` for its word. None if *value* has none."""
    if not isinstance(value, Mapping):
        return None
    words = ("enqueued", "started", "completed")
    return tuple(_counter(value.get(name.format(word))) for word in words)


def _counter(value: Any) -> int:
    """A number, or its text as torch writes it."""
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdigit():
        return int(value)
    number = integer(value)
    return -1 if number is None else number
