"""Programs that change the ground: other event loops, debuggers, daemons, sys.modules games.

``make build`` installs what the extra ``guests`` names; gevent and eventlet are in
test_poor_places.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import PROGRAMS, environment
from support.waiting import wait_until

PONGS = ["pong", 200, True]
SCENE = PROGRAMS / "guests" / "guest_scene.py"


def scene(*words: str | Path, needs: str | None = None) -> str:
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed")
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": environment()["PYTHONPATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def found(kind: str, folder: Path, needs: str | None = None) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(scene(SCENE, kind, folder, needs=needs))
    return told


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "trio"])
def test_an_event_loop_of_the_trainers(short_path: Path, loop: str) -> None:
    told = found(f"own_{loop}", short_path, needs=loop)
    assert told == {"told": f"{loop} {[PONGS] * 3}", "kept": True}


def test_a_tracer_in_every_thread(short_path: Path) -> None:
    assert found("traced", short_path) == {"told": PONGS, "main": True}


@pytest.mark.parametrize(
    ("debugger", "options"),
    [("pdb", ["-c", "continue", "-c", "quit"]), ("debugpy", ["--listen", "127.0.0.1:0"])],
)
def test_a_debugger(short_path: Path, debugger: str, options: list[str]) -> None:
    words = ["-Xfrozen_modules=off", "-m", debugger, *options]
    said = scene(*words, SCENE, "served", short_path, needs=debugger)
    assert json.dumps({"told": PONGS}) in said.splitlines()


def test_reloaded_modules(short_path: Path) -> None:
    assert found("reloaded", short_path) == {"told": PONGS, "step": [200, 7]}


def test_deleted_modules(short_path: Path) -> None:
    """The server goes on, and ends. Where the package can't be imported anew, an error says so."""
    told = found("deleted", short_path)
    assert (told["told"], told["left"]) == (PONGS, False)
    assert told["again"] == "imported" or told["again"].startswith("ImportError: ")


@pytest.mark.skipif(sys.version_info[:2] > (3, 14), reason="another module for subinterpreters")
def test_a_subinterpreter(short_path: Path) -> None:
    told = found("in_subinterpreter", short_path)
    assert (told["told"], told["after"]) == (PONGS, PONGS)
    assert told["said"].startswith("ImportError: ")
    assert "interpreter" in told["said"]


@pytest.mark.parametrize("moment", ["early", "late"])
@pytest.mark.parametrize("library", ["double_fork", "python_daemon"])
def test_a_daemon(short_path: Path, library: str, moment: str) -> None:
    """It serves after the double fork. Late: a server ran before it."""
    needs = "daemon" if library == "python_daemon" else None
    scene(SCENE, f"daemon:{library}:{moment}", short_path, needs=needs)
    written = short_path / "told"
    wait_until(written.exists, 60)
    assert json.loads(written.read_text()) == PONGS
