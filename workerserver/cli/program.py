"""A script or module as the ``__main__`` of this process, as if Python itself had started it.

The program has to see what it sees under Python: ``sys.argv``, ``sys.path[0]``, and a ``__main__``
module of its own with Python's names in it. Pickling of the program's classes needs that. So do
the children that multiprocessing spawns: they import the program by ``__main__.__file__`` or
``__spec__``. CPython's own code is in Lib/runpy.py and Modules/main.c (pymain_run_python).
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import pkgutil
import sys
from importlib.machinery import ModuleSpec, SourceFileLoader, SourcelessFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any, Protocol

__all__ = ["LoadError", "Module", "Program", "Script", "execute", "hide_our_frames"]

#: Since CPython 3.15 modules have no ``__cached__``.
CACHED = sys.version_info < (3, 15)
#: The beginning of the names of the command line's modules.
_OURS = f"{__package__}."


class LoadError(Exception):
    """There is no such program; the text says what is missing."""


class Program(Protocol):
    """A program for :func:`execute`. ``path0`` becomes ``sys.path[0]``, ``argv`` becomes
    ``sys.argv``."""

    path0: str
    argv: list[str]

    def load(self) -> None:
        """Find the program without running any of its code. Raises LoadError or SyntaxError."""

    def bind(self, main: ModuleType) -> CodeType:
        """Give *main* its names and return the code to run in it. ``sys`` is already set up."""


class Script:
    """A source file, a .pyc, or a folder or zip archive with a ``__main__``."""

    def __init__(self, path: str, arguments: list[str]) -> None:
        self.path = path
        self.argv = [path, *arguments]
        # Python resolves links for sys.path[0], but not for __file__ (Python/pathconfig.c).
        self.path0 = os.path.dirname(os.path.realpath(path))
        self._code: CodeType | None = None
        self._names: dict[str, Any] = {}

    def load(self) -> None:
        path = os.path.abspath(self.path)
        archive = pkgutil.get_importer(path) if os.path.exists(path) else None
        if archive is not None:
            self.path0 = path
            spec = archive.find_spec("__main__")
            if spec is None:
                raise LoadError(f"can't find '__main__' in {self.path}")
            self._code, self._names = _code_of(spec), _names_of(spec)
            return
        loader: SourceFileLoader | SourcelessFileLoader
        if path.endswith(".pyc"):
            loader = SourcelessFileLoader("__main__", path)
        else:
            loader = SourceFileLoader("__main__", path)
        try:
            data = loader.get_data(path)
        except OSError as error:
            raise LoadError(f"can't open {self.path}: {error.strerror}") from None
        if isinstance(loader, SourceFileLoader):
            # Not loader.get_code(), which would write a .pyc. Python writes none for a script.
            self._code = compile(data, path, "exec", dont_inherit=True)
        else:
            self._code = loader.get_code("__main__")
        self._names = {
            "__file__": path,
            **({"__cached__": None} if CACHED else {}),
            "__loader__": loader,
            "__package__": None,
            "__spec__": None,
        }

    def bind(self, main: ModuleType) -> CodeType:
        vars(main).update(self._names)
        assert self._code is not None, "load() comes first"
        return self._code


class Module:
    """What ``python -m name`` runs: a module, or the ``__main__`` of a package."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name = name
        self.argv = ["-m", *arguments]  # as in Python until the module is found
        self.path0 = os.getcwd()

    def load(self) -> None:
        """Look only for the first part of the name. To find the rest, Python runs packages."""
        if not all(self.name.split(".")):
            raise LoadError(f"not a module name: {self.name!r}")
        top = self.name.partition(".")[0]
        finders = [*([] if _safe_path() else [self.path0]), *sys.path[0 if _safe_path() else 1 :]]
        before, sys.path[:] = list(sys.path), finders
        try:
            _find(top, self.name)
        finally:
            sys.path[:] = before

    def bind(self, main: ModuleType) -> CodeType:
        spec = _find(self.name, self.name)
        if spec.submodule_search_locations is not None:
            spec = _find(f"{self.name}.__main__", f"{self.name}.__main__ (it is a package)")
        code = _code_of(spec)
        vars(main).update(_names_of(spec))
        sys.argv[0] = spec.origin or self.name
        return code


def execute(program: Program) -> None:
    """Run a loaded *program* as ``__main__``. Exceptions pass, and are shown without our frames.

    Changes ``sys`` for good, so the process can do nothing else afterwards.
    """
    ours = sys.modules["__main__"]
    main = ModuleType("__main__")
    names = vars(main)
    names["__builtins__"] = builtins
    if "__annotations__" in vars(ours):  # up to CPython 3.13, __main__ has an empty one
        names["__annotations__"] = {}
    sys.modules["__main__"] = main
    sys.argv[:] = program.argv
    if not _safe_path():
        sys.path[0] = program.path0
    try:
        exec(program.bind(main), names)
    except (SystemExit, LoadError):
        raise
    except BaseException as error:
        hide_our_frames(error)
        raise


def hide_our_frames(error: BaseException) -> None:
    """Make Python's report of *error*, which is being raised, begin at the program's frames.

    The error gets a further frame at each level that it still passes. So our frames can be dropped
    only when the error is shown, in a wrapper around the present ``sys.excepthook``.
    """
    traceback = error.__traceback__
    while traceback is not None and _is_ours(traceback):
        traceback = traceback.tb_next
    hook = sys.excepthook

    def show(kind: type[BaseException], value: BaseException, full: TracebackType | None) -> None:
        sys.excepthook = hook
        if value is error:
            full = traceback
            value.__traceback__ = traceback
        hook(kind, value, full)

    sys.excepthook = show


def _is_ours(traceback: TracebackType) -> bool:
    name = str(traceback.tb_frame.f_globals.get("__name__"))
    return name.startswith(_OURS) or name.partition(".")[0] in ("importlib", "_frozen_importlib")


def _safe_path() -> bool:
    """Whether -P or -I told Python to put neither the script's folder nor the cwd in sys.path."""
    return bool(getattr(sys.flags, "safe_path", False) or sys.flags.isolated)


def _find(name: str, shown: str) -> ModuleSpec:
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # Either a part of the name is missing, or a package on the way imports a missing module.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = None
    except ValueError:  # the module is loaded and has no __spec__
        spec = None
    if spec is None:
        raise LoadError(f"no module named {shown}")
    return spec


def _code_of(spec: ModuleSpec) -> CodeType:
    get_code = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if not isinstance(code, CodeType):
        raise LoadError(f"{spec.name} can't be run: it holds no Python code")
    return code


def _names_of(spec: ModuleSpec) -> dict[str, Any]:
    return {
        "__file__": spec.origin,
        **({"__cached__": spec.cached} if CACHED else {}),
        "__loader__": spec.loader,
        "__package__": spec.parent,
        "__spec__": spec,
    }
