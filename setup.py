"""The extension modules and one table of compiler flags; all metadata is in pyproject.toml.

Switches (environment): ``WORKERSERVER_DEBUG=1`` builds with assertions and without optimisation,
``WORKERSERVER_COVERAGE=1`` with line tracing for coverage.py, ``WORKERSERVER_SANITIZE=address``
with AddressSanitizer and UndefinedBehaviorSanitizer, ``=thread`` with ThreadSanitizer, both with
the assertions too. ``=fuzz`` (clang only) is ``=address`` for a fuzzer: the modules count what they
cover, and the fuzzer brings the sanitizer's library.
``WORKERSERVER_MODULES=native._engine,native._bridge`` builds only these.

The assertions: C's assert(), and ``WS_DEBUG``. With ``WS_DEBUG`` the native I/O thread checks each
transition of a connection (native/engine/stage.pyx), and the invariants of its memory whenever a
thread gives the hub's lock back (native/engine/invariants.pyx). A violation ends the process.
"""

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, ExecError, LinkError

PACKAGE = Path("workerserver")

#: Every extension module, and the C sources written by hand that are part of it. A module is one
#: unit of Cython that includes its parts, each a .pyx of one noun beside it.
MODULES: dict[str, tuple[str, ...]] = {
    "_parser": (),
    "process._pulse": (),
    "http._protocol": ("http/*.c", "stacks/blake2b.c"),
    "stacks._stacks": (
        "stacks/*.c",
        "stacks/selfread/*.c",
        "stacks/facts/*.c",
        "stacks/sampler/*.c",
        "stacks/unwind/*.c",
    ),
    "native._engine": ("native/box/*.c",),
    "native._bridge": (),
    "loadgen._loadgen": (),
    "cluster._ask": ("cluster/ask/engine/*.c", "stacks/blake2b.c"),
}
#: epoll; the native I/O thread needs eventfd and accept4 too.
LINUX_ONLY = {"native._engine", "native._bridge", "cluster._ask"}
#: Where headers of ours lie.
HEADERS = (
    "http",
    "process",
    "stacks",
    "stacks/selfread",
    "stacks/facts",
    "stacks/sampler",
    "stacks/unwind",
    "loadgen",
    "native/box",
    "cluster/ask/engine",
)

# No -ffast-math and no -Ofast: loading such a library turns on flush-to-zero for the whole process.
FLAGS = {
    # NDEBUG: a CPython that was built for debugging doesn't bring it along.
    "release": ["-O2", "-g1", "-Wall", "-Wno-unused-function", "-DNDEBUG"],
    "debug": ["-O0", "-g3", "-Wall", "-UNDEBUG"],
    "coverage": ["-O1", "-g1"],
    # Undefined behaviour ends the process: beside ASan, UBSan can't be told where to report.
    "asan": [
        "-O1", "-g2", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
        "-fno-sanitize-recover=undefined",
    ],
    "fuzz": [
        "-O1", "-g2", "-UNDEBUG", "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined,fuzzer-no-link", "-fno-sanitize-recover=undefined",
    ],
    "tsan": ["-O1", "-g2", "-UNDEBUG", "-fno-omit-frame-pointer", "-fsanitize=thread"],
}  # fmt: skip
#: Builds that check the invariants of the native engine (native/engine/invariants.pyx).
ASSERTING = {"debug", "asan", "fuzz", "tsan"}
#: The linker's part of them.
LINK = {"asan": ["-fsanitize=address,undefined"], "tsan": ["-fsanitize=thread"]}
#: On Linux the linker's tables are filled when a module is loaded, and read-only from then on. That
#: is safer, and each worker has a dirty page less.
FULL_RELRO = ["-Wl,-z,now"] if sys.platform == "linux" else []
#: Only a module's init function is anybody else's: C functions of ours take nobody's names.
VISIBILITY = ["-fvisibility=hidden"]


#: What is missing where no module can be compiled.
TO_INSTALL = (
    "workerserver needs a C compiler and Python's headers here: apt-get install gcc python3-dev, "
    "dnf install gcc python3-devel, or apk add gcc musl-dev python3-dev; a wheel needs none of them"
)
#: Commands that describe the package, or pack its sources. They compile nothing.
DESCRIBE = {"dist_info", "egg_info", "sdist"}


def switch(name: str) -> bool:
    return os.environ.get(f"WORKERSERVER_{name}", "0") == "1"


