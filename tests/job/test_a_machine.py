"""Jobs as users start them, each scene on a machine of its own, and what the first command says.

Nothing tells the commands where the workers are.
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from support.jobs import scenes
from support.jobs.machine import Said

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(280),
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    scenes.needs_machine,
]


def scene(name: str) -> Said:
    """What the commands said in a scene of programs/job/alone.py."""
    return scenes.scene("job/alone.py", name)


def brief(said: Said) -> tuple[int, str | None, int, int]:
    """Status, job, and how many ranks there are and answered."""
    fields = said["said"]
    assert fields["status"] == said["status"], said
    return said["status"], fields["job"], fields["ranks"], fields["responded"]


def suspects(said: Said) -> list[tuple[int, str, str | None]]:
    return [
        (each["rank"], each["reason"], (each["location"] or "").rpartition("/")[2] or None)
        for each in said["said"]["suspects"]
    ]


LINE = scenes.planted_line("job/train.py")
BEHIND = [(1, "behind", f"train.py:{LINE} load_shard")]


def test_two_jobs_of_one_user_one_hung() -> None:
    said = scene("two_jobs")
    assert said["met"] == [], "somebody who is no worker was connected to"
    healthy, other = said["diagnose"]["said"]["other_jobs"], "hung job"
    assert brief(said["diagnose"]) == (1, other, 2, 2)
    assert suspects(said["diagnose"]) == BEHIND
    (second,) = healthy
    assert second["status"] == 0
    assert second["job"].startswith("127.0.0.1:")
    assert said["diagnose"]["said"]["leftovers"] == []

    lines = said["text"]["said"]
    assert said["text"]["status"] == 1
    assert lines[0].startswith("rank 1 has not entered all_reduce #")
    assert lines[1:3] == [
        "job hung job, 1 of 2; the others:",
        f"  {second['job']}: {lines[2].partition(': ')[2]}",
    ]
    assert "no rank is stuck" in lines[2]
    assert said["head"][0] == lines[0]
    assert said["head"][1:] == ["1"], "a reader that goes away changes the status"

    for way in ("one", "pid"):
        assert brief(said[way]) == (1, other, 2, 2)
        assert said[way]["said"]["other_jobs"] == []
    assert brief(said["launcher"]) == (0, second["job"], 2, 2)
    assert said["no such job"]["status"] == 3
    assert f"there are: {second['job']}, hung job" in said["no such job"]["error"]

    # Whatever the pattern, two jobs are not mixed.
    assert brief(said["mixed"]) == (1, other, 2, 2)
    assert suspects(said["mixed"]) == BEHIND
    assert [each["job"] for each in said["mixed"]["said"]["other_jobs"]] == [second["job"]]

    assert said["ls"]["status"] == 0
    rows = said["ls"]["said"]["workers"]
    assert sorted(row["rank"] for row in rows) == [0, 0, 1, 1]
    assert said["stranger"] not in [row["pid"] for row in rows]
    for command in ("stacks", "fr"):
        first, more = said[command]["said"], said[command]["said"]["other_jobs"]
        jobs = {each["job"]: each["ranks"] for each in (first, *more)}
        assert jobs == {other: 2, second["job"]: 2}
    assert said["stacks"]["status"] == 0
    assert said["fr"]["status"] == 1
    assert (said["ping"]["status"], said["ping"]["said"]["responded"]) == (0, 4)
    assert said["top"]["status"] == 64
    assert "2 jobs: choose one with --job: " in said["top"]["error"]
    assert said["watch"]["status"] == 1
    assert [line.split()[2] for line in said["watch"]["said"]] == ["SUSPECT", "healthy"]
    for log in said["logs"]:
        assert log.count("if the job hangs: workerserver diagnose\n") == 1


def test_a_job_that_torchrun_has_started_again() -> None:
    said = scene("restarted")
    status, _, ranks, responded = brief(said["diagnose"])
    assert (status, ranks, responded) == (1, 2, 2)
    assert suspects(said["diagnose"]) == [(0, "behind", f"train.py:{LINE} load_shard")]
    assert said["diagnose"]["said"]["leftovers"] == []
    assert said["diagnose"]["said"]["other_jobs"] == []
    assert sorted(row["pid"] for row in said["ls"]["said"]["workers"]) == sorted(said["pids"])


def test_a_killed_job_and_the_next_one_in_its_folder() -> None:
    said = scene("one_after_the_other")
    assert said["ended"]["status"] == said["ended"]["said"]["status"] == 3
    assert said["ended"]["said"]["verdict"].startswith("the job has ended (127.0.0.1:")
    lines = said["ended by template"]["said"]
    assert said["ended by template"]["status"] == 3
    assert lines == ["the job has ended: nobody listens at /tmp/job/rank0.sock and 3 more"]
    for command in ("folder", "ping", "ls", "call"):
        name = f"ended by {command}" if command == "folder" else f"ended {command}"
        assert said[name]["status"] == 3, name

    assert said["swept"] == ["rank0.sock", "rank1.sock"]
    left = ["left over from earlier workers, nobody listens: /tmp/job/rank3.sock"]
    status, job, ranks, responded = brief(said["healthy"])
    assert (status, ranks, responded) == (0, 2, 2)
    assert said["healthy"]["said"]["leftovers"] == left
    assert said["healthy"]["said"]["unreachable"] == []
    assert said["healthy text"]["status"] == 0
    assert said["healthy text"]["said"][1:2] == left
    assert brief(said["healthy by itself"]) == (0, job, 2, 2)

    for way in ("gone", "gone by template"):
        assert brief(said[way]) == (1, job, 2, 1)
        assert suspects(said[way]) == [(1, "unreachable", None)]
    (gone,) = said["gone"]["said"]["unreachable"]
    assert gone["text"] == f"its process has ended (pid {said['pids'][1]})"


def test_launches_without_a_launcher() -> None:
    said = scene("launches")
    for way in ("spawn", "spawn by template"):
        status, job, ranks, responded = brief(said[way])
        assert (status, ranks, responded) == (1, 2, 2)
        assert job is not None
        assert suspects(said[way]) == BEHIND
    first, second = said["spawn pids"]
    assert {f"rank0.{pid}.sock" for pid in (first, second)} & set(said["spawn sockets"])
    assert "rank0.sock" in said["spawn sockets"]
    by_pid = {row["pid"]: row["rank"] for row in said["spawn ls"]["said"]["workers"]}
    assert by_pid == {first: 0, second: 1}
    assert brief(said["alone"]) == (2, "alone", 1, 1)
    assert f"load_shard(), train.py:{LINE}" in said["alone"]["said"]["verdict"]
    where = "/tmp/new/alone.sock"
    assert said["alone log"] == (
        f"workerserver: serving on {where}; if the job hangs: workerserver diagnose\n"
    )


def test_our_workers_and_stock_ones() -> None:
    """torch's servers don't tell a rank. They are no further ranks, and make none missing."""
    said = scene("mixed_servers")
    status, _, ranks, responded = brief(said["diagnose"])
    assert (status, ranks, responded) == (1, 4, 4)
    assert [each[0] for each in suspects(said["diagnose"])] == [3]
    assert suspects(said["diagnose"])[0][2] == f"train.py:{LINE} load_shard"
    lines = said["diagnose"]["said"]["not_looked_at"]
    assert any(line.startswith("ranks 2-3: the rank is inferred") for line in lines)
