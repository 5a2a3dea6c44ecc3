"""The stages of a connection and the invariants of the hub, which debug builds check."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import workerserver

if sys.platform != "linux":
    pytest.skip("the native I/O thread is for Linux", allow_module_level=True)

from support.lifecycle import PROGRAMS, ROOT

from workerserver.native import _engine

SOURCES = ROOT / "workerserver" / "native"
if not SOURCES.exists():
    pytest.skip("needs the sources, not a wheel alone", allow_module_level=True)
#: The variable that names the kind of build. The tests themselves run without it.
CHECKED = bool(
    os.environ.get("WORKERSERVER_DEBUG") == "1" or os.environ.get("WORKERSERVER_SANITIZE")
)

STAGES = ("NEW", "IO", "WAIT", "QUEUED", "LOOP", "ANSWERING", "DRAIN", "CLOSING", "DEAD")
IO_THREAD = {
    "NEW": {"IO"},
    "IO": {"QUEUED", "ANSWERING", "DRAIN", "DEAD"},
    "WAIT": {"QUEUED", "DEAD"},
    "QUEUED": {"IO", "ANSWERING", "DRAIN", "DEAD"},
    "LOOP": {"DEAD"},
    "ANSWERING": {"IO", "DRAIN", "DEAD"},
    "DRAIN": {"DEAD"},
    "CLOSING": {"DEAD"},
}
LOOP = {
    "IO": {"LOOP", "CLOSING"},
    "WAIT": {"LOOP", "CLOSING"},
    "QUEUED": {"LOOP", "CLOSING"},
    "LOOP": {"IO", "WAIT", "QUEUED", "CLOSING"},
    "DRAIN": {"CLOSING"},
}


def faults() -> list[str]:
    """All messages of the checks, read from their sources."""
    text = (SOURCES / "engine" / "invariants.pyx").read_text()
    found = re.findall(r'_must\(.*?b"(.+?)",\s+hub', text, re.S)
    found += re.findall(r'wrong = b"(.+?)"', (SOURCES / "engine" / "stage.pyx").read_text())
    return found


FAULTS = faults()


def test_every_check_has_words_of_its_own() -> None:
    text = (SOURCES / "engine" / "invariants.pyx").read_text()
    assert text.count("_must(") - 1 == len([f for f in FAULTS if f in text])
    assert len(set(FAULTS)) == len(FAULTS) > 60


def test_one_function_assigns_the_stage() -> None:
    assigned = [
        f"{path.name}: {line.strip()}"
        for path in sorted(SOURCES.rglob("*.p[yx][xd]"))
        for line in path.read_text().splitlines()
        if re.search(r"\.stage\s*=(?!=)", line)
    ]
    assert assigned == ["stage.pyx: connection.stage = new"]


def test_only_builds_that_should_have_the_checks() -> None:
    module = Path(_engine.__file__).read_bytes()
    found = [fault for fault in FAULTS if fault.encode() in module]
    assert found == (FAULTS if CHECKED else [])


# --- with a debug build of the engine


@pytest.fixture(scope="module")
def checked() -> dict[str, str]:
    """The environment for a tree whose engine checks itself, and knows faults to plant.

    Only the engine and its bridge are compiled; the other modules are the ones under test.
    """
    pytest.importorskip("Cython")
    if not (ROOT / "setup.py").exists() or not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("needs the sources and a compiler")
    tree = ROOT / "build" / "checked"
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from source_tree import build, copy_sources
    finally:
        sys.path.pop(0)
    tree.mkdir(parents=True, exist_ok=True)
    copy_sources(tree)
    shutil.copy2(PROGRAMS / "native" / "plants.pyx", tree / "workerserver" / "native")
    unit = tree / "workerserver" / "native" / "_engine.pyx"
    times = unit.stat()
    unit.write_text(unit.read_text() + 'include "plants.pyx"\n')
    os.utime(unit, ns=(times.st_atime_ns, times.st_mtime_ns))  # compiled again only if changed
    package = Path(workerserver.__file__).parent
    for module in package.rglob("*.so"):
        if module.parent.name != "native":
            shutil.copy2(module, tree / "workerserver" / module.relative_to(package))
    assert build(tree, DEBUG="1", MODULES="native._engine,native._bridge")
    here = {name: value for name, value in os.environ.items() if name != "WS_DEBUG_LOG"}
    return here | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tests'}"}


def run(checked: dict[str, str], name: str, *arguments: str, text: str = "") -> Any:
    return subprocess.run(
        [sys.executable, str(PROGRAMS / "native" / name), *arguments],
        env=checked, input=text, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_invariants_hold_under_stress(checked: dict[str, str]) -> None:
    done = run(checked, "sanitize_stress.py", "--seconds", "6")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(done.stdout)["counts"]["answered"] > 100


@pytest.fixture(scope="module")
def planted(checked: dict[str, str]) -> Any:
    done = run(checked, "plant_scene.py", text=json.dumps(FAULTS))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_every_invariant_can_break(planted: Any, fault: str) -> None:
    status, said = planted["faults"][fault]
    assert f"workerserver: broken invariant: {fault}\n  hub " in said
    assert os.WIFSIGNALED(status)


@pytest.mark.slow
@pytest.mark.parametrize("old", STAGES)
def test_only_its_owner_moves_a_connection(planted: Any, old: str) -> None:
    for number, target, by_io, status, said in planted["moves"]:
        if STAGES[number] != old:
            continue
        new = STAGES[target]
        allowed = new in (IO_THREAD if by_io else LOOP).get(old, ())
        assert (status == 0) == allowed, (new, by_io, said)
        if not allowed:
            assert said.startswith(f"workerserver: from {old} to {new}, on ")
            assert ("is for the other" in said) == (
                new in (LOOP if by_io else IO_THREAD).get(old, ())
            )


@pytest.mark.slow
def test_a_broken_invariant_ends_the_process(checked: dict[str, str]) -> None:
    done = run(checked, "plant_scene.py", "here")
    assert done.returncode == -6
    assert "broken invariant: unclaimed is not the sum of accounted" in done.stderr
