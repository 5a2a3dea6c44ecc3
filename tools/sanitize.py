"""Runs the compiled code under sanitizers: ASan with UBSan, then TSan.

Each sanitizer has a build of its own in build/sanitize-KIND, so the release modules of the working
tree stay as they are. These builds also check the invariants of the native engine, as debug builds
do. CPython and all other libraries are not instrumented: the sanitizer's library is preloaded, and
CPython takes its memory from malloc, which the library watches. The script first runs a stress of
the native transport (tests/programs/native/sanitize_stress.py), then the tests of all compiled
code. It fails if a sanitizer reports anything in any process, or if a test fails.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from source_tree import ROOT, build, copy_sources

STRESS = "tests/programs/native/sanitize_stress.py"
#: Lines of each report that are shown.
SHOWN = 80
#: Folders with tests of compiled code of ours.
TESTS = ("cluster/ask", "http", "loadgen", "native", "parser", "process", "server", "stacks")

#: Parts of the names of tests that are left out. These are: transports of other projects, which
#: take twice as long; programs that fail with the preloaded library, or that have a sanitizer of
#: their own; tests that measure time or memory; tests that close descriptors under our feet, which
#: TSan reports as the race that they are.
LEFT_OUT = (
    "asyncio", "uvloop", "tls", "curl", "by_hand", "no_reader_sees_half", "the_last_step_counts",
    "snapshots_leak_nothing", "a_shortage_at_the_start", "test_canary", "beside_gdb",
)  # fmt: skip

#: Faults by name that each sanitizer has to find. Otherwise its silence would mean nothing.
FAULTS = {
    "address": """
        #include <limits.h>
        #include <stdlib.h>
        void undefined(void) { volatile int most = INT_MAX; most = most + 1; }
        void freed(void) { volatile char *data = malloc(8); free((void *)data); data[0] = 1; }
    """,
    "thread": """
        #include <pthread.h>
        static int number;
        static void *add(void *unused) { number++; return unused; }
        void raced(void) {
            pthread_t other;
            pthread_create(&other, 0, add, 0);
            number++;
            pthread_join(other, 0);
        }
    """,
}
FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-fsanitize=thread",),
}
#: A symbol that every instrumented module refers to.
MARKS = {"address": b"__asan_init", "thread": b"__tsan_func_entry"}


@dataclass(frozen=True)
class Kind:
    """One sanitizer build: gcc's name for it, the library to preload, and its options."""

    name: str
    library: str
    options: dict[str, str]


def kinds(logs: Path) -> list[Kind]:
    # No search for leaks: a Python process keeps much memory until its end, which is no leak of
    # ours, and the sanitizer can't tell the difference.
    asan = {
        "detect_leaks": "0",
        "detect_stack_use_after_return": "1",
        "strict_string_checks": "1",
        "handle_segv": "1",
        "allocator_may_return_null": "1",  # NULL for an impossible size, as without a sanitizer
        "log_path": str(logs / "asan"),
    }
    ubsan = {"print_stacktrace": "1"}  # reports to stderr and ends the process
    tsan = {
        "die_after_fork": "0",
        "halt_on_error": "0",
        "exitcode": "0",  # a test's child keeps its own status; the logs show the reports
        "history_size": "4",
        "log_path": str(logs / "tsan"),
    }
    return [
        Kind("address", "libasan.so", {"ASAN_OPTIONS": _join(asan), "UBSAN_OPTIONS": _join(ubsan)}),
        Kind("thread", "libtsan.so", {"TSAN_OPTIONS": _join(tsan)}),
    ]


def _join(options: dict[str, str]) -> str:
    return ":".join(f"{name}={value}" for name, value in options.items())


def compiler() -> str:
    return shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]