def chosen_modules() -> dict[str, tuple[str, ...]]:
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return {}  # each would switch the GIL on; process/free_threaded stands in for them
    names = os.environ.get("WORKERSERVER_MODULES")
    available = {
        name: patterns
        for name, patterns in MODULES.items()
        if sys.platform == "linux" or name not in LINUX_ONLY
    }
    return {name: available[name] for name in names.split(",")} if names else available


def chosen_kind() -> str:
    sanitizer = os.environ.get("WORKERSERVER_SANITIZE", "")
    if sanitizer:
        return {"address": "asan", "fuzz": "fuzz", "thread": "tsan"}[sanitizer]
    if switch("COVERAGE"):
        return "coverage"
    return "debug" if switch("DEBUG") else "release"


def written_by_hand(patterns: tuple[str, ...]) -> list[str]:
    """The C files; a coverage build lays Cython's translations beside the .pyx."""
    found = [path for pattern in patterns for path in PACKAGE.glob(pattern)]
    return sorted(str(path) for path in found if not path.with_suffix(".pyx").exists())


#: In the end of each function of a coverage build. Functions without the GIL are not traced, but
#: Cython 3.3 lets each of them take the GIL there, to drop a frame that it never had. hub_lock()
#: would wait for the GIL with the lock held, and the loop's thread for the lock with the GIL held:
#: for ever.
TAKES_GIL = "if (!CYTHON_PROFILE_REUSE_FRAME && nogil)"
TAKES_NONE = "if (CYTHON_TRACE_NOGIL && nogil)"


def can_compile() -> bool:
    """Whether a compiler and Python's headers seem to be here. On Windows only the build tells."""
    if sys.platform == "win32":
        return True
    words = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    headers = sysconfig.get_path("include")
    return shutil.which(words[0]) is not None and os.path.exists(f"{headers}/Python.h")


def translated(extensions: list[Extension], **options: object) -> list[Extension]:
    """What cythonize() makes of *extensions*, and nothing in it waits for the GIL unasked."""
    found = cythonize(extensions, **options)
    for extension in found:
        translation = Path(extension.sources[0])
        text = translation.read_text()
        if switch("COVERAGE") and TAKES_GIL in text:
            translation.write_text(text.replace(TAKES_GIL, TAKES_NONE))
    return found


class Compiled(Distribution):
    """A wheel is for one kind of CPython, also without a module, as on a free-threaded build."""

    def has_ext_modules(self) -> bool:
        return True


class Build(build_ext):
    """Says what to install if a compiler fails: the last line is what people read."""

    def run(self) -> None:
        try:
            super().run()
        except (CompileError, ExecError, LinkError) as error:
            raise CompileError(f"{error}\n{TO_INSTALL}") from error


def main() -> None:
    builds = not DESCRIBE & set(sys.argv)
    if builds and chosen_modules() and not can_compile():
        # Before Cython works for a minute. No other line is above this one.
        sys.exit(TO_INSTALL)
    kind = chosen_kind()
    coverage = kind == "coverage"
    macros: list[tuple[str, str | None]] = []
    if kind in ASSERTING:
        macros += [("WS_DEBUG", "1")]
    if kind == "fuzz":
        macros += [("WS_CHANGED_READS", "1")]
    if coverage:
        macros += [("CYTHON_TRACE", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
    extensions = [
        Extension(
            f"workerserver.{module}",
            [str(PACKAGE / f"{module.replace('.', '/')}.pyx"), *written_by_hand(patterns)],
            include_dirs=[str(PACKAGE / folder) for folder in HEADERS],
            depends=[str(path) for path in PACKAGE.rglob("*.h")],
            extra_compile_args=[] if sys.platform == "win32" else FLAGS[kind] + VISIBILITY,
            extra_link_args=FULL_RELRO + LINK.get(kind, []),
            define_macros=macros,
        )
        for module, patterns in chosen_modules().items()
    ]
    setup(
        distclass=Compiled,
        cmdclass={"build_ext": Build},
        ext_modules=extensions
        if not builds
        else translated(
            extensions,
            language_level="3",
            # Per module and flag set: a coverage build must not be taken for a release one.
            build_dir=os.path.join("build", "cython", kind),
            compiler_directives={
                # Functions are CPython's own builtins with their signature as text: Cython's own
                # function type is compiled into each module anew and costs every worker memory.
                "binding": False,
                "embedsignature": True,
                "embedsignature.format": "clinic",
                "auto_pickle": False,
                "autotestdict": False,
                "linetrace": coverage,
                "profile": coverage,
                "show_performance_hints": True,
            },
        ),
    )


main()
