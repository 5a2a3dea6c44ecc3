"""Each target of ``make fuzz``, fed with its committed corpus. Fuzzers themselves take minutes.

What they found once stands in the corpora by its sentence, and is fed here too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from support.fuzz import corpora
from support.lifecycle import ROOT

PROGRAMS = ROOT / "tests" / "programs" / "fuzz"
LIBRARY = Path(sysconfig.get_config_var("LIBDIR") or "")
SHARED = f"python{sysconfig.get_config_var('LDVERSION')}"


def inputs(name: str) -> list[bytes]:
    found, seeds = corpora.read(name)
    return [*found.values(), *seeds]


def targets() -> dict[str, Callable[[bytes], None]]:
    from support.fuzz import boxes, parsing

    known: dict[str, Callable[[bytes], None]] = {
        "boxes": boxes.one_box,
        "parser": parsing.one_parsed,
        "validator": parsing.one_validated,
    }
    if sys.platform == "linux":
        from support.fuzz import faces

        known["recogniser"] = faces.one_recognised
        known["relay"] = faces.one_relayed
        known["reply"] = faces.one_reply
    return known


TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    held = inputs(name)
    assert len(held) >= 20
    for data in held:
        TARGETS[name](data)


@pytest.mark.skipif(sys.platform != "linux", reason="the native transport")
def test_transports_give_the_same_bytes() -> None:
    from support.fuzz import transports

    held = inputs("transports")
    assert len(held) >= 20
    try:
        for data in held:
            transports.one_exchange(data)
    finally:
        transports.pair().close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads its own memory through the kernel")
def test_walker(tmp_path: Path) -> None:
    """In a program of its own, whose process_vm_readv() gives what the input says."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not (LIBRARY / f"lib{SHARED}.so").exists():
        pytest.skip("needs a C compiler and a shared libpython")
    program = tmp_path / "replay"
    subprocess.run(
        [
            *(compiler, "-O1", "-Wall", "-DWS_REPLAY", f"-I{sysconfig.get_path('include')}"),
            *(PROGRAMS / "driver.c", "-rdynamic", f"-L{LIBRARY}", f"-l{SHARED}"),
            *(f"-Wl,-rpath,{LIBRARY}", "-o", program),
        ],
        check=True,
        timeout=60,
    )
    held = inputs("walker")
    assert len(held) >= 20
    corpora.unpack(held, tmp_path / "inputs")
    files = sorted((tmp_path / "inputs").iterdir())
    done = subprocess.run(
        [program, *files],
        env={
            "WS_FUZZ_TARGET": "walker",
            "WS_FUZZ_SETUP": str(PROGRAMS / "native_targets.py"),
            "PYTHONHOME": f"{sys.base_prefix}:{sys.base_exec_prefix}",
            "PYTHONPATH": ":".join([str(ROOT), *filter(None, sys.path)]),
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert (done.returncode, done.stdout) == (0, f"{len(files)} inputs\n"), done.stderr
