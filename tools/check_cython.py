"""Fails if Cython prints a remark on our modules, or if native code could need the GIL.

A performance hint in nogil code usually means that a call checks for an exception, and takes the
GIL for the check. So this script also searches the generated C: no function that runs on the I/O
thread may use a name of CPython's.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from source_tree import ROOT, copy_sources, parts, units

PACKAGE = ROOT / "workerserver"
#: A module that is native throughout: all of its functions are checked. In all other modules, only
#: the functions that are declared nogil are checked.
ENGINE = "native._engine"

DECLARED = re.compile(r"^c(?:p?)def\b([^#:=]*?)\b(\w+)\s*\(([^#]*?)\)([^()#\n]*)$", re.M | re.S)
BEGIN = re.compile(
    r"^(?:static|extern|CYTHON_\w+|__PYX_EXTERN_C)\b[^;{}()=#]*?\b(__pyx_f_\w+)\(", re.M
)
#: Text to remove before the search: comments quote the source, and strings may say anything.
NOISE = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.S)
#: CPython's own names, and Cython's helpers that use CPython. Py_ssize_t is only a type.
PYTHON = re.compile(
    r"\b(?!Py_ssize_t\b)(_?Py[A-Z_]\w*|__Pyx_\w*(?:Py|Err|GIL|RefNanny|Raise|Trace|Unraisable|REF)\w*"
    r"|__pyx_(?:n_s|kp_|builtin_|empty_|int_|m|d|b|L1_error)\w*)\b"
)

#: Code that the check has to reject: the callee may raise, so the caller checks for an exception.
WRONG = """
cdef int may_raise(int value) nogil:
    return value

cdef int caller(int value) noexcept nogil:
    return may_raise(value)
"""


def functions(text: str) -> dict[str, str]:
    """The bodies of Cython's C functions in a translation, by C name, without NOISE."""
    text = NOISE.sub(" ", text)
    found = {}
    for match in BEGIN.finditer(text):
        at = _behind(text, match.end() - 1, "()")
        while text[at].isspace():
            at += 1
        if text[at] == "{":
            found[match[1]] = text[at : _behind(text, at, "{}")]
    return found


def _behind(text: str, at: int, pair: str) -> int:
    """The index after the bracket that closes the bracket at *at*."""
    depth = 0
    while True:
        depth += (text[at] == pair[0]) - (text[at] == pair[1])
        at += 1
        if depth == 0:
            return at


def nogil(source: str) -> set[str]:
    """The names of the functions that a .pyx or .pxd declares nogil, outside of classes."""
    # Only lines without indent: extern blocks and methods are indented.
    return {m[2] for m in DECLARED.finditer(source) if re.search(r"\bnogil\b", m[4])}


def wants_python(module: str, translation: str, declared: set[str]) -> list[str]:
    """The faults of a native module's C: functions that use CPython, or that are missing."""
    package = f"__pyx_f_{len(PACKAGE.name)}{PACKAGE.name}_"
    prefix = package + "".join(f"{len(part)}{part}_" for part in module.split("."))
    # The other modules' functions in this C file are inline functions of a .pxd.
    bodies = {
        name.removeprefix(prefix): body
        for name, body in functions(translation).items()
        if name.startswith(package if module == ENGINE else prefix)
    }
    wanted = declared | (bodies.keys() if module == ENGINE else set())
    if not wanted:
        return [f"{module}: no native function was found"]
    faults = []
    for name in sorted(wanted):
        if name not in bodies:
            faults.append(f"{module}.{name}: not found in the generated C")
            continue
        used = sorted(set(PYTHON.findall(bodies[name])))
        if used:
            faults.append(f"{module}.{name} uses {', '.join(used)}")
    return faults


def proves_itself(folder: Path) -> bool:
    """Whether the check rejects WRONG."""
    source = folder / "_probe.pyx"
    source.write_text(WRONG)
    name = f"{PACKAGE.name}._probe"
    subprocess.run(
        [sys.executable, "-m", "cython", "-3", "--module-name", name, str(source)],
        check=True,
        capture_output=True,
    )
    faults = wants_python("_probe", source.with_suffix(".c").read_text(), nogil(WRONG))
    return len(faults) == 1 and faults[0].startswith("_probe.caller uses ")


def main() -> int:
    faults = []
    with tempfile.TemporaryDirectory(prefix="workerserver-cython-") as folder:
        tree = Path(folder)
        copy_sources(tree)
        # setup.py translates for any command. This command compiles nothing afterwards.
        done = subprocess.run(
            [sys.executable, "setup.py", "--name"],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        names = units(PACKAGE)
        output = tree / "build" / "cython" / "release" / PACKAGE.name
        found = {name: output / f"{name.replace('.', '/')}.c" for name in names}
        translated = {name: path for name, path in found.items() if path.exists()}
        checked = 0
        for module in names:
            declared: set[str] = set()
            for suffix in (".pyx", ".pxd"):
                for part in parts(PACKAGE / (module.replace(".", "/") + suffix)):
                    declared |= nogil(part.read_text())
            checked += len(declared)
            if module in translated and (declared or module == ENGINE):
                faults += wants_python(module, translated[module].read_text(), declared)
        if not proves_itself(tree):
            faults.append("this check fails to notice a function that needs the GIL")
    modules = len(names)
    remarks = [
        line
        for line in done.stdout.splitlines()
        if line.startswith(("performance hint:", "warning:"))
    ]
    if done.returncode or remarks or faults or len(translated) < modules:
        print(done.stdout, end="")
        print(*faults, sep="\n")
        print(
            f"check_cython: {len(remarks)} remarks, {len(translated)} of {modules} modules "
            f"translated, {len(faults)} faults"
        )
        return 1
    print(f"check_cython: {len(translated)} modules, no remarks; {checked} native functions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