def library(name: str) -> str:
    """The path of the library *name* that belongs to the compiler."""
    found = subprocess.run(
        [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not os.path.isabs(found):
        raise SystemExit(f"sanitize: {compiler()} has no {name}")
    return os.path.realpath(found)


def reports(logs: Path) -> int:
    """Print the sanitizers' reports. Returns the number of report files."""
    found = sorted(path for path in logs.iterdir() if path.stat().st_size)
    for path in found:
        lines = path.read_text(errors="replace").splitlines()
        print(f"--- {path.name}: {len(lines)} lines", *lines[:SHOWN], sep="\n")
    return len(found)


def proven(kind: Kind, tree: Path, logs: Path, environment: dict[str, str]) -> bool:
    """Whether every module is instrumented, and the sanitizer reports seeded faults."""
    bare = [
        p for p in (tree / "workerserver").rglob("*.so") if MARKS[kind.name] not in p.read_bytes()
    ]
    if bare:
        print("sanitize: not instrumented:", *bare)
        return False
    source = tree / "fault.c"
    source.write_text(FAULTS[kind.name])
    target = source.with_suffix(".so")
    command = [compiler(), "-g", "-shared", "-fPIC", *FLAGS[kind.name], "-o", str(target)]
    subprocess.run([*command, str(source)], check=True)
    for name in re.findall(r"void (\w+)\(void\) ", FAULTS[kind.name]):
        done = subprocess.run(
            [sys.executable, "-c", f"import ctypes; ctypes.CDLL({str(target)!r}).{name}()"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        found = list(logs.iterdir())
        said = done.stderr if done.returncode else ""
        said += "".join(path.read_text(errors="replace") for path in found)
        if name not in said:
            print(f"sanitize: {kind.name}: a fault of kind {name!r} was not reported")
            return False
        for path in found:
            path.unlink()
    return True


def without_torch(tree: Path) -> Path:
    """A folder for PYTHONPATH in which torch can't be imported.

    torch's C++ code throws exceptions, which the preloaded library can't follow: it ends the
    process. Tests that need torch are skipped.
    """
    folder = tree / "without-torch"
    folder.mkdir(exist_ok=True)
    (folder / "torch.py").write_text("raise ModuleNotFoundError('no torch under a sanitizer')\n")
    return folder


def check(kind: Kind, tree: Path, logs: Path, options: argparse.Namespace) -> bool:
    environment = os.environ | kind.options
    environment |= {
        "LD_PRELOAD": library(kind.library),
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(map(str, (without_torch(tree), tree, tree / "tests"))),
        "WORKERSERVER_SANITIZE": kind.name,  # for the test of what such a build checks
    }

    def run(name: str, *command: str) -> bool:
        began = time.monotonic()
        status = subprocess.run(
            [sys.executable, *command], cwd=tree, env=environment, check=False
        ).returncode
        took = time.monotonic() - began
        print(f"sanitize: {kind.name}: {name}: {status} after {took:.0f} s", flush=True)
        return status == 0

    if not proven(kind, tree, logs, environment):
        return False
    fine = run("stress", STRESS, "--seconds", str(options.seconds), "--seed", str(options.seed))
    if not options.quick:
        tests = [f"tests/{name}" for name in TESTS]  # pytest fails if a folder does not exist
        chosen = options.pytest_args or [
            "-q", "-p", "no:cacheprovider", "-k", f"not ({' or '.join(LEFT_OUT)})",
            "-m", "not slow and not torch and not cuda and not curl", *tests,
        ]  # fmt: skip
        fine = run("tests", "-m", "pytest", *chosen) and fine
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="sanitize.py")
    parser.add_argument("--kind", choices=("address", "thread"), help="run only this sanitizer")
    parser.add_argument("--quick", action="store_true", help="run only the stress, and less long")
    parser.add_argument("--seconds", type=float, help="of each stress: 40, or 15 with --quick")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("pytest_args", nargs="*", help="run these instead of the usual tests")
    options = parser.parse_args()
    if options.seconds is None:
        options.seconds = 15.0 if options.quick else 40.0
    failed = []
    for name in ("address", "thread"):
        if options.kind not in (None, name):
            continue
        tree = ROOT / "build" / f"sanitize-{name}"
        logs = tree / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.iterdir():
            old.unlink()
        kind = next(kind for kind in kinds(logs) if kind.name == name)
        began = time.monotonic()
        copy_sources(tree)
        if not build(tree, SANITIZE=name):
            failed.append(f"{name}: doesn't build")
            continue
        print(f"sanitize: {name}: built in {time.monotonic() - began:.0f} s", flush=True)
        fine = check(kind, tree, logs, options)
        found = reports(logs)
        if found or not fine:
            failed.append(f"{name}: {found} reports" + ("" if fine else ", and something failed"))
    print("sanitize:", "; ".join(failed) or "clean")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
