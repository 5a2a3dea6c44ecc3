"""A real Slurm on this machine, by the recipes of docs/howto/slurm.md: ranks 0-1 on one node, ranks
2-3 on another one, and rank 2 hangs.

Run by ``make test-integrations`` if Slurm is installed: ``apt-get install slurmctld slurmd
slurm-client``.
"""

from __future__ import annotations

import re
import shutil

import pytest
from support.jobs import scenes
from support.jobs.machine import Said

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.torch,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    scenes.needs_machine,
    pytest.mark.skipif(shutil.which("slurmctld") is None, reason="needs slurm-wlm"),
]

LINE = scenes.planted_line("launches/plant.py")
WHERE = rf"it stands in load_shard\(\), plant\.py:{LINE}$"


def scene(name: str) -> Said:
    """What the commands said in a scene of programs/launches/slurm.py."""
    return scenes.scene("launches/slurm.py", name)


def names(answer: Said, rank: int, ranks: int) -> bool:
    """Whether the verdict names *rank* alone, and all *ranks* have answered."""
    lines = answer["said"]
    return (
        answer["status"] == 1
        and re.match(rf"rank {rank} has not entered .*{WHERE}", lines[0]) is not None
        and any(line.startswith(f"{ranks} of {ranks} ranks answered") for line in lines)
    )


@pytest.mark.parametrize(
    "name", ["a_task_for_each_rank", "torchrun_as_the_one_task", "salloc", "a_requeue"]
)
def test_the_rank_is_named_from_everywhere(name: str) -> None:
    """By the recipe, by ``srun --overlap`` in the job, and by the plain command on a node."""
    said = scene(name)
    for way in ("recipe", "in the job", "outside"):
        assert names(said[way], 2, 4), (way, said)
    if "first" in said:
        assert names(said["first"], 2, 4), said
    assert said["log"].count("workerserver: serving on ") == (2 if "first" in said else 1)


def test_a_signal_before_the_time_limit_keeps_the_verdict() -> None:
    said = scene("before_the_limit")
    assert names(said["verdict"], 2, 4), said
    assert said["states"] == ["R"], "the job has ended with the signal"


def test_the_tasks_of_an_array_are_jobs() -> None:
    said = scene("an_array")
    assert names(said["outside"], 1, 2), said
    assert names(said["hung"], 1, 2), said
    assert said["healthy"]["status"] == 0, said
    lines = "\n".join(said["outside"]["said"])
    assert f"job slurm-{said['job']}_1.0, 1 of 2" in lines
    assert f"  slurm-{said['job']}_0.0: no rank is stuck" in lines


def test_ports_that_are_known() -> None:
    """``--slurm``, asked by a step of one task: S1, S2 and S5 of what a real Slurm showed."""
    said = scene("known_ports")
    for way in ("by template", "by environment", "by range", "by collector", "by its port"):
        assert names(said[way], 1, 2), (way, said)
    first, second, _ = said["jobs"]
    other = said["another job's"]
    assert other["status"] == 2, said
    assert other["said"][0] == (
        f"could not tell: the workers on these ports belong to slurm-{first}, "
        f"and this is slurm-{second}"
    )
