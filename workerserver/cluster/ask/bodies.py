"""The contents of answers' bodies. This module checks every value before anything else uses it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from functools import lru_cache
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakValueDictionary

from workerserver.cluster.failures import short
from workerserver.cluster.model import Health
from workerserver.cluster.read.columns.strict_json import json_object, load_json
from workerserver.cluster.read.columns.summaries import Shape, Summary, summary_of

if TYPE_CHECKING:
    from workerserver.cluster import _ask
else:
    try:
        from workerserver.cluster import _ask
    except ImportError:  # no epoll, or a free-threaded CPython
        _ask = None

__all__ = [
    "HEALTH_FIELDS",
    "MAX_RANKS",
    "Digest",
    "clock_ahead",
    "digest",
    "digest_of",
    "handler_names",
    "health",
    "health_columns",
    "health_of",
    "json_object",
    "load_json",
    "summary",
]

#: Ranks beyond this are a mistake or a lie.
MAX_RANKS = 1 << 24
#: A name that a worker tells.
MAX_TEXT_CHARACTERS = 256
#: A larger digest than this is not our workers' own, and is not kept.
COMMON_BYTES = 1024
#: RFC 9110, section 5.6.7.
_DATE = re.compile(r"[A-Za-z]{3}, (\d\d) ([A-Za-z]{3}) (\d{4}) (\d\d):(\d\d):(\d\d) GMT\Z")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
#: From 1 March of the year 0 to 1 January 1970, and one more: days are counted from 1.
DAYS_TO_1970 = 719_469
#: By how much clocks have to differ until a Date shows that: an answer may take a second, too.
MIN_CLOCK_SECONDS = 3.0
#: What /healthz may tell. A collector tells *newer* in what it passes on.
_KNOWN = frozenset(each.name for each in dataclass_fields(Health))
_NOTHING = [None]
_STATUSES = ("ok", "stalled")
_HASH = re.compile(r"[0-9a-f]{1,64}\Z")


class Digest(NamedTuple):
    """``dump_traceback?format=digest``."""

    digest: str
    main: str | None


def handler_names(body: bytes) -> list[str]:
    """The names in the body of ``GET /handler/``; ValueError if it is no list of names."""
    value = load_json(body)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("not a list of names")
    return value


def health(body: bytes) -> Health:
    """The body of ``/healthz``. ValueError names a field whose value is impossible."""
    if _ask is not None:
        values = _ask.plain_values(body, _PLACES, len(HEALTH_FIELDS))
        if values is not None and values[0] in _STATUSES and (values[2] or 0) < MAX_RANKS:
            values[-1] = False  # there are no other fields
            return Health(*values)
    return health_of(json_object(body))


def health_of(fields: Mapping[str, Any]) -> Health:
    """As :func:`health`, from the decoded JSON object."""
    return Health(*[read(fields, name) for name, read in HEALTH_FIELDS])


def health_columns(told: Mapping[str, Any], count: int) -> list[Health]:
    """As :func:`health_of`, of *count* workers. *told*: of each field a list with the value of
    each worker, or with the only value."""
    columns: list[Iterable[Any]] = []
    for name, read in HEALTH_FIELDS:
        values = told.get(name, _NOTHING)
        if not isinstance(values, list) or len(values) not in (1, count):
            raise ValueError(f"{name} is {short(values)}")
        checked = [read({name: value}, name) for value in values]
        columns.append(checked if len(checked) == count else repeat(checked[0], count))
    if not _KNOWN.issuperset(told):
        columns[-1] = repeat(True, count)
    return list(map(Health, *columns))


def clock_ahead(fields: Mapping[str, str]) -> float | None:
    """By how much the clock of the worker that has just answered with *fields* is ahead of ours, in
    seconds. 0 if it is less than a Date, which has whole seconds and may be a second old, can tell.
    None without a Date.
    """
    told = _told(fields.get("date", ""))
    if told is None:
        return None
    ahead = told + 0.5 - time.time()
    return ahead if abs(ahead) >= MIN_CLOCK_SECONDS else 0.0


@lru_cache(maxsize=64)
def _told(date: str) -> int | None:
    """A Date in seconds since the epoch; None if it is none. Kept, because thousands of workers
    answer within one second."""
    found = _DATE.match(date)
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(found[part]) for part in (1, 3, 4, 5, 6))
    # In years from March to February the leap day is the last one, and months repeat in fives.
    month = (_MONTHS.index(found[2]) - 2) % 12
    year -= month > 9
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month + 2) // 5 + day
    return (days - DAYS_TO_1970) * 86400 + hour * 3600 + minute * 60 + second


#: Of bodies that are equal but for rank and times: their shape.
_shapes: WeakValueDictionary[bytes, Shape] = WeakValueDictionary()


def summary(body: bytes) -> Mapping[str, Any]:
    """The body of ``fr_summary``. ValueError if it is no JSON object."""
    found = _ask.masked(body) if _ask is not None else None
    if found is None:
        return summary_of(body)
    common, rank, times = found
    shape = _shapes.get(common)
    if shape is not None:
        return Summary(shape, times, rank)
    read = summary_of(body)
    if isinstance(read, Summary) and read.shape.ranked:
        _shapes[common] = read.shape
    return read


def digest(body: bytes) -> Digest:
    """The body of a digest. ValueError names a field whose value is impossible."""
    return _known_digest(body) if len(body) <= COMMON_BYTES else digest_of(json_object(body))


@lru_cache(maxsize=1024)
def _known_digest(body: bytes) -> Digest:
    """Kept, because ranks with equal stacks send equal bodies."""
    return digest_of(json_object(body))


def digest_of(fields: Mapping[str, Any]) -> Digest:
    """As :func:`digest`, from the decoded JSON object."""
    for name in ("digest", "main"):
        value = fields.get(name)
        if value is None and name == "main":
            continue
        if not isinstance(value, str) or not _HASH.match(value):
            raise ValueError(f"{name} is {short(value)}")
    return Digest(fields["digest"], fields.get("main"))


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT_CHARACTERS:
        raise ValueError(f"{name} is {short(value)}")
    return value


def _integer(fields: Mapping[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise ValueError(f"{name} is {short(value)}")
    return value


def _seconds(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 <= value < 1e12:
        raise ValueError(f"{name} is {short(value)}")
    return float(value)


def _status(fields: Mapping[str, Any], name: str) -> str:
    status = fields.get(name)
    if status not in _STATUSES:
        raise ValueError(f"{name} is {short(status)}")
    return str(status)


def _rank(fields: Mapping[str, Any], name: str) -> int | None:
    rank = _integer(fields, name)
    if rank is not None and not 0 <= rank < MAX_RANKS:
        raise ValueError(f"{name} is {short(rank)}")
    return rank


def _newer(fields: Mapping[str, Any], name: str) -> bool:
    return fields.get(name) is True or not _KNOWN.issuperset(fields)


#: The fields of Health, in their order, each with what reads and checks it.
HEALTH_FIELDS: Sequence[tuple[str, Callable[[Mapping[str, Any], str], Any]]] = (
    ("status", _status),
    ("pid", _integer),
    ("rank", _rank),
    ("uptime_s", _seconds),
    ("step", _integer),
    ("step_age_s", _seconds),
    ("gil_wait_s", _seconds),
    ("gil_wait_max_s", _seconds),
    ("gil_unavailable_s", _seconds),
    ("cpu_s", _seconds),
    ("rss_bytes", _integer),
    ("step_median_s", _seconds),
    ("job", _text),
    ("job_from", _text),
    ("agent", _text),
    ("restart", _integer),
    ("world_size", _integer),
    ("local_rank", _integer),
    ("local_world_size", _integer),
    ("group_rank", _integer),
    ("host", _text),
    ("started", _seconds),
    ("step_thread", _integer),
    ("newer", _newer),
)
_KINDS = {_status: "t", _text: "t", _integer: "i", _rank: "i", _seconds: "s"}
#: Of each field that workers tell: its place in HEALTH_FIELDS, and its kind for plain_values().
_PLACES = {
    name.encode("ascii"): (place, _KINDS[read])
    for place, (name, read) in enumerate(HEALTH_FIELDS)
    if read in _KINDS
}
