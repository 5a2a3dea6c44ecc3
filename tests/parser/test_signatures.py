"""Which signatures a query can call, and how each kind of callable is read."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal, Union

import pytest

from workerserver._parser import QueryValidator
from workerserver.types import MissingParameter, Range, Request, UnknownParameter

compiled = QueryValidator.from_callable


def plain(depth: int = 1, *, name: str = "") -> str:
    return f"{depth} {name}"


async def asynchronous(depth: int = 1, name: str = "") -> str:
    return plain(depth, name=name)


class Methods:
    def bound(self, depth: int = 1, name: str = "") -> str:
        return plain(depth, name=name)

    @classmethod
    def of_class(cls, depth: int = 1, name: str = "") -> str:
        return plain(depth, name=name)

    @staticmethod
    def static(depth: int = 1, name: str = "") -> str:
        return plain(depth, name=name)

    def __call__(self, depth: int = 1, name: str = "") -> str:
        return plain(depth, name=name)


class AsyncCall:
    async def __call__(self, depth: int = 1, name: str = "") -> str:
        return plain(depth, name=name)


def three(prefix: object, depth: int = 1, name: str = "") -> str:
    return plain(depth, name=name)


def star(*rest: object, depth: int = 1, name: str = "") -> str:
    return plain(depth, name=name)


CALLABLES: list[Callable[..., Any]] = [
    plain, asynchronous, Methods().bound, Methods.of_class, Methods.static, Methods(), AsyncCall(),
    partial(three, object()), partial(plain, name="bound"), partial(partial(three, 1), depth=2),
    partial(Methods().bound, depth=3), partial(Methods()), star,
]  # fmt: skip


def name(function: Callable[..., Any]) -> str:
    """The same in every run: without the addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(function))


@pytest.mark.parametrize("function", CALLABLES, ids=name)
def test_kinds_of_callables(function: Callable[..., Any]) -> None:
    validator = compiled(function)
    assert validator.names == ("depth", "name")
    assert (validator.request_name, validator.asks_nothing) == (None, True)
    arguments = validator.validate([("name", "7"), ("depth", "7")])
    assert arguments == {"depth": 7, "name": "7"}
    result = function(**arguments)
    if isinstance(result, str):
        assert result == "7 7"
    else:
        result.close()
    with pytest.raises(UnknownParameter):
        validator.validate([("prefix", "1")])


def test_request_parameter() -> None:
    def handler(req: Request, depth: int) -> None: ...

    validator = compiled(handler)
    assert (validator.request_name, validator.names) == ("req", ("depth",))
    assert not validator.asks_nothing
    assert validator.validate([("depth", "1")]) == {"depth": 1}
    with pytest.raises(UnknownParameter):
        validator.validate([("depth", "1"), ("req", "x")])


def test_a_lone_request_takes_anything() -> None:
    def handler(request: Request) -> None: ...

    validator = compiled(handler)
    assert validator.validate([("a", "1"), ("request", "x"), ("a", "2")]) == {}
    assert not validator.asks_nothing


def test_extra_parameters() -> None:
    def handler(request: Request, depth: int = 1, **rest: str) -> None: ...

    validator = compiled(handler)
    query = [("depth", "2"), ("a", "1"), ("a", "2"), ("request", "x")]
    assert validator.validate(query, [("a", "3"), ("b", "4")]) == {"depth": 2, "a": "1", "b": "4"}


def test_what_is_missing_beside_extra_parameters() -> None:
    """However many parameters without a name of their own are given, those that have one count."""

    def handler(q: str, r: int, s: int = 1, **more: str) -> None: ...

    validator = compiled(handler)
    for query in ([("x", "1")], [("x", "1"), ("y", "2"), ("z", "3")], [("r", "1"), ("x", "1")]):
        with pytest.raises(MissingParameter, match=r"^Missing parameter q "):
            validator.validate(query)
        with pytest.raises(MissingParameter, match=r"^Missing parameter r "):
            validator.validate([("q", "")], [("x", "1"), ("y", "2")])
    given = [("q", ""), ("r", "1"), ("x", "1")]
    assert validator.validate(given) == {"q": "", "r": 1, "x": "1"}


def test_what_asks_nothing() -> None:
    assert compiled(lambda: None).asks_nothing
    assert compiled(lambda x="": None).asks_nothing
    assert not compiled(lambda x: None).asks_nothing
    with pytest.raises(MissingParameter, match=r"^Missing parameter x valid values are any text$"):
        compiled(lambda x: None).validate([])


class Empty(Enum):
    pass


def positional(x: int, /) -> None: ...
def a_list(x: list[int]) -> None: ...
def a_dict(x: dict[str, str]) -> None: ...
def some_bytes(x: bytes) -> None: ...
def anything(x: Any) -> None: ...
def an_object(x: object) -> None: ...
def a_union(x: int | str) -> None: ...
def a_typing_union(x: Union[int, str, None] = None) -> None: ...  # noqa: UP007
def optional_without_default(x: int | None) -> None: ...
def optional_with_another(x: int | None = 5) -> None: ...
def unresolved(x: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def annotated_badly(x: Annotated[list[int], Range(0, 1)]) -> None: ...
def no_choice(x: Empty) -> None: ...


IMPOSSIBLE: list[Callable[..., Any]] = [
    positional, a_list, a_dict, some_bytes, anything, an_object, a_union, a_typing_union,
    optional_without_default, optional_with_another, unresolved, annotated_badly, no_choice,
]  # fmt: skip


@pytest.mark.parametrize("function", IMPOSSIBLE)
def test_impossible_signatures(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match=r"parameter x|can't be resolved"):
        compiled(function)


def has_no_signature(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function)
    except ValueError:
        return True
    return False


# Which builtins have none differs between versions of Python.
BUILTINS: list[Callable[..., Any]] = [type, dict, min, iter, range, int]


@pytest.mark.parametrize("function", [one for one in BUILTINS if has_no_signature(one)])
def test_no_signature_at_all(function: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="no signature"):
        compiled(function)


def test_specs_by_hand() -> None:
    validator = QueryValidator(
        [("x", Literal["a"], "a"), ("y", int, 1)], request_name="r", extra=True, extra_name="rest"
    )
    assert validator.names == ("x", "y")
    assert validator.validate([("x", "a"), ("z", "1"), ("r", "2")]) == {"x": "a", "z": "1"}


class Extras:
    def bound(self, **more: str) -> dict[str, str]:
        return more


def fixed(prefix: object, **more: str) -> dict[str, str]:
    return more


@pytest.mark.parametrize(
    ("function", "name"), [(Extras().bound, "self"), (partial(fixed, 1), "prefix")]
)
def test_a_name_that_is_bound_already_is_not_given_again(
    function: Callable[..., dict[str, str]], name: str
) -> None:
    values = compiled(function).validate([(name, "x"), ("other", "y")])
    assert function(**values) == {"other": "y"}
