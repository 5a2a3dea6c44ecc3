"""The answers of ``fr_summary`` as rows of a few shapes: what is equal on many ranks is kept once.

In a job that hangs, thousands of summaries differ only in the rank and in the times of the
operations. Such summaries have one :class:`Shape`. A :class:`Summary` has the rest: its rank and
its times. The text that the worker sent can be made again from both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

from workerserver.cluster.failures import short
from workerserver.cluster.read.columns.strict_json import json_object

__all__ = ["FIRST_TIME", "Shape", "Summary", "shape_of", "summary_of"]

#: In a shape, FIRST_TIME and the integers above it stand for the rank's times, in their order. Real
#: times in nanoseconds stay below it until the year 2116.
FIRST_TIME = 1 << 62
#: The number stands for a rank until the shape is known.
ANY_RANK = 8_388_593
#: A time that can be left out of a shape. In a string, the quotation mark would be escaped.
_TIME = re.compile(r'_ns":([1-9][0-9]{0,17}|[1-3][0-9]{18})(?=[,}])')
_RANK = '{"rank":'
#: An integer in the shape itself that could be taken for a time.
_LARGE = re.compile(r"[0-9]{19}")
MAX_RANK_DIGITS = 7


class Shape:
    """What summaries have in common that are equal but for the rank and the times. Summaries of one
    shape share the object, so shapes are compared by identity.

    *parts*: the text around the times. *places*: for each gap, which one of the summary's different
    times stands there: two times that are equal are equal in each summary. *ranked*: the text
    begins with the rank, which *parts* leave out; else *rank* is the value that the text has.
    """

    __slots__ = ("__weakref__", "known", "parts", "places", "rank", "ranked", "size")

    def __init__(self, parts: tuple[str, ...], places: tuple[int, ...], *, ranked: bool) -> None:
        """ValueError if the text is no JSON object."""
        self.parts = parts
        self.places = places
        self.ranked = ranked
        self.known: dict[str, Any] = {}
        """What readers have found in the shape, by their names."""
        fields = self.fields()
        self.size = len(fields)
        self.rank: Any = None if ranked else fields.get("rank")

    def text(self, times: tuple[int, ...], rank: int = ANY_RANK) -> str:
        pieces = [self.parts[0]]
        for place, part in zip(self.places, self.parts[1:], strict=True):
            pieces.append(f'_ns":{times[place]}{part}')
        return f"{_RANK}{rank}{''.join(pieces)}" if self.ranked else "".join(pieces)

    def fields(self) -> dict[str, Any]:
        """The summary with FIRST_TIME and so on in place of times."""
        count = max(self.places, default=-1) + 1
        return json_object(self.text(tuple(range(FIRST_TIME, FIRST_TIME + count))))

    def is_sound(self) -> bool:
        """Nothing in the shape can be mistaken for a time or for the rank."""
        if any(_LARGE.search(part) for part in self.parts):
            return False
        return not self.ranked or self.fields().get("rank") == ANY_RANK


class Summary(Mapping[str, Any]):
    """One rank's answer. *times*: its different times, in nanoseconds, in the order of the text. As
    a mapping it has the answer's fields, which are read each time that somebody looks at them."""

    __slots__ = ("rank", "shape", "times")

    def __init__(self, shape: Shape, times: tuple[int, ...], rank: Any) -> None:
        self.shape = shape
        self.times = times
        self.rank = rank

    def fields(self) -> dict[str, Any]:
        shape = self.shape
        text = shape.text(self.times, self.rank) if shape.ranked else shape.text(self.times)
        return json_object(text)

    def __getitem__(self, name: str) -> Any:
        return self.fields()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields())

    def __len__(self) -> int:
        return self.shape.size

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Summary):
            return isinstance(other, Mapping) and self.fields() == dict(other)
        if self.shape is other.shape:
            return self.times == other.times and self.rank == other.rank
        return self.fields() == other.fields()

    __hash__ = None  # type: ignore[assignment]


#: A shape is known for as long as somebody has a summary of it.
_shapes: WeakValueDictionary[tuple[object, ...], Shape] = WeakValueDictionary()


def summary_of(body: bytes) -> Mapping[str, Any]:
    """The summary in the body of an answer; ValueError if that is no JSON object."""
    try:
        text = body.decode("utf-8")
    except ValueError as error:
        raise ValueError(f"not JSON: {short(error)}") from None
    pieces = _TIME.split(text)
    numbers = pieces[1::2]
    order = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
    places = tuple([order[number] for number in numbers])
    rank, pieces[0] = _rank(pieces[0])
    parts = tuple(pieces[::2])
    shape = shape_of(parts, places, ranked=rank is not None)
    if shape is None:
        return json_object(text)
    return Summary(shape, tuple(map(int, order)), shape.rank if rank is None else rank)


def shape_of(parts: tuple[str, ...], places: tuple[int, ...], *, ranked: bool) -> Shape | None:
    """The one object for this shape. None if the text is no JSON object, or if something in it can
    be mistaken for a time."""
    key = (ranked, places, parts)
    shape = _shapes.get(key)
    if shape is None:
        try:
            shape = Shape(parts, places, ranked=ranked)
        except ValueError:
            return None
        if not shape.is_sound():
            return None
        _shapes[key] = shape
    return shape


def _rank(text: str) -> tuple[int | None, str]:
    """The rank with which *text* begins, and what follows. None and *text* if it doesn't."""
    if not text.startswith(_RANK):
        return None, text
    end = text.find(",", len(_RANK))
    digits = text[len(_RANK) : end]
    if not 0 < len(digits) <= MAX_RANK_DIGITS or not digits.isascii() or not digits.isdecimal():
        return None, text
    rank = int(digits)
    return (rank, text[end:]) if str(rank) == digits else (None, text)
