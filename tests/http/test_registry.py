"""Handlers by name: the API of the contract, and that it may be used from any thread."""

from __future__ import annotations

import functools
import inspect
import pydoc
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from support.served import Connect, Serve
from support.wire import ask, post

import workerserver
from workerserver.handlers import default_registry
from workerserver.http.registry import DEFAULT_LIMIT, Handler, Registry
from workerserver.types import HandlerNotFound, MissingParameter, Response


def nothing() -> None:
    pass


def something() -> str:
    return "something"


class Stock:
    """A Source that holds *names*."""

    def __init__(self, *names: str) -> None:
        self.handlers = {name: Handler(name, nothing) for name in names}

    def names(self) -> list[str]:
        return list(self.handlers)

    def find(self, name: str) -> Handler | None:
        return self.handlers.get(name)

    def after_fork(self) -> None:
        for handler in self.handlers.values():
            handler.after_fork()


# --- names ---------------------------------------------------------------------------------------


def test_duplicate_name() -> None:
    registry = Registry()
    registry.register("X", nothing)
    with pytest.raises(ValueError, match=r"^Handler X already registered$"):
        registry.register("X", something)
    assert registry.find("X").function is nothing


@pytest.mark.parametrize("thing", [None, 3, "text", object()])
def test_not_callable(thing: Any) -> None:
    with pytest.raises(TypeError, match="handler x must be callable"):
        Registry().register("x", thing)


@pytest.mark.parametrize("name", [b"x", 3, None])
def test_name_that_is_no_text(name: Any) -> None:
    with pytest.raises(TypeError, match="handler name must be str"):
        Registry().register(name, nothing)


@pytest.mark.parametrize("name", ["", "a/b", "/"])
def test_name_that_no_path_can_hold(name: str) -> None:
    with pytest.raises(ValueError, match="can't be part of a path"):
        Registry().register(name, nothing)


def test_unregister() -> None:
    registry = Registry()
    registry.register("X", nothing)
    registry.unregister("X")
    assert registry.names() == []
    with pytest.raises(ValueError, match=r"^Failed to find handler X$"):
        registry.unregister("X")
    registry.register("X", something)
    assert registry.find("X").function is something


def test_unknown_name() -> None:
    with pytest.raises(HandlerNotFound) as caught:
        Registry().find("X")
    assert str(caught.value) == "Handler X not found: Failed to find handler X"
    assert caught.value.status == 404
    assert caught.value.name == "X"


def test_names_are_sorted() -> None:
    registry = Registry(Stock("n", "b"))
    for name in ("z", "a", "m", "Ä", "Z"):
        registry.register(name, nothing)
    assert registry.names() == sorted(["z", "a", "m", "Ä", "Z", "n", "b"])


def test_decorator_gives_the_function_back() -> None:
    registry = Registry()
    assert registry.handler("x", inline=True, limit=3)(nothing) is nothing
    assert (registry.find("x").kind, registry.find("x").limit) == ("inline", 3)


def test_public_names_are_the_default_registrys() -> None:
    workerserver.register_handler("public", nothing)
    try:
        assert "public" in workerserver.get_handler_names()
        assert default_registry.find("public").function is nothing
        with pytest.raises(ValueError, match="Handler public already registered"):
            workerserver.handler("public")(nothing)
    finally:
        workerserver.unregister_handler("public")
    assert "public" not in workerserver.get_handler_names()


def test_replacing() -> None:
    """As a notebook does, where a cell runs again."""
    registry = Registry()
    for function in (nothing, something, something):
        registry.handler("X", replace=True)(function)
        assert registry.find("X").function is function
    with pytest.raises(ValueError, match="Handler X already registered"):
        registry.handler("X")(nothing)
    assert registry.names() == ["X"]
    registry.fallback = Stock("X", "Y")
    registry.register("X", nothing, replace=True)  # it hides the other X already
    with pytest.raises(ValueError, match="Handler Y already registered"):
        registry.register("Y", nothing, replace=True)


def test_a_request_inside_a_replaced_handler_ends_as_it_would_have(
    serve: Serve, connect: Connect
) -> None:
    served = serve("unix")
    inside, go_on = threading.Event(), threading.Event()

    def first() -> str:
        inside.set()
        assert go_on.wait(30)
        return "first"

    served.registry.register("X", first)
    client = connect(served.address)
    client.send(post("X"))
    assert inside.wait(30)
    served.registry.register("X", lambda: "second", replace=True)
    assert ask(served.address, post("X")).text == "second"
    go_on.set()
    assert client.reply().text == "first"


def test_help_says_what_a_person_needs() -> None:
    text = pydoc.render_doc(workerserver.handler, renderer=pydoc.plaintext)  # type: ignore[attr-defined]
    for words in (
        "POST /handler/NAME",
        '@workerserver.handler("loader_state")',
        "workerserver call loader_state depth=3 TARGET",
        "replace",
        "400",
        "503",
        "async def",
    ):
        assert words in text
    for name in inspect.signature(workerserver.handler).parameters:
        assert name == "name" or f"*{name}*:" in text


def test_builtins_cannot_be_replaced_by_accident() -> None:
    with pytest.raises(ValueError, match="Handler ping already registered"):
        workerserver.register_handler("ping", nothing)


# --- how a handler may run -----------------------------------------------------------------------


async def coroutine() -> None:
    pass


class AsyncCall:
    async def __call__(self) -> None:
        pass


class PlainCall:
    def __call__(self) -> None:
        pass

    async def method(self) -> None:
        pass


