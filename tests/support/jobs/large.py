"""A hung job of thousands of ranks, as answers and as what is written of it."""

from __future__ import annotations

from typing import Any

from support.jobs.ranks import C10D
from support.jobs.recordings import Round
from workerserver.cluster.judge.diagnose import diagnose
from workerserver.cluster.model import Frame, Health, RankState, Thread, Worker
from workerserver.cluster.read.steps import Pace
from workerserver.cluster.show.report import verdict_dict

__all__ = ["fields_of", "large_job", "paces_of"]

LOCAL = 8
STARTED = 1_700_000_000.0
#: Frames above the branching, as a real training program has them.
ABOVE = tuple(
    Frame(f"/opt/train/packages/model_{depth}/layers.py", 100 + depth, f"forward_{depth}")
    for depth in range(20)
)


def large_job(ranks: int, stacks: int, host: str = "node{}.cluster.example.org") -> list[Round]:
    """Two looks. Rank 5 loads a batch while the others wait in an operation; *stacks* - 2 of them
    have come there from other lines."""
    rounds = []
    for look in range(2):
        states = []
        for rank in range(ranks):
            if rank == 5:
                frames = (Frame("/opt/train/data.py", 33, "load_batch"), *ABOVE)
            elif 5 < rank < 4 + stacks:
                stage = Frame(f"/opt/train/stage_{rank}.py", rank, f"stage_{rank}")
                frames = (C10D, stage, *ABOVE)
            else:
                frames = (C10D, *ABOVE)
            at = host.format(rank // LOCAL)
            health = Health(
                "ok", 1000 + rank, rank, step=1204, step_age_s=300.0 + 2 * look,
                rss_bytes=3 << 30, host=at, local_rank=rank % LOCAL, world_size=ranks,
                job="train", uptime_s=1000.0 + 2 * look, cpu_s=10.0,
            )  # fmt: skip
            worker = Worker(f"{at}:29{rank % LOCAL:03}", False, rank, at)
            threads = (Thread(frames, name="MainThread", main=True, state="S"),)
            state = RankState(worker, rank, "workerserver", health, threads=threads)
            state.mode, state.responded = "nogil", True
            states.append(state)
        rounds.append(Round(states, STARTED + 2 * look))
    return rounds


def fields_of(rounds: list[Round]) -> dict[str, Any]:
    """As ``diagnose --json`` has them."""
    verdict = diagnose(rounds, len(rounds[-1].states))
    more = {"time": rounds[-1].started, "job": "train", "leftovers": [], "notes": []}
    return {"schema_version": 1, **verdict_dict(verdict), **more, "cost": {}, "other_jobs": []}


def paces_of(rounds: list[Round], count: int = 64) -> dict[int, Pace]:
    steps = tuple(range(1105, 1205))
    began = tuple(int((STARTED - 300 - (1204 - step) * 1.5) * 1e9) for step in steps)
    return {
        state.rank: Pace(steps, tuple(at + state.rank * 1000 for at in began), 0.004)
        for state in rounds[-1].states[:count]
        if state.rank is not None
    }
