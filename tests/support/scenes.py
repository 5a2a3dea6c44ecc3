"""Functions for ``parking.parked``, each with a different kind of stack."""

from __future__ import annotations

import asyncio
import ctypes
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from support.parking import Stay, plain, recursive, renamed, without_lines


def deep(stay: Stay) -> None:
    recursive(stay, 150)


def in_generator(stay: Stay) -> None:
    def inner() -> Iterator[int]:
        yield 1
        stay()

    def outer() -> Iterator[int]:
        yield from inner()

    list(outer())


def in_coroutine(stay: Stay) -> None:
    async def inner() -> None:
        await asyncio.sleep(0)
        stay()

    async def outer() -> None:
        await inner()

    asyncio.run(outer())


def in_comprehension(stay: Stay) -> None:
    [stay() for _ in range(1)]  # type: ignore[func-returns-value]


in_lambda: Callable[[Stay], None] = lambda stay: stay()  # noqa: E731


def in_sort_key(stay: Stay) -> None:
    sorted([1], key=lambda _: stay() or 0)  # type: ignore[func-returns-value]


def in_exec(stay: Stay) -> None:
    exec("stay()\n", {"stay": stay})


def compiled_names(stay: Stay) -> None:
    space: dict[str, Any] = {}
    exec(compile("def fonction_é(stay):\n stay()\n", "/tmp/ünï/文件\U0001f600.py", "exec"), space)
    space["fonction_é"](stay)


escaped = renamed(plain, "new\nline\t\x7f\\\x00", 'quo"te\r\nThread 0x0 \x1b[31m')

surrogate = renamed(plain, "\ud800 \xff\u0100\uffff\U00010000", "\udcff/file.py")

long_names = renamed(plain, "n" * 501, "é" * 501)

longest_names = renamed(plain, "n" * 500, "é" * 500)

lineless = without_lines(plain)

SCENES: list[Callable[[Stay], None]] = [
    plain,
    recursive,
    in_generator,
    in_coroutine,
    in_comprehension,
    in_lambda,
    in_sort_key,
    in_exec,
    compiled_names,
    escaped,
    surrogate,
    long_names,
    longest_names,
    lineless,
]


def in_async_generator(stay: Stay) -> None:
    async def inner() -> AsyncIterator[int]:
        await asyncio.sleep(0)
        yield 1
        stay()

    async def middle() -> int:
        return sum([n async for n in inner()])

    async def outer() -> None:
        async with asyncio.Lock():
            await asyncio.gather(middle())

    asyncio.run(outer())


def in_class_body(stay: Stay) -> None:
    class Inner:
        def __init_subclass__(cls) -> None:
            stay()

    class Outer:
        class Below(Inner):
            pass


def in_with_and_except(stay: Stay) -> None:
    @contextmanager
    def around() -> Iterator[None]:
        try:
            yield
        finally:
            stay()

    try:
        with around():
            raise ValueError
    except ValueError:
        pass


def through_c_code(stay: Stay) -> None:
    callback = ctypes.PYFUNCTYPE(None)(stay)
    functools.reduce(lambda total, _: callback() or 0, [1, 2], 0)


def over_many_lines(stay: Stay) -> None:
    (
        [1, 2, 3][0],
        [
            (
                stay
            )
        ][0](
        ),
        4,
    )  # fmt: skip


def far_down(stay: Stay) -> None:
    """A call after the first 256 names and 65,536 bytes of code, on a line far from others."""
    lines = ["def f(stay):", *(f"    a{n} = {n}.5, a{max(n - 1, 0)}" for n in range(3000))]
    lines[1] = "    a0 = 0"
    lines += ["", "#" * 300] * 200 + ["    if (a1,", *[""] * 400, "        stay()): pass"]
    space: dict[str, Any] = {}
    exec(compile("\n".join(lines), "<far down>", "exec"), space)
    space["f"](stay)


def odd_table(stay: Stay) -> None:
    """A line that goes up and down within one statement, by an edited syntax tree."""
    import ast

    tree = ast.parse("def f(stay):\n a = [1,\n 2, stay(),\n 3]\n")
    for n, node in enumerate(ast.walk(tree)):
        if isinstance(node, (ast.expr, ast.stmt)):
            node.lineno = node.end_lineno = 70_000 - 9_000 * (n % 7)
            node.col_offset, node.end_col_offset = 0, 200
    space: dict[str, Any] = {}
    exec(compile(tree, "<odd table>", "exec"), space)
    space["f"](stay)


MORE_SCENES: list[Callable[[Stay], None]] = [
    in_async_generator,
    in_class_body,
    in_with_and_except,
    through_c_code,
    over_many_lines,
    far_down,
    odd_table,
]
