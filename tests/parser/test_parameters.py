"""Percent-decoding, queries, and typed parameters compiled from signatures."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workerserver._parser import MAX_PARAMETERS, QueryValidator, parse_query, unquote
from workerserver.types import (
    DuplicateParameter,
    InvalidParameter,
    MalformedRequest,
    MissingParameter,
    ParameterError,
    Range,
    UnknownParameter,
)

compiled = QueryValidator.from_callable
undated = settings(deadline=None, database=None)

# --- percent-encoding and queries ---------------------------------------------------------------


@undated
@given(st.text(), st.booleans())
def test_unquote_undoes_quote(text: str, plus: bool) -> None:
    quote = urllib.parse.quote_plus if plus else urllib.parse.quote
    assert unquote(quote(text, safe="").encode(), plus) == text


@undated
@given(st.from_regex(rb"([ -$&-~]|%[0-7][0-9A-Fa-f]){0,20}", fullmatch=True), st.booleans())
def test_unquote_agrees_with_urllib(raw: bytes, plus: bool) -> None:
    reference = urllib.parse.unquote_plus if plus else urllib.parse.unquote
    assert unquote(raw, plus) == reference(raw.decode("ascii"))


@undated
@given(st.binary(max_size=20))
def test_unquote_takes_any_bytes(raw: bytes) -> None:
    """A broken escape is refused, and so is text that isn't UTF-8. urllib would accept both."""
    pieces = raw.split(b"%")[1:]
    broken = any(
        len(piece) < 2 or not all(c in b"0123456789abcdefABCDEF" for c in piece[:2])
        for piece in pieces
    )
    try:
        wanted = None if broken else urllib.parse.unquote_to_bytes(raw).decode("utf-8")
    except UnicodeDecodeError:
        wanted = None
    if wanted is None:
        with pytest.raises(MalformedRequest):
            unquote(raw)
    else:
        assert unquote(raw) == wanted


@pytest.mark.parametrize("raw", [b"%", b"a%", b"%4", b"%4g", b"%g4", b"%%41", b"%u0041", b"% 41"])
def test_broken_escapes(raw: bytes) -> None:
    with pytest.raises(MalformedRequest, match="percent-encoding"):
        unquote(raw)
    with pytest.raises(MalformedRequest, match="percent-encoding"):
        parse_query(b"a=1&" + raw + b"=2")


@pytest.mark.parametrize("raw", [b"\xff", b"%FF", b"%C3", b"%C0%80", b"%ED%A0%80", b"\xc3%28"])
def test_not_utf8(raw: bytes) -> None:
    with pytest.raises(MalformedRequest, match="UTF-8"):
        unquote(raw)


def test_an_error_shows_little_of_what_came() -> None:
    with pytest.raises(MalformedRequest) as caught:
        unquote(b"\x00" * 100_000 + b"%")
    assert len(str(caught.value)) < 1000
    assert "\0" not in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "pairs"),
    [
        (b"", []),
        (b"&&", []),
        (b"a", [("a", "")]),
        (b"a=", [("a", "")]),
        (b"=a", []),
        (b"=&a=b&==", [("a", "b")]),
        (b"a=b=c&&a=d&", [("a", "b=c"), ("a", "d")]),
        (b"a+b=c+d%2B", [("a b", "c d+")]),
        (b"%26=%3D", [("&", "=")]),
        (b"a;b=c", [("a;b", "c")]),
        (b"n%C3%A9=%E2%82%AC", [("né", "€")]),
        (b"&" * 500 + b"a=b" + b"&" * 500 + b"c=d", [("a", "b"), ("c", "d")]),
    ],
)
def test_parse_query(raw: bytes, pairs: list[tuple[str, str]]) -> None:
    assert parse_query(raw) == pairs


