"""torch's own server on a private socket: started, asked, forked and left in every way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import FALLBACK, PROGRAMS, environment, run_isolated

ON = {FALLBACK: "1"}

torch = pytest.importorskip("torch")

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(sys.platform != "linux", reason="for Linux"),
    # On a busy machine a CUDA build of torch took 71 s to import (4 s of processor time).
    pytest.mark.timeout(280),
]

#: The C++ handlers that some torch has, in the order in which they are named.
CPP_HANDLERS = (
    "fr_trace_json",
    "wait_counter_values",
    "pyspy_dump",
    "dump_nccl_trace_pickle",
    "dump_nccl_trace_json",
    "fr_dump_file",
    "c10d_health_check",
    "torch_comms_fr_trace_json",
)

# One Python process imports torch, which takes most of the time. Each scene runs in a fork of it.
SCENES = (
    "start",
    "under_install",
    "closed_by_somebody",
    "registered_in_python",
    "beyond_the_binding",
    "switched_off",
    "long_folder",
    "no_room_for_threads",
    "forks",
    "killed",
    "exits",
    "held",
)
# The script prints that it runs, and stays for an hour. Or it prints its arguments.
PYSPY = """#!/bin/sh
if [ -n "$PYSPY_MARK" ]; then : > "$PYSPY_MARK"; exec sleep 3600; fi
echo "$@" | sed 's/[0-9][0-9]*/PID/'
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The findings of each scene."""
    folder = tmp_path_factory.mktemp("fallback")
    (folder / "py-spy").write_text(PYSPY)
    (folder / "py-spy").chmod(0o755)
    said = tmp_path_factory.mktemp("said")
    out, errors = said / "out", said / "errors"
    with out.open("w") as stdout, errors.open("w") as stderr:
        # The output goes to files. Shells that wait for a py-spy would hold a pipe open.
        process = subprocess.Popen(
            [
                sys.executable,
                str(PROGRAMS / "native/torch_fallback_scene.py"),
                str(folder),
                *SCENES,
            ],
            env=environment(
                **ON,
                TMPDIR=str(folder),
                PATH=f"{folder}:{os.environ['PATH']}",
                TORCH_FR_BUFFER_SIZE="2000",
            ),
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    try:
        code = process.wait(240)
    finally:
        kill_session(process.pid)
        process.wait()
    assert code == 0, errors.read_text()
    assert os.listdir(folder) == ["py-spy"]
    lines = [line for line in out.read_text().splitlines() if line[:1] == "{"]  # torch prints too
    return {fact.pop("scene"): fact for fact in map(json.loads, lines)}


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The C++ handlers of this torch."""
    registered = torch._C._distributed_c10d._get_handler_names()
    return [name for name in CPP_HANDLERS if name in registered]


def kill_session(leader: int) -> None:
    """End the remaining processes of the scenes' session: py-spys and their shells."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) != os.getpid():
            try:
                if os.getsid(int(name)) == leader:
                    os.kill(int(name), 9)
            except OSError:
                continue


def test_it_starts_once_and_leaves_nothing_on_disk(said: dict[str, Any], names: list[str]) -> None:
    found = said["start"]
    replies = found.pop("replies")
    assert found == {
        "code": 0,
        "again": True,
        "reason": None,
        "threads": 0,
        "blocked": True,  # every signal, so that the process's own threads still get their signals
        "mask": True,
        "names": names,
        "inheritable": [False, False],
        "left": [],
    }
    assert replies["ping"] == [200, "pong"]
    assert replies["fr_trace_json"][0] == replies["wait_counter_values"][0] == 200


def test_it_is_torchs_own_while_ours_stands_in_its_place(said: dict[str, Any]) -> None:
    assert said["under_install"] == {"code": 0, "ours": True, "ping": "pong"}


def test_a_listener_that_somebody_closed_is_noticed(said: dict[str, Any]) -> None:
    assert said["closed_by_somebody"] == {
        "code": 0,
        "number": True,
        "listens": [True, False, False],
    }


def test_handlers_of_python_are_not_relayed(said: dict[str, Any], names: list[str]) -> None:
    assert said["registered_in_python"] == {"code": 0, "names": names}


def test_it_answers_where_the_binding_cannot(said: dict[str, Any]) -> None:
    assert said["beyond_the_binding"] == {
        "code": 0,
        "first": [200, "text/plain", "dump --pid PID --native\n"],
        "again": [200, "text/plain", "dump --pid PID --subprocesses --nonblocking\n"],
        "form": [200, "text/plain", "dump --pid PID --native\n"],
        "other body": "ParametersNotPassed",
        "slow": ["OwnServerFailed", 502, True],
        "without": "ParametersNotPassed",
    }


def test_it_can_be_switched_off(said: dict[str, Any]) -> None:
    reason = "RuntimeError: switched off by WORKERSERVER_TORCH_FALLBACK=0"
    assert said["switched_off"] == {
        "code": 0,
        "ran": [False, False],
        "reason": reason,
        "logged": [f"INFO: torch's own server doesn't stand by: {reason}"],
        "rest": [0, [], None, []],
    }


def test_a_long_folder_for_temporary_files_is_passed_over(said: dict[str, Any]) -> None:
    assert said["long_folder"] == {"code": 0, "ping": "pong", "reason": None}


def test_no_room_for_its_threads_is_found_out_before(said: dict[str, Any]) -> None:
    found = said["no_room_for_threads"]
    assert "can't have" in found.pop("reason")
    assert found == {"code": 0, "ran": False, "final": False}


def test_forked_children_hold_nothing_and_end_as_they_like(said: dict[str, Any]) -> None:
    found = said["forks"]
    assert found.pop("before") == 2  # the listener, and a connection
    rounds = (len(found["codes"]) - 1) // 3
    assert found == {
        "code": 0,
        "codes": [0] * rounds + [0] + [0] * rounds + [3] * rounds,
        "multiprocessing": 0,
        "loaded": sum(range(64)),
        "after": 0,
        "ping": "pong",
    }


def test_no_listener_stays_when_the_parent_is_killed(said: dict[str, Any]) -> None:
    assert said["killed"] == {"code": 0, "before": True, "after": False, "path": False}


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("normal", 0),
        ("exit", 3),
        ("raise", 1),
        ("os_exit", 4),
        ("terminated", -15),
        ("busy", 0),
        ("at_once", 0),
    ],
)
def test_the_process_ends_as_it_would(said: dict[str, Any], how: str, code: int) -> None:
    assert said["exits"][how]["codes"] == [code]


def test_it_answers_while_c_code_holds_the_gil(said: dict[str, Any]) -> None:
    found = said["held"]
    assert found["inside"] == [True] * len(found["status"])
    unset = found["status"].pop("fr_dump_file", None)  # gloo tells its recorder no rank
    assert unset in (None, 503)
    assert set(found["status"].values()) == {200}
    assert {"fr_trace_json", "wait_counter_values", "pyspy_dump"} <= set(found["status"])
    assert found["entries"] == ["gloo:all_reduce"]
    assert found["counters"] is True
    assert found["pyspy"] == "dump --pid PID\n"
    assert found["code"] == 0


def test_without_torch_there_is_none(tmp_path: Path) -> None:
    done = run_isolated(
        "native/torch_fallback_scene.py",
        str(tmp_path),
        WITHOUT_TORCH="1",
        WORKERSERVER_TORCH_FALLBACK="1",
    )
    assert json.loads(done.stdout) == {
        "ran": False,
        "reason": "torch.distributed is not loaded",
        "torch": False,
    }
