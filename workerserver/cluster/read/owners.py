"""Who owns a file: the user, an installed package, or a library that everybody knows.

Nothing is known of the other machine's folders, so files are told apart by how their paths look.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, NamedTuple

from workerserver.cluster.model import Frame
from workerserver.process.own import PACKAGE, own_path

__all__ = ["CodeFile", "Owner", "code_file", "dotted", "is_library", "is_standard"]

Owner = Literal["user", "package", "library"]
"""package: somebody's installed package, or code made from a string. library: Python's own, torch
and workerserver."""


class CodeFile(NamedTuple):
    """A file of source code, and its owner.

    *path* has no folders of one machine: ``torch/nn/modules/linear.py``, ``threading.py``. A user's
    path stays as it was. *file* is the same on every machine, too. It has the same owner and path.
    """

    owner: Owner
    path: str
    file: str


_PACKAGES = re.compile(r"(?:.*/)?(?:site|dist)-packages/(.+)\Z", re.DOTALL)
_STANDARD = re.compile(
    r"(?:.*/)?(?:lib|lib64)/(?:python3|python3\.\d{1,2}t?|python3\d{1,2}\.zip)/(.+)\Z", re.DOTALL
)
#: torch where it is worked on: not below site-packages.
_TORCH = re.compile(
    r".*/(torch/(?:_dynamo|_inductor|_functorch|_prims|_decomp|_higher_order_ops|autograd|cuda|"
    r"distributed|fx|jit|nn/modules|nn/parallel|nn/functional\.py|nn/utils|optim|profiler|sparse|"
    r"multiprocessing|utils/_\w+\.py|utils/data|utils/checkpoint\.py|utils/hooks\.py|"
    r"utils/tensorboard|serialization\.py|functional\.py|overrides\.py|_ops\.py|_tensor\.py|"
    r"_compile\.py|accelerator|amp|library\.py)(?:/.*)?)\Z",
    re.DOTALL,
)
#: Written by torch.compile: ``/tmp/torchinductor_root/ab/cab….py``.
_COMPILED = re.compile(r".*/(torchinductor_[^/]+/.+)\Z", re.DOTALL)
#: No files, and yet the user's: what was typed.
_TYPED = ("<stdin>", "<ipython-input", "<python-input")


@lru_cache(maxsize=8192)
def code_file(file: str) -> CodeFile:
    if file.startswith(_TYPED):
        return CodeFile("user", file, file)
    if file.startswith("<"):
        owner: Owner = "library" if file.startswith("<frozen ") else "package"
        return CodeFile(owner, _frozen(file), file)
    if file == "???":
        return CodeFile("library", file, file)
    if match := _PACKAGES.match(file):
        return _installed(match[1])
    if match := _STANDARD.match(file):
        return CodeFile("library", match[1], f"lib/python3/{match[1]}")
    if match := _TORCH.match(file):
        return _installed(match[1])
    if (own := own_path(file)) is not None:
        return _installed(f"{PACKAGE}/{own}")
    if match := _COMPILED.match(file):
        return _installed("torchinductor/" + match[1].rpartition("/")[2])
    return CodeFile("user", file, file)


def _installed(path: str) -> CodeFile:
    ours = path.startswith(("torch/", "torchinductor/", f"{PACKAGE}/"))
    return CodeFile("library" if ours else "package", path, f"site-packages/{path}")


def _frozen(file: str) -> str:
    """``<frozen importlib._bootstrap>`` and ``<frozen runpy>`` as the files that they come from."""
    if file.startswith("<frozen ") and file.endswith(">"):
        return file[8:-1].replace(".", "/") + ".py"
    return file


def is_library(frame: Frame) -> bool:
    """Whether *frame* is not the user's own code: folded when a stack is shown."""
    return code_file(frame.file).owner != "user"


def is_standard(file: str) -> bool:
    """Whether *file* is Python's own library, or no file at all."""
    return file.startswith("<") or bool(_STANDARD.match(file) and not _PACKAGES.match(file))


def dotted(path: str, function: str) -> str:
    """``torch/optim/adam.py`` and ``step`` as ``torch.optim.adam.step``. A private module is left
    out, the packages that it is in are not."""
    if path.startswith("<") or path == "???":
        return function
    parts = path.removesuffix(".py").split("/")
    return ".".join([*(part for part in parts if not part.startswith("_")), function])
