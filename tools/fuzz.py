"""Fuzzes what reads strangers' bytes, guided by coverage: ``make fuzz SECONDS=60``.

The compiled modules are built by clang in build/fuzz, with AddressSanitizer, UBSan, libFuzzer's
counters, and the checks of a debug build. Three engines feed them:

* ``recogniser``, ``relay``, ``reply``: the parts of the extension modules that read bytes, in C
  alone (tests/programs/fuzz/parts.pyx), fed by libFuzzer at full speed;
* ``unwinder``: the interpreter of unwind tables, in C alone (tests/programs/unwind/tables.c);
* ``walker``: the reader of stacks, fed by libFuzzer in a process with a Python that waits in all
  ways; the input changes what the kernel gives (tests/programs/fuzz/driver.c);
* ``parser``, ``validator``, ``transports``, ``boxes``: Python functions (tests/support/fuzz) that
  atheris feeds. The last one is Python throughout, so it runs without the sanitizers.

Each starts from tests/fuzz/corpora, where there is one. What an engine needs and this machine lacks
is named, and its targets are left out. A finding is printed, kept in build/fuzz/found, and the exit
status is 1.
``--keep`` writes the smallest corpus with the same coverage back to tests/fuzz/corpora.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from source_tree import ROOT, build, copy_sources

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from support.fuzz import corpora  # noqa: E402

TREE = ROOT / "build" / "fuzz"
PARTS = TREE / "tests" / "programs" / "fuzz"
FLAGS = (
    "-O1", "-g2", "-fno-omit-frame-pointer", "-fsanitize=address,undefined",
    "-fno-sanitize-recover=undefined",
)  # fmt: skip
#: ASan's: CPython leaks at its end; a size that can't be had is refused, as without a sanitizer.
OPTIONS = "detect_leaks=0:allocator_may_return_null=1:handle_segv=1"


@dataclass(frozen=True)
class Target:
    """*most*: bytes of an input. *sanitized*: under ASan and UBSan."""

    name: str
    native: bool
    most: int
    sanitized: bool = True
    wire: bool = False  # raw HTTP requests are good seeds
    alone: bool = False  # a program of its own


TARGETS = (
    Target("recogniser", True, 2048, wire=True),
    Target("relay", True, 2048),
    Target("reply", True, 2048),
    Target("walker", True, 256),
    Target("unwinder", True, 512, alone=True),
    Target("parser", False, 1024, wire=True),
    Target("validator", False, 1024),
    Target("transports", False, 1024, wire=True),
    Target("boxes", False, 4096, sanitized=False),
)
DONE = re.compile(r"stat::number_of_executed_units: (\d+)")
COVERED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def missing(native: bool) -> str | None:
    """Why the engine can't run here."""
    if shutil.which("clang") is None:
        return "clang is not installed (Debian: clang, libclang-rt-14-dev)"
    if native:
        library = sysconfig.get_config_var("LIBDIR") or ""
        name = f"libpython{sysconfig.get_config_var('LDVERSION')}.so"
        if not (Path(library) / name).exists():
            return f"this CPython has no {name}, so libFuzzer can't hold it"
        return None
    if not list(Path(sysconfig.get_path("platlib")).glob("atheris*")):
        return "atheris is not installed (make fuzz does, where it has a wheel)"
    return None


def run(command: list[str], **options: str) -> None:
    done = subprocess.run(command, cwd=PARTS, env=os.environ | options, check=False)
    if done.returncode:
        raise SystemExit(f"fuzz: {command[0]} failed")


def build_parts() -> None:
    """The module with the three parts, and libFuzzer with CPython inside."""
    include = f"-I{sysconfig.get_path('include')}"
    library = str(sysconfig.get_config_var("LIBDIR"))
    package = TREE / "workerserver"
    run(
        [
            *(sys.executable, "-m", "cython", "-3", f"-I{package}/native", f"-I{package}/loadgen"),
            *(f"-I{TREE}", "parts.pyx", "-o", "parts.c"),
        ]
    )
    made = f"parts{sysconfig.get_config_var('EXT_SUFFIX')}"
    shared = ("-fsanitize=fuzzer-no-link", "-shared", "-fPIC", "-Wno-unused-function")
    run(["clang", *FLAGS, *shared, include, "parts.c", "-o", made])
    run(["clang", *FLAGS, include, "-c", "driver.c", "-o", "driver.o"])
    run(
        [
            *("clang", *FLAGS, "-fsanitize=fuzzer", "-rdynamic", "driver.o", f"-L{library}"),
            *(f"-lpython{sysconfig.get_config_var('LDVERSION')}", f"-Wl,-rpath,{library}"),
            *("-o", "driver"),
        ]
    )


