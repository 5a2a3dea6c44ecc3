"""A server is a guest in a training process, and leaves the process's state as it was."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import run_isolated

import workerserver


def scene(tmp_path: Path, name: str) -> dict[str, Any]:
    done = run_isolated("server/manners_scene.py", name, str(tmp_path / "s.sock"))
    assert (done.returncode, done.stderr) == (0, "")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_nothing_of_the_process_is_changed(tmp_path: Path) -> None:
    """Signals, umask, environment, event-loop policy, logging, hooks, limits, denormals."""
    assert scene(tmp_path, "unchanged") == {"during": [], "after": []}


def test_threads_are_few_named_daemons_without_signals(tmp_path: Path) -> None:
    assert scene(tmp_path, "threads") == {
        "serving": 2,  # two servers share them
        "names": ["workerserver-handler-1", "workerserver-io", "workerserver-loop"],
        "kernel names": ["workerserver-io", "workerserver-lo"],
        "daemons": True,
        "all blocked": True,
    }


def test_signals_reach_the_main_thread(tmp_path: Path) -> None:
    seen = [["SIGTERM", "MainThread"], ["SIGINT", "MainThread"], ["SIGTERM", "MainThread"]]
    assert scene(tmp_path, "signals") == {"seen": seen}


def test_sigterm_still_ends_the_process(tmp_path: Path) -> None:
    done = run_isolated("server/manners_scene.py", "terminated", str(tmp_path / "s.sock"))
    assert done.returncode == -signal.SIGTERM


def test_import_is_light_and_never_brings_torch(tmp_path: Path) -> None:
    assert scene(tmp_path, "light") == {
        "imported": [],
        "unneeded": [],
        "torch": False,
        "numpy": False,
        "names": True,
    }


def test_unknown_name_of_the_package() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        workerserver.nothing_of_the_kind  # noqa: B018
