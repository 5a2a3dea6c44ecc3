"""The table of launches: each way to start a job, with a rank that hangs, and what
``workerserver diagnose`` without arguments names.

Launches that need no package besides torch are here and in tests/job/test_a_machine.py: torchrun
with the decorator, ``torchrun -m workerserver run``, mp.spawn. The others run with
``make test-integrations``, with the real packages.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeVar

import pytest
from support.jobs.machine import Said
from support.jobs.scenes import needs_machine, planted_line, scene
from support.lifecycle import ROOT

pytestmark = [
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(find_spec("torch") is None, reason="needs torch"),
    needs_machine,
]

PLANTED = f"plant.py:{planted_line('launches/plant.py')} load_shard"


def launched(name: str) -> Said:
    return scene("launches/launch.py", name)


def check(said: Said, rank: int, ranks: int, place: str = PLANTED) -> None:
    """One job was found, all its ranks answered, and the one that hangs is the only suspect."""
    status, fields = said["diagnose"]["status"], said["diagnose"]["said"]
    found = status, fields["ranks"], fields["responded"], len(fields["suspects"])
    assert found == (1, ranks, ranks, 1), said
    (suspect,) = fields["suspects"]
    assert suspect["rank"] == rank, said
    assert re.search(f"(^|/){place}$", suspect["location"]), said
    assert fields["other_jobs"] == []
    assert fields["leftovers"] == []
    rows = sorted(said["ls"]["said"]["workers"], key=lambda row: said["pids"].index(row["pid"]))
    # A process alone does not tell a rank: it is rank 0 because no launcher has started it.
    assert [row["rank"] for row in rows] == (list(range(ranks)) if ranks > 1 else [None]), said
    assert [row["step"] for row in rows] == [20] * ranks, said
    # One sentence is enough for whoever reads no further.
    line, _, function = place.partition(" ")
    first = said["text"]["said"][0]
    assert first.startswith(f"rank {rank} "), said
    assert re.search(rf"{function}\(\), {line}$", first), said


def test_python() -> None:
    check(launched("python"), rank=0, ranks=1)


def test_the_tutorial() -> None:
    """docs/tutorial.md: its verdicts are what a reader gets, apart from numbers."""
    said = scene("launches/tutorial.py", "all")
    page = (ROOT / "docs/tutorial.md").read_text()
    shown = re.findall(r"^```text\n(.*?)^```$", page, re.M | re.S)
    assert [said[name]["status"] for name in ("healthy", "hung", "ended")] == [0, 1, 3], said
    served, healthy, hung = (plain(each.splitlines()[0]) for each in shown)
    assert served in plain(said["log"]), said
    assert healthy.partition(";")[0] in said["healthy"]["said"][0], said  # one step, or several
    assert hung == plain(said["hung"]["said"][0]), said
    # What "Look closer" has a person type.
    statuses = {name: said[name]["status"] for name in ("stacks", "fr", "ls", "call")}
    assert statuses == {"stacks": 0, "fr": 1, "ls": 0, "call": 0}, said
    assert "ranks 0-1,3 (3 in all)" in said["stacks"]["said"], said
    assert any("load_shard" in line for line in said["stacks"]["said"]), said
    assert any("waits for" in line or "wait for" in line for line in said["fr"]["said"]), said
    assert any('train.py", line 11 in load_shard' in line for line in said["call"]["said"]), said


def plain(text: str) -> str:
    return re.sub(r"[0-9]+(\.[0-9]+)?", "N", text)


Test = TypeVar("Test", bound=Callable[..., None])


def needs(package: str) -> Callable[[Test], Test]:
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")

    def decorate(test: Test) -> Test:
        marked: Test = pytest.mark.integrations(missing(test))
        return marked

    return decorate


@needs("lightning")
@pytest.mark.parametrize("launcher", ["lightning", "lightning under torchrun"])
def test_lightning(launcher: str) -> None:
    check(launched(launcher), rank=1, ranks=2)


@needs("transformers")
def test_trainer() -> None:
    check(launched("trainer"), rank=0, ranks=1)


@needs("transformers")
def test_trainer_under_torchrun() -> None:
    check(launched("trainer under torchrun"), rank=1, ranks=2)


@needs("accelerate")
def test_accelerate_with_one_process() -> None:
    check(launched("accelerate, one process"), rank=0, ranks=1)


@needs("accelerate")
def test_accelerate_with_two_processes() -> None:
    check(launched("accelerate, two processes"), rank=1, ranks=2)


@needs("ray")
def test_ray_train() -> None:
    check(launched("ray"), rank=1, ranks=2)


@needs("nbclient")
def test_a_notebook() -> None:
    check(launched("notebook"), rank=0, ranks=1, place=r"\d+\.py:2 load_shard")