def build_alone() -> None:
    unwind = TREE / "workerserver" / "stacks" / "unwind"
    run(
        [
            *("clang", *FLAGS, "-fsanitize=fuzzer", "-DWS_LIBFUZZER", f"-I{unwind}"),
            *(str(TREE / "tests" / "programs" / "unwind" / "tables.c"), "-o", "unwinder"),
            *(str(unwind / f"{name}.c") for name in ("cfi", "expression")),
        ]
    )


def command_of(target: Target) -> tuple[list[str], dict[str, str]]:
    """The program that fuzzes *target*, and its environment."""
    tree = TREE if target.sanitized else ROOT
    paths = [str(tree), str(ROOT / "tests")]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WORKERSERVER_")
    }
    environment["ASAN_OPTIONS"] = OPTIONS
    if target.alone:
        command = [str(PARTS / target.name)]
    elif target.native:
        paths = [str(tree), str(PARTS), *filter(None, sys.path)]
        environment |= {
            "WS_FUZZ_TARGET": target.name,
            "WS_FUZZ_SETUP": str(PARTS / "native_targets.py"),
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
        }
        command = [str(PARTS / "driver")]
    else:
        command = [sys.executable, "-m", "support.fuzz", target.name]
        if target.sanitized:
            preloaded = Path(sysconfig.get_path("platlib")) / "asan_with_fuzzer.so"
            environment |= {"LD_PRELOAD": str(preloaded), "PYTHONMALLOC": "malloc"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return command, environment


def fuzz(target: Target, seconds: int, keep: bool) -> bool:
    """Whether nothing was found. One line says what was done."""
    folder, found = TREE / "corpora" / target.name, TREE / "found"
    known, seeds = corpora.read(target.name)
    corpora.unpack([*known.values(), *seeds], folder)
    if target.wire and not seeds:
        corpora.unpack((b"\0" + data for data in corpora.from_wire()), folder)
    found.mkdir(exist_ok=True)
    command, environment = command_of(target)
    options = [
        f"-max_total_time={seconds}", f"-max_len={target.most}", "-timeout=60",
        "-rss_limit_mb=4096", "-print_final_stats=1", f"-artifact_prefix={found}/{target.name}-",
    ]  # fmt: skip
    log = TREE / f"{target.name}.log"
    with log.open("w") as out:
        status = subprocess.run(
            [*command, *options, str(folder)],
            env=environment,
            cwd=TREE if target.sanitized else ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    text = log.read_text(errors="replace")
    times = DONE.findall(text) or ["0"]
    edges, features, inputs = (COVERED.findall(text) or [("0", "0", "0")])[-1]
    print(
        f"{target.name:<11}{int(times[-1]):>11,} executions in {seconds} s; "
        f"{int(edges):,} edges, {int(features):,} features, {inputs} inputs"
        f"{'' if status == 0 else f'; FOUND SOMETHING, see {log}'}",
        flush=True,
    )
    if status:
        lines = [line for line in text.splitlines() if not re.match(r"#\d+\s|INFO:", line)]
        print(*(line[:300] for line in lines[-40:]), sep="\n", flush=True)
    elif keep:
        keep_smallest(target, command, environment, folder, known)
    return status == 0


def keep_smallest(
    target: Target,
    command: list[str],
    environment: dict[str, str],
    folder: Path,
    known: dict[str, bytes],
) -> None:
    smallest = TREE / "smallest" / target.name
    shutil.rmtree(smallest, ignore_errors=True)
    smallest.mkdir(parents=True)
    subprocess.run(
        [*command, "-merge=1", f"-max_len={target.most}", str(smallest), str(folder)],
        env=environment,
        cwd=TREE if target.sanitized else ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    kept = [path.read_bytes() for path in smallest.iterdir()]
    corpora.write(target.name, known, corpora.bounded(kept))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--keep", action="store_true", help="write the corpora back")
    names = [target.name for target in TARGETS]
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; all")
    options = parser.parse_args()
    if set(options.targets) - set(names):
        parser.error(f"no target {', '.join(sorted(set(options.targets) - set(names)))}")
    chosen = [each for each in TARGETS if not options.targets or each.name in options.targets]
    reasons = {native: missing(native) for native in (True, False)}
    for target in chosen:
        if reasons[target.native] is not None:
            print(f"{target.name:<11}left out: {reasons[target.native]}")
    chosen = [target for target in chosen if reasons[target.native] is None]
    if not chosen:
        return 0
    TREE.mkdir(parents=True, exist_ok=True)
    copy_sources(TREE)
    os.environ["CC"] = "clang"
    others = [target for target in chosen if not target.alone]
    if others and not build(TREE, SANITIZE="fuzz"):
        return 1
    if any(target.native for target in others):
        build_parts()
    if len(others) < len(chosen):
        build_alone()
    clean = [fuzz(target, options.seconds, options.keep) for target in chosen]
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