@undated
@given(st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_parse_query_undoes_urlencode(pairs: list[tuple[str, str]]) -> None:
    raw = urllib.parse.urlencode(pairs).encode()
    assert parse_query(raw) == pairs
    assert parse_query(raw) == urllib.parse.parse_qsl(raw.decode(), keep_blank_values=True)


def test_too_many_parameters() -> None:
    pairs = [(f"a{i}", "b") for i in range(MAX_PARAMETERS)]
    raw = urllib.parse.urlencode(pairs).encode()
    assert parse_query(raw + b"&") == pairs
    with pytest.raises(MalformedRequest, match=f"more than {MAX_PARAMETERS} parameters"):
        parse_query(raw + b"&c")


# --- values --------------------------------------------------------------------------------------


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


def h_bool(x: bool = True) -> None: ...
def h_int(x: int = 0) -> None: ...
def h_bounded(x: Annotated[int, Range(-5, 2_000_000)] = 0) -> None: ...
def h_float(x: float = 0) -> None: ...
def h_duration(x: Annotated[float, Range(0.1, 600)] = 1) -> None: ...
def h_literal(x: Literal["auto", "gil", "nogil"] = "auto") -> None: ...
def h_numbers(x: Literal[1, 2] = 1) -> None: ...
def h_enum(x: Color = Color.RED) -> None: ...
def h_level(x: Level = Level.LOW) -> None: ...
def h_str(x: str = "") -> None: ...
def h_bare(x="") -> None: ...  # type: ignore[no-untyped-def]
def h_optional(x: int | None = None) -> None: ...
def h_old_optional(x: Optional[Color] = None) -> None: ...  # noqa: UP045
def h_inner(x: Annotated[float, Range(1, 2)] | None = None) -> None: ...
def h_outer(x: Annotated[float | None, Range(1, 2)] = None) -> None: ...


GOOD: list[tuple[Callable[..., None], dict[str, Any]]] = [
    (h_bool, {"true": True, "false": False}),
    (h_int, {"0": 0, "-7": -7, "+7": 7, "007": 7, "9" * 40: int("9" * 40)}),
    (h_bounded, {"-5": -5, "2000000": 2_000_000}),
    (h_float, {"1": 1.0, "-.5": -0.5, "1e3": 1000.0, "+2.5E-1": 0.25, "1.": 1.0}),
    (h_duration, {"0.1": 0.1, "600": 600.0, "6e2": 600.0}),
    (h_literal, {"gil": "gil"}),
    (h_numbers, {"2": 2}),
    (h_enum, {"blue": Color.BLUE}),
    (h_level, {"2": Level.HIGH}),
    (h_str, {"": "", "a b": "a b", "\0é": "\0é", "1" * 10_000: "1" * 10_000}),
    (h_bare, {"true": "true"}),
    (h_optional, {"3": 3}),
    (h_old_optional, {"red": Color.RED}),
    (h_inner, {"1.5": 1.5}),
    (h_outer, {"1.5": 1.5}),
]


@pytest.mark.parametrize(
    ("function", "text", "value"),
    [(function, text, value) for function, good in GOOD for text, value in good.items()],
)
def test_good_values(function: Callable[..., None], text: str, value: Any) -> None:
    got = compiled(function).validate([("x", text)])
    assert got == {"x": value}
    assert type(got["x"]) is type(value)


NOT_NUMBERS = ["", " ", "1 ", " 1", "1_0", "x", "0x1", "nan", "-NaN", "inf", "-Infinity",
               "\u0661", "\uff11", "1,5", "--1", "1\n", "\0", "1" * 41, "9" * 1_000_000,
               "e", "."]  # fmt: skip
BAD: list[tuple[Callable[..., None], str, list[str]]] = [
    (h_bool, "true or false", ["", "True", "TRUE", "1", "0", "yes", " true", "true\n", "tru"]),
    (h_int, "integers", [*NOT_NUMBERS, "1.0", "1e3"]),
    (h_bounded, "integers from -5 to 2000000", ["-6", "2000001", "9" * 40, "nan", ""]),
    (h_float, "numbers", [*NOT_NUMBERS, "1e999", "-1e999"]),
    (h_duration, "numbers from 0.1 to 600", ["0", "0.0999", "600.1", "-1", "1e999", "nan", "inf"]),
    (h_literal, "auto, gil or nogil", ["", "Auto", "gil ", "x"]),
    (h_numbers, "1 or 2", ["3", "1.0", "01"]),
    (h_enum, "red or blue", ["RED", "Color.RED", ""]),
    (h_level, "1 or 2", ["LOW", "0"]),
    (h_optional, "integers", ["", "None", "null"]),
    (h_inner, "numbers from 1 to 2", ["3", ""]),
    (h_outer, "numbers from 1 to 2", ["0.5", "None"]),
]


@pytest.mark.parametrize(
    ("function", "valid", "text"),
    [(function, valid, text) for function, valid, bad in BAD for text in bad],
    ids=lambda value: value[:20] if isinstance(value, str) else value.__name__,
)
def test_bad_values(function: Callable[..., None], valid: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        compiled(function).validate([("x", text)])
    assert str(caught.value) == f"Invalid value for x valid values are {valid}"
    assert (caught.value.status, caught.value.name, caught.value.valid) == (400, "x", valid)


@undated
@given(st.integers(-(10**38), 10**38), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_as_python_writes_them(integer: int, number: float) -> None:
    assert compiled(h_int).validate([("x", str(integer))]) == {"x": integer}
    assert compiled(h_float).validate([("x", repr(number))]) == {"x": number}


@undated
@given(st.text())
def test_any_text_is_a_number_or_refused(text: str) -> None:
    for function in (h_int, h_float, h_duration, h_bool, h_enum):
        try:
            (value,) = compiled(function).validate([("x", text)]).values()
        except InvalidParameter:
            continue
        assert isinstance(value, (int, float, Color))


# --- names ---------------------------------------------------------------------------------------


def example(depth: Annotated[int, Range(1, 9)], name: str, flag: bool = False) -> None: ...


def test_absent_ones_are_left_to_the_function() -> None:
    assert compiled(example).validate([("depth", "2"), ("name", "a")]) == {"depth": 2, "name": "a"}
    assert compiled(example).names == ("depth", "name", "flag")


@pytest.mark.parametrize(
    ("query", "error", "text"),
    [
        ("depth=0&depth=1&x", InvalidParameter, "Invalid value for depth valid values are "
         "integers from 1 to 9"),
        ("x&depth=1&depth=0", InvalidParameter, "Invalid value for depth valid values are "
         "integers from 1 to 9"),
        ("x&flag=true&flag=true", DuplicateParameter, "Duplicate parameter flag"),
        ("name=&name=", DuplicateParameter, "Duplicate parameter name"),
        ("x&y", UnknownParameter, "Unknown parameter x; parameters are: depth, name, flag"),
        ("Depth=1&depth=1", UnknownParameter, "Unknown parameter Depth; parameters are: "
         "depth, name, flag"),
        ("flag=true", MissingParameter, "Missing parameter depth valid values are "
         "integers from 1 to 9"),
        ("depth=1", MissingParameter, "Missing parameter name valid values are any text"),
    ],
)  # fmt: skip
def test_order_and_texts_of_errors(query: str, error: type[ParameterError], text: str) -> None:
    pairs = parse_query(query.encode())
    for in_query, in_form in ((pairs, ()), ((), pairs)):
        with pytest.raises(error) as caught:
            compiled(example).validate(in_query, in_form)
        assert (str(caught.value), caught.value.status) == (text, 400)


def test_torch_words_for_an_unknown_name() -> None:
    text = "Invalid parameters - unexpected param passed in"

    def dump(includecollectives: bool = True, onlyactive: bool = False) -> None: ...

    validator = compiled(dump, unknown_text=text)
    with pytest.raises(UnknownParameter, match=rf"^{text}$"):
        validator.validate([("includeCollectives", "true")])
    with pytest.raises(InvalidParameter, match=r"^Invalid value for onlyactive valid values are"):
        validator.validate([("includeCollectives", "true"), ("onlyactive", "True")])
    assert validator.validate([("includecollectives", "false")]) == {"includecollectives": False}


def test_the_query_wins_over_the_form() -> None:
    validator = compiled(example)
    form = [("depth", "9"), ("name", "form"), ("flag", "true")]
    assert validator.validate([("depth", "3")], form) == {"depth": 3, "name": "form", "flag": True}
    assert validator.validate([], [("depth", "3"), ("name", "b")]) == {"depth": 3, "name": "b"}
    with pytest.raises(InvalidParameter):
        validator.validate([("name", "a")], [("depth", "99")])


def test_both_are_checked_where_the_query_and_the_form_have_the_same_name() -> None:
    validator = compiled(example)
    with pytest.raises(InvalidParameter, match="depth"):
        validator.validate([("depth", "3"), ("name", "a")], [("depth", "99")])
    with pytest.raises(InvalidParameter, match="depth"):
        validator.validate([("depth", "99"), ("name", "a")], [("depth", "3")])


@pytest.mark.parametrize("order", [1, -1])
def test_of_bad_values_the_first_by_name_is_reported(order: int) -> None:
    pairs = [("depth", "0"), ("name", "a"), ("flag", "no"), ("x", "")][::order]
    with pytest.raises(InvalidParameter, match=r"^Invalid value for depth "):
        compiled(example).validate(pairs)


def test_no_parameters_to_take() -> None:
    with pytest.raises(UnknownParameter, match="Unknown parameter x; parameters are: none"):
        compiled(lambda: None).validate([], [("x", "1")])
