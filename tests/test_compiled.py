"""Rules for every compiled module."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import workerserver

PACKAGE = Path(workerserver.__file__).parent
#: One unit each; the parts that a unit includes have no underscore.
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("_*.pyi")
)


def functions(module: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if isinstance(value, type):
            for own, method in vars(value).items():
                if not own.startswith("__") and callable(method):
                    yield f"{name}.{own}", method
        elif callable(value):
            yield name, value


@pytest.mark.parametrize("name", MODULES)
def test_signatures_can_be_read(name: str) -> None:
    """Where inspect can't read one, stubtest doesn't compare it with the stub and is silent."""
    try:
        module = importlib.import_module(f"workerserver.{name}")
    except ModuleNotFoundError:
        pytest.skip("not built here")
    for function, value in functions(module):
        try:
            inspect.signature(value)
        except (TypeError, ValueError) as error:
            pytest.fail(f"{name}.{function}: {error}")
