"""Workers of another version than the client: the old answers, and a line that says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.jobs.workers import HEALTH, Canned, good, health

from workerserver.cli import main
from workerserver.cluster.ask.bodies import health as read_health
from workerserver.cluster.ask.bodies import health_of
from workerserver.process import _pulse

JOB = {"job": "j", "job_from": "MASTER_ADDR", "world_size": 2, "host": "n1", "agent": "1:1"}
OLDER = (
    "2 workers have an older workerserver, which does not tell the job's name and size: ranks that "
    "nobody looked for are not known"
)
NEWER = "1 worker has a newer workerserver than this command: what only that tells is not read"


@pytest.fixture
def start(folder: Path, request: pytest.FixtureRequest) -> Any:
    def serve(rank: int, **more: Any) -> None:
        worker = Canned({**good(rank), HEALTH: health(rank, **more)}, folder / f"rank{rank}.sock")
        request.addfinalizer(worker.close)

    return serve


@pytest.mark.parametrize("command", ["diagnose", "stacks", "fr"])
def test_older_workers(command: str, start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        start(rank)
    main([command, "*.sock", "--rounds", "1"])
    assert OLDER in capsys.readouterr().out.splitlines()
    main([command, "*.sock", "--rounds", "1", "--json"])
    fields = json.loads(capsys.readouterr().out)
    assert (fields["ranks"], fields["responded"]) == (2, 2)
    assert fields["notes"] == [OLDER]


def test_workers_of_this_version(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        start(rank, **JOB)
    main(["diagnose", "*.sock", "--rounds", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["notes"] == []


def test_a_newer_worker(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    start(0, **JOB)
    start(1, **JOB, mood="good")
    main(["stacks", "*.sock", "--json"])
    assert json.loads(capsys.readouterr().out)["notes"] == [NEWER]


def test_what_a_worker_of_this_version_tells_is_read() -> None:
    body, _ = _pulse.health(0.0)
    assert not read_health(body).newer
    assert health_of({"status": "ok", "mood": "good"}).newer
    assert health_of({"status": "ok", "newer": True}).newer  # a collector has seen it