@pytest.mark.parametrize(
    ("function", "inline", "kind"),
    [
        (nothing, False, "thread"),
        (nothing, True, "inline"),
        (coroutine, False, "async"),
        (coroutine, True, "async"),
        (functools.partial(coroutine), False, "async"),
        (functools.partial(functools.partial(nothing)), False, "thread"),
        (AsyncCall(), False, "async"),
        (PlainCall(), False, "thread"),
        (PlainCall().method, False, "async"),
        (lambda: None, False, "thread"),
    ],
)
def test_kind(function: Callable[..., Any], inline: bool, kind: str) -> None:
    handler = Handler("x", function, inline=inline)
    assert handler.kind == kind
    assert repr(handler) == f"<Handler x {kind}>"


def test_limit() -> None:
    handler = Handler("x", nothing, limit=2)
    assert [handler.acquire() for _ in range(3)] == [True, True, False]
    handler.release()
    assert handler.acquire()
    assert handler.running == 2
    assert Handler("x", nothing).limit == DEFAULT_LIMIT
    with pytest.raises(ValueError, match="limit of handler x must be at least 1, not 0"):
        Handler("x", nothing, limit=0)


def test_limit_counts_right_under_threads() -> None:
    handler = Handler("x", nothing, limit=3)
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(2000):
            if handler.acquire():
                most = max(most, handler.running)
                handler.release()

    in_threads([work] * 6)
    assert handler.running == 0
    assert 1 <= most <= 3


def test_parameters_come_from_the_signature() -> None:
    def dump(depth: int) -> Response:
        return Response(str(depth))

    handler = Handler("dump", dump)
    assert handler.validator.validate([("depth", "7")]) == {"depth": 7}
    with pytest.raises(MissingParameter, match="depth"):
        handler.validator.validate([])


def test_signature_that_cannot_be_turned_into_parameters() -> None:
    def broken(where: complex) -> None:
        pass

    registry = Registry()
    with pytest.raises(TypeError, match="where"):
        registry.register("broken", broken)
    assert registry.names() == []


def test_after_fork_no_request_is_inside_and_no_lock_held() -> None:
    registry = Registry()
    registry.register("x", nothing)
    handler = registry.find("x")
    assert handler.acquire()
    with handler.lock, registry._lock:
        registry.after_fork()
        assert handler.running == 0
        assert handler.acquire()
        registry.register("y", nothing)


# --- what it needs, and what stands behind -------------------------------------------------------


def test_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler exists as soon as the process has imported the module."""
    registry = Registry()
    registry.register("x", nothing, requires="module_of_nobody")
    assert registry.names() == []
    assert registry.own("x") is None
    with pytest.raises(HandlerNotFound):
        registry.find("x")
    monkeypatch.setitem(sys.modules, "module_of_nobody", types.ModuleType("module_of_nobody"))
    assert registry.names() == ["x"]
    assert registry.find("x") is registry.own("x")
    monkeypatch.delitem(sys.modules, "module_of_nobody")
    assert registry.names() == []
    with pytest.raises(ValueError, match="already registered"):
        registry.register("x", nothing)


def test_fallback() -> None:
    stock = Stock("theirs")
    registry = Registry(stock)
    registry.register("ours", nothing)
    assert registry.names() == ["ours", "theirs"]
    assert registry.find("theirs") is stock.handlers["theirs"]
    assert registry.own("theirs") is None
    with pytest.raises(HandlerNotFound):
        registry.find("nobody's")
    with pytest.raises(ValueError, match="Handler theirs already registered"):
        registry.register("theirs", nothing)
    with pytest.raises(ValueError, match="Failed to find handler theirs"):
        registry.unregister("theirs")


def test_shadow() -> None:
    stock = Stock("both")
    registry = Registry(stock)
    registry.register("both", something, shadow=True)
    assert registry.find("both").function is something
    assert registry.names() == ["both"]
    with pytest.raises(ValueError, match="already registered"):
        registry.register("both", something, shadow=True)
    registry.unregister("both")
    assert registry.find("both") is stock.handlers["both"]


def test_shadow_that_is_not_available_lets_the_fallback_through() -> None:
    registry = Registry(Stock("both"))
    registry.register("both", something, shadow=True, requires="module_of_nobody")
    assert registry.find("both").function is nothing
    assert registry.names() == ["both"]


# --- threads -------------------------------------------------------------------------------------


def in_threads(jobs: list[Callable[[], None]]) -> None:
    errors: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []


def test_each_version_is_seen_once() -> None:
    registry = Registry()
    versions = [registry.version]
    registry.register("x", nothing)
    versions.append(registry.version)
    registry.unregister("x")
    versions.append(registry.version)
    with pytest.raises(ValueError, match="Failed"):
        registry.unregister("x")
    assert sorted(set(versions)) == versions
    assert registry.version == versions[-1]


def test_concurrent_registration_loses_nothing() -> None:
    registry = Registry()
    won: list[int] = []

    def work(number: int) -> None:
        for i in range(100):
            registry.register(f"{number}/{i}".replace("/", "-"), nothing)
            if i % 2:
                registry.unregister(f"{number}-{i}")
            try:
                registry.register(f"shared-{i}", nothing)
                won.append(i)
            except ValueError:
                pass
            assert f"{number}-{i}" in registry.names() or i % 2

    in_threads([functools.partial(work, number) for number in range(6)])
    assert sorted(won) == list(range(100))
    assert registry.names() == sorted(
        [f"{number}-{i}" for number in range(6) for i in range(0, 100, 2)]
        + [f"shared-{i}" for i in range(100)]
    )
    assert registry.version == 6 * 150 + 100
