"""Made-up jobs: what the flight recorders of all ranks hold, in the form in which torch writes it.

The ranks' own loads are the input. What follows from them (who waits for whom) is played here, and
shares nothing with the reader that is tested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

__all__ = ["LOADS", "Job", "synchronous"]

#: In nanoseconds since the epoch.
BEGINNING = 1_795_404_313 * 10**9
#: What an operation itself takes.
OPERATION_NS = 300_000

#: A rank's load of one step; 1 on average.
LOADS = {
    "uniform": lambda random: random.uniform(0.8, 1.2),
    "normal": lambda random: max(random.gauss(1.0, 0.1), 0.1),
    "wide": lambda random: random.uniform(0.6, 1.4),
    "skewed": lambda random: random.lognormvariate(0.0, 0.2),
    "exponential": lambda random: random.expovariate(1.0),
}


class Job:
    """*ranks* ranks, and when each of them is free. *ahead*: by how many nanoseconds the clocks of
    ranks are ahead."""

    def __init__(self, ranks: int, ahead: Mapping[int, int] | None = None) -> None:
        self.now = [BEGINNING] * ranks
        self.ahead = ahead or {}
        self.entries: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
        self.beats: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
        self.groups: dict[str, tuple[str, list[int]]] = {}
        self.numbers: dict[str, int] = {}

    def clock(self, rank: int) -> int:
        return self.now[rank] + self.ahead.get(rank, 0)

    def group(self, name: str, desc: str, ranks: Sequence[int]) -> str:
        self.groups[name] = (desc, list(ranks))
        return name

    def beat(self, step: int) -> None:
        for rank, beats in enumerate(self.beats):
            beats.append((step, self.clock(rank)))

    def work(self, rank: int, seconds: float) -> None:
        self.now[rank] += int(seconds * 1e9)

    def operate(
        self, group: str = "0", op: str = "all_reduce", *, wait: bool = True, **fields: Any
    ) -> None:
        """All ranks of *group* come to an operation, and *wait* for its end or not."""
        if group not in self.groups:
            self.group(group, "default_pg", range(len(self.now)))
        desc, ranks = self.groups[group]
        number = self.numbers[group] = self.numbers.get(group, 0) + 1
        last = max(self.now[rank] for rank in ranks)
        for rank in ranks:
            took = (last - self.now[rank] + OPERATION_NS) / 1e6
            own = {name: took if value is ... else value for name, value in fields.items()}
            self.entries[rank].append(self._entry(rank, number, group, desc, op, own))
            if wait:
                self.now[rank] = last + OPERATION_NS

    def _entry(
        self, rank: int, number: int, group: str, desc: str, op: str, fields: dict[str, Any]
    ) -> dict[str, Any]:
        record = len(self.entries[rank])
        return {
            "collective_seq_id": number,
            "input_dtypes": ["Float"],
            "input_sizes": [[4]],
            "is_p2p": False,
            "op_id": record + 1,
            "output_dtypes": ["Float"],
            "output_sizes": [[4]],
            "p2p_seq_id": 0,
            "pg_id": list(self.groups).index(group),
            "process_group": [group, desc],
            "profiling_name": f"gloo:{op}",
            "record_id": record,
            "retired": True,
            "state": "scheduled",
            "thread_id": "1",
            "thread_name": "python",
            "time_created_ns": self.clock(rank),
            "time_discovered_completed_ns": 0,
            "time_discovered_started_ns": 0,
            "timeout_ms": 600000,
            **fields,
        }

    def flights(self) -> dict[int, dict[str, Any]]:
        """``fr_trace_json`` of each rank."""
        config = {
            name: {"name": name, "desc": desc, "ranks": str(ranks)}
            for name, (desc, ranks) in self.groups.items()
        }
        return {
            rank: {"version": "2.10", "pg_config": config, "entries": entries}
            for rank, entries in enumerate(self.entries)
        }

    def steps(self, rank: int, tick_ns: int = 4_000_000) -> dict[str, Any]:
        """The answer of the handler ``steps``, by a clock that ticks."""
        now = self.clock(rank)
        beats = [[step, (now - at // tick_ns * tick_ns) / 1e9] for step, at in self.beats[rank]]
        times = sorted(b - a for (_, a), (_, b) in zip(beats[1:], beats, strict=False))
        usual = times[len(times) // 2] if len(times) > 7 else None
        return {
            "version": 1,
            "pid": 100 + rank,
            "rank": rank,
            "time": now / 1e9,
            "tick_s": tick_ns / 1e9,
            "step_median_s": usual,
            "beats": beats[-1025:],
        }


def synchronous(
    seed: int,
    ranks: int,
    steps: int,
    load: str = "uniform",
    slow: Mapping[int, float] | None = None,
    *,
    operations: int = 1,
    step_s: float = 0.1,
    beats: bool = False,
) -> Job:
    """Each step: every rank works for about *step_s*, by its own load of the step, and all of them
    wait for each other *operations* times. *slow*: how many times as much some ranks work."""
    random = Random(seed)
    job = Job(ranks)
    for step in range(steps):
        if beats:
            job.beat(step)
        loads = [LOADS[load](random) * (slow or {}).get(rank, 1.0) for rank in range(ranks)]
        for _ in range(operations):
            for rank, each in enumerate(loads):
                job.work(rank, step_s * each / operations)
            job.operate()
    return job
