"""Profiles in the form that ``go tool pprof``, Pyroscope and Parca read: a gzipped protocol buffer.

The message is ``Profile`` of github.com/google/pprof, proto/profile.proto; field numbers are from
there. It needs so little of the encoding that it is written by hand: numbers, and fields that begin
with their length.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from workerserver.stacks.profiles.job import Job
from workerserver.stacks.profiles.recorded import Function, Recorded

__all__ = ["MAX_RANKS", "Builder", "of_job", "of_process"]

NANOSECONDS = 1_000_000_000
#: Ranks that have samples of their own. Of more, the samples carry rank sets.
MAX_RANKS = 256


def _varint(value: int) -> bytes:
    """*value* in groups of seven bits; a negative one as 64 bits in two's complement."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _packed(number: int, values: Iterable[int]) -> bytes:
    return _bytes(number, b"".join(map(_varint, values)))


@dataclass(slots=True)
class Builder:
    """Collects samples. *types*: name and unit of each value of a sample; the last one is shown
    unless another one is asked for."""

    types: Sequence[tuple[str, str]]
    period_ns: int
    time_ns: int
    duration_ns: int
    comments: Sequence[str] = ()
    _strings: dict[str, int] = field(default_factory=lambda: {"": 0})
    _functions: dict[Function, int] = field(default_factory=dict)
    _samples: list[bytes] = field(default_factory=list)

    def location(self, function: Function) -> int:
        """The number of *function*, and of the one place in it that samples name."""
        return self._functions.setdefault(function, len(self._functions) + 1)

    def add(
        self, locations: Iterable[int], values: Sequence[int], labels: Mapping[str, str | int]
    ) -> None:
        """A sample; the innermost call comes first in *locations*."""
        told = b"".join(
            _bytes(3, _number(1, self._text(key)) + self._label(value))
            for key, value in labels.items()
        )
        self._samples.append(_packed(1, locations) + _packed(2, values) + told)

    def build(self) -> bytes:
        """The whole profile."""
        types = [self._type(*each) for each in self.types]
        period = self._type("wall", "nanoseconds")
        tables = [self._function(number, each) for each, number in self._functions.items()]
        comments = [_number(13, self._text(each)) for each in self.comments]
        default = _number(14, self._text(self.types[-1][0]))
        parts = [
            *(_bytes(1, each) for each in types),
            *(_bytes(2, each) for each in self._samples),
            *tables,
            *(_bytes(6, each.encode()) for each in self._strings),
            _number(9, self.time_ns),
            _number(10, self.duration_ns),
            _bytes(11, period),
            _number(12, self.period_ns),
            *comments,
            default,
        ]
        return gzip.compress(b"".join(parts), 6, mtime=0)

    def _text(self, text: str) -> int:
        return self._strings.setdefault(text, len(self._strings))

    def _label(self, value: str | int) -> bytes:
        if isinstance(value, str):
            return _number(2, self._text(value))
        return _varint(3 << 3) + _varint(value)  # 0 too: a label without a value has no meaning

    def _type(self, name: str, unit: str) -> bytes:
        return _number(1, self._text(name)) + _number(2, self._text(unit))

    def _function(self, number: int, function: Function) -> bytes:
        file, name, line = function
        # No system_name: pprof would take both for C++, and <module> for a template's arguments.
        told = _number(1, number) + _number(2, self._text(name or "???"))
        told += _number(4, self._text(file)) + _number(5, line)
        place = _number(1, number) + _bytes(4, _number(1, number) + _number(2, line))
        return _bytes(5, told) + _bytes(4, place)


def of_process(recorded: Recorded) -> bytes:
    """The profile of one process. Each sample says how often it was met (``samples``), for how long
    by the clock (``wall``) and on a processor (``cpu``), and in which thread."""
    period = round(NANOSECONDS / recorded.hz)
    builder = Builder(
        (("samples", "count"), ("wall", "nanoseconds"), ("cpu", "nanoseconds")),
        period,
        round(recorded.time * NANOSECONDS),
        round(recorded.seconds * NANOSECONDS),
    )
    # A round that was missed was no shorter: the samples that there are stand for all the time.
    each = round(recorded.seconds * NANOSECONDS / recorded.samples) if recorded.samples else period
    stacks: list[tuple[int, ...]] = []
    threads: list[int] = []
    for node in recorded.nodes:
        if node.parent == -1:
            stacks.append(())
            threads.append(node.function)
        else:
            own = builder.location(recorded.functions[node.function])
            stacks.append((own, *stacks[node.parent]))
            threads.append(threads[node.parent])
        total = node.active + node.idle
        if total and stacks[-1]:
            values = (total, total * each, node.active * each)
            builder.add(stacks[-1], values, {"thread": recorded.threads[threads[-1]].name})
    return builder.build()


def of_job(job: Job, rank: int | None) -> bytes:
    """The profile of a whole job. Labels say the thread, whether it is one of the idle ones, and
    the rank (of more than MAX_RANKS: the ranks that were met in the stack). With *rank*, the values
    are the time of that rank, less the median of the others."""
    place = None if rank is None else job.place_of(rank)
    types = [("wall", "nanoseconds"), ("cpu", "nanoseconds")]
    if place is not None:
        types = [("difference", "nanoseconds")]
    elif job.mode == "wall":
        types.reverse()  # the last one is shown, unless another one is asked for
    builder = Builder(
        types,
        round(NANOSECONDS / job.hz),
        round(job.time * NANOSECONDS),
        round(job.seconds * NANOSECONDS),
    )
    apart = len(job.members) <= MAX_RANKS
    for (group, stack), times in job.times.items():
        functions = reversed(job.stacks.path(stack))
        path = [builder.location(job.stacks.functions[number]) for number in functions]
        labels = {"thread": group.thread, "state": "idle" if group.idle else "active"}
        if not path:
            continue
        if place is not None:
            own, others = job.against(times, place)
            difference = round((own - others) * 1000)
            if difference:
                builder.add(path, [difference], labels)
        elif apart:
            for who, on, off in times.each():
                values = _values(types, on, off)
                builder.add(path, values, {**labels, "rank": job.members[who].label})
        else:
            values = _values(types, sum(times.on), sum(times.off))
            builder.add(path, values, {**labels, "ranks": job.names(times.who)})
    return builder.build()


def _values(types: Sequence[tuple[str, str]], on: float, off: float) -> list[int]:
    values = {"wall": round((on + off) * 1000), "cpu": round(on * 1000)}
    return [values[name] for name, _ in types]
