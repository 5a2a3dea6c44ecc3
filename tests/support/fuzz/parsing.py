"""Targets: the parser of requests, and the validator of parameters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from support.requests.recognised import TABLE, parse, same_request
from workerserver._parser import MAX_PARAMETERS, QueryValidator, RequestParser, parse_query
from workerserver.types import (
    DuplicateParameter,
    InvalidParameter,
    MalformedRequest,
    MissingParameter,
    ParameterError,
    ProtocolError,
    Range,
    UnknownParameter,
)

__all__ = ["one_parsed", "one_validated"]

#: Small enough for an input to exceed them.
LIMITS = {"max_head": 400, "max_headers": 12, "max_body": 64, "max_chunks": 3}


# --- the parser


def told(data: bytes, step: int, limits: dict[str, int]) -> tuple[list[Any], Any]:
    """All that the parser says of *data* in pieces of *step* bytes."""
    parser = RequestParser(**limits)
    requests: list[Any] = []
    try:
        for start in range(0, len(data), step):
            parser.receive_data(data[start : start + step])
            while (request := parser.next_request()) is not None:
                fields = (request.method, request.target, request.path, request.query)
                more = (request.host, tuple(request.headers), request.body, request.http_version)
                requests.append((*fields, *more, request.keep_alive, request.cross_site))
                with contextlib.suppress(MalformedRequest):
                    request.parameters()
    except ProtocolError as error:
        assert parser.closed
        return requests, (type(error), error.status)
    assert parser.at_boundary or parser.buffered or parser.in_body or parser.closed
    return requests, (parser.closed, parser.at_boundary, parser.in_body)


def one_parsed(raw: bytes) -> None:
    """One answer, however the bytes come; and what the recogniser takes, the parser takes too."""
    if len(raw) < 2:
        return
    data = raw[1:]
    limits = LIMITS if raw[0] & 1 else {}
    whole = told(data, len(data), limits)
    cut = told(data, 1 + (raw[0] >> 1) % 40, limits)
    assert whole == cut, (whole, cut)
    look = TABLE.look(data)
    if look == "incomplete":
        assert parse(data) == ([], False, len(data))
    elif not isinstance(look, str):
        same_request(look, data)


# --- the validator


class Mode(Enum):
    FAST = "fast"
    SLOW = "slow"


def plain(depth: int = 1, name: str = "x") -> None: ...


def bounded(
    seconds: Annotated[float, Range(0.1, 600)], count: Annotated[int, Range(-5, 5)] = 0
) -> None: ...


def choices(mode: Mode, level: Literal["a", "b", 3] = "a", on: bool = False) -> None: ...


def optional(at: float | None = None, text: str | None = None) -> None: ...


def open_ended(q: str, **more: str) -> None: ...


FUNCTIONS: list[Callable[..., None]] = [plain, bounded, choices, optional, open_ended]
VALIDATORS = [QueryValidator.from_callable(function) for function in FUNCTIONS]
#: For each function: its parameters, and for each what reads a text, None for "not valid".
Read = Callable[[str], Any]


def number(kind: type, low: float = -math.inf, high: float = math.inf) -> Read:
    def value(text: str) -> Any:
        if len(text) > 40 or set(text) - set("+-.0123456789eE"):
            return None
        try:
            found = kind(text)
        except ValueError:
            return None
        return found if math.isfinite(found) and low <= found <= high else None

    return value


def one_of(**values: Any) -> Read:
    return values.get


MODEL: list[dict[str, tuple[Read, bool]]] = [  # whether the parameter has to come
    {"depth": (number(int), False), "name": (str, False)},
    {"seconds": (number(float, 0.1, 600), True), "count": (number(int, -5, 5), False)},
    {
        "mode": (one_of(fast=Mode.FAST, slow=Mode.SLOW), True),
        "level": ({"a": "a", "b": "b", "3": 3}.get, False),
        "on": ({"true": True, "false": False}.get, False),
    },
    {"at": (number(float), False), "text": (str, False)},
    {"q": (str, True)},
]


def pairs_of(data: bytes) -> list[tuple[str, str]] | None:
    """What parse_query() has to make of *data*; None: it refuses."""
    found: list[tuple[str, str]] = []
    for piece in data.split(b"&"):
        if not piece:
            continue
        if len(found) == MAX_PARAMETERS:
            return None
        texts = []
        for part in piece.partition(b"=")[::2]:
            for rest in part.split(b"%")[1:]:
                if len(rest) < 2 or not set(rest[:2]) <= set(b"0123456789abcdefABCDEF"):
                    return None
            try:
                texts.append(unquote_to_bytes(part.replace(b"+", b" ")).decode())
            except UnicodeDecodeError:
                return None
        if texts[0]:
            found.append((texts[0], texts[1]))
    return found


def expected(
    model: dict[str, tuple[Read, bool]], given: list[list[tuple[str, str]]], extra: bool
) -> dict[str, Any] | type[ParameterError]:
    """The arguments, or the error that comes first: a bad value, a repeated name, an unknown one, a
    missing one."""
    values: dict[str, Any] = {}
    bad = repeated = unknown = False
    for place, pairs in enumerate(given):
        hidden = {name for name, _ in given[0]} if place else set()
        seen: set[str] = set()
        for name, text in pairs:
            if name in model:
                value = model[name][0](text)
                if value is None:
                    bad = True
                elif name not in hidden:
                    repeated |= name in seen
                    values[name] = value
            elif not extra:
                unknown |= name not in hidden
            elif name not in hidden:
                values.setdefault(name, text)
            seen.add(name)
    if bad:
        return InvalidParameter
    if repeated:
        return DuplicateParameter
    if unknown:
        return UnknownParameter
    if any(must and name not in values for name, (_, must) in model.items()):
        return MissingParameter
    return values


def one_validated(raw: bytes) -> None:
    """The first byte chooses the function; a NUL stands between the query and the form."""
    if not raw:
        return
    chosen = raw[0] % len(FUNCTIONS)
    given = []
    for data in raw[1:].split(b"\0")[:2]:
        wanted = pairs_of(data)
        try:
            pairs = parse_query(data)
        except MalformedRequest:
            assert wanted is None, data
            return
        assert pairs == wanted, (pairs, wanted)
        given.append(pairs)
    answer = expected(MODEL[chosen], given, FUNCTIONS[chosen] is open_ended)
    found: dict[str, Any] | type[ParameterError]
    try:
        found = VALIDATORS[chosen].validate(*given)
    except ParameterError as error:
        found = type(error)
    assert found == answer, (found, answer)
    if isinstance(found, dict):
        FUNCTIONS[chosen](**found)
