"""Which job a process belongs to, and which rank it is there.

The name of a job is, in this order:

WORKERSERVER_JOB       as it is
TORCHELASTIC_RUN_ID    as it is; torchrun's default "none" counts as not given
SLURM_JOB_ID           ``slurm-1200_3.0``: with the index in an array, and the step
JOB_COMPLETION_INDEX   under Kubernetes: the name of the host without the index
MASTER_ADDR            ``host:port``, with MASTER_PORT
process                ``train.py-4711``: the program, and the pid of who started the job

Two jobs can have one name, one after the other or at the same time. *agent* tells them apart on one
host: the process that started the workers (torchrun's agent, the parent of mp.spawn), by its pid
and start time.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from workerserver.job.proc import born, environment_of, stat_of, words_of
from workerserver.process.loaded import imported

__all__ = [
    "MAX_TEXT",
    "PROCESS",
    "Identity",
    "is_spawned",
    "name_program",
    "number",
    "of_process",
    "own",
    "rank_in",
    "short",
    "text_fields",
]

#: Characters of a name as JSON writes it.
MAX_TEXT = 128
#: ``job_from`` of a name that no variable gives.
PROCESS = "process"
#: What a launcher gives the processes that it starts. Without any of these a process has none.
_OF_LAUNCHER = ("RANK", "LOCAL_RANK", "TORCHELASTIC_RUN_ID")
#: Slurm's numbers of the steps that are no srun: batch, extern, interactive.
_NO_STEP = 4294967000
#: What JSON writes as it is.
_PLAIN = re.compile(r"[ !#-\[\]-~]*\Z")
_TASKS = re.compile(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?\Z")


@dataclass(frozen=True, slots=True)
class Identity:
    """A value that nobody knows is None. *restart*: how often torchrun has started the workers
    again. *started*: when the process began, in seconds since the epoch."""

    job: str
    job_from: str
    agent: str | None = None
    restart: int | None = None
    world_size: int | None = None
    rank: int | None = None
    local_rank: int | None = None
    local_world_size: int | None = None
    group_rank: int | None = None
    host: str | None = None
    started: float | None = None


_FIELDS = tuple(field.name for field in fields(Identity))


def number(text: str | None) -> int | None:
    """A variable's value; None if it is no number that a rank or a count can be."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None


def _is_task(environment: Mapping[str, str]) -> bool:
    """Whether Slurm started the process as one of several tasks."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    return (number(tasks) or 0) > 1 and number(environment.get("SLURM_PROCID")) is not None


def rank_in(environment: Mapping[str, str], *, local: bool = False) -> int | None:
    """RANK or LOCAL_RANK. Where several tasks of Slurm have no RANK: Slurm's own number. Under
    Lightning's own launcher, which sets no RANK: on the first node LOCAL_RANK."""
    rank = number(environment.get("LOCAL_RANK" if local else "RANK"))
    if rank is not None or environment.get("RANK"):
        return rank
    if _is_task(environment):
        return number(environment.get("SLURM_LOCALID" if local else "SLURM_PROCID"))
    if environment.get("NODE_RANK") == "0" and environment.get("WORLD_SIZE"):
        return number(environment.get("LOCAL_RANK"))
    return None


def _name(environment: Mapping[str, str], host: str) -> tuple[str, str] | None:
    """The job's name and the variable that gives it."""
    given = environment.get("WORKERSERVER_JOB", "").strip()
    if given:
        return given, "WORKERSERVER_JOB"
    given = environment.get("TORCHELASTIC_RUN_ID", "")
    if given and given != "none":
        return given, "TORCHELASTIC_RUN_ID"
    slurm = environment.get("SLURM_JOB_ID", "")
    if slurm:
        task = environment.get("SLURM_ARRAY_TASK_ID", "")
        if task:
            slurm = f"{environment.get('SLURM_ARRAY_JOB_ID', slurm)}_{task}"
        step = number(environment.get("SLURM_STEP_ID"))
        if step is not None and step < _NO_STEP:
            slurm += f".{step}"
        return f"slurm-{slurm}", "SLURM_JOB_ID"
    index = environment.get("JOB_COMPLETION_INDEX", "")
    if index and environment.get("KUBERNETES_SERVICE_HOST"):
        # The pod of a Job is called JOB-INDEX-RANDOM, its host name JOB-INDEX.
        return re.sub(rf"-{re.escape(index)}(-[a-z0-9]+)?\Z", "", host), "JOB_COMPLETION_INDEX"
    address, port = environment.get("MASTER_ADDR", ""), environment.get("MASTER_PORT", "")
    if address and port:
        return f"{address}:{port}", "MASTER_ADDR"
    return None


def _local_world_size(environment: Mapping[str, str]) -> int | None:
    size = number(environment.get("LOCAL_WORLD_SIZE"))
    if size is not None or not _is_task(environment):
        return size
    node = number(environment.get("SLURM_NODEID"))
    counts: list[int] = []
    for part in (environment.get("SLURM_STEP_TASKS_PER_NODE") or "").split(","):
        match = _TASKS.match(part.strip())
        if match is None or len(counts) > (node or 0):
            break
        counts += [int(match[1])] * min(int(match[2] or 1), 1 << 16)
    return counts[node] if node is not None and node < len(counts) else None


def _world_size(environment: Mapping[str, str]) -> int | None:
    size = number(environment.get("WORLD_SIZE"))
    if size is None and not environment.get("RANK") and _is_task(environment):
        size = number(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS"))
    return size


def _agent(pid: int, started_with: Mapping[str, str], parent: int | None) -> str | None:
    """*parent*: the pid of who started it by multiprocessing."""
    if parent is None:
        launched = any(started_with.get(name) for name in _OF_LAUNCHER) or _is_task(started_with)
        stat = stat_of(pid) if launched else None
        parent = pid if stat is None else stat.parent
    stat = stat_of(parent)
    return None if stat is None else f"{parent}:{stat.ticks}"


def _identity(
    environment: Mapping[str, str], host: str, agent: str | None, program: str, ticks: int | None
) -> Identity:
    named = _name(environment, host)
    who = (agent or "").partition(":")[0]
    job, job_from = named or (f"{program}-{who}" if who else program, PROCESS)
    return Identity(
        job=job,
        job_from=job_from,
        agent=agent,
        restart=number(environment.get("TORCHELASTIC_RESTART_COUNT")),
        world_size=_world_size(environment),
        rank=rank_in(environment),
        local_rank=rank_in(environment, local=True),
        local_world_size=_local_world_size(environment),
        group_rank=number(environment.get("GROUP_RANK")),
        host=host,
        started=None if ticks is None else born(ticks),
    )


# ---- of this process


class _Own:
    """What does not change while the process lives."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        stat = stat_of(self.pid)
        self.ticks = None if stat is None else stat.ticks
        process = sys.modules.get("multiprocessing.process")
        parent = process.parent_process() if process is not None else None
        self.spawned = parent is not None
        self.agent = _agent(
            self.pid, environment_of("self"), parent.pid if parent is not None else None
        )
        self.host = socket.gethostname()


_own: _Own | None = None
_program: str | None = None


def name_program(name: str) -> None:
    """What runs here, where ``sys.argv`` does not tell it: under ``workerserver run``."""
    global _program
    _program = os.path.basename(name)


def own() -> Identity:
    """Who this process is, as far as it is known by now. Never imports torch."""
    global _own
    if _own is None or _own.pid != os.getpid():
        _own = _Own()
    environment: Mapping[str, str] = os.environ
    if _own.spawned and not environment.get("RANK"):
        # The numbers of Slurm and Lightning are those of the process that spawned this one.
        environment = {
            name: text
            for name, text in environment.items()
            if name not in ("SLURM_PROCID", "SLURM_LOCALID", "NODE_RANK")
        }
    program = _program or os.path.basename(sys.argv[0] if sys.argv else "") or "python"
    identity = _identity(environment, _own.host, _own.agent, program, _own.ticks)
    if identity.rank is None or identity.world_size is None:
        rank, size = _in_process_group()
        identity = replace(
            identity,
            rank=rank if identity.rank is None else identity.rank,
            world_size=size if identity.world_size is None else identity.world_size,
        )
    return identity


def is_spawned() -> bool:
    """Whether multiprocessing started this process: then the launcher's variables, if there are
    any, are those of the process that started it."""
    own()
    return _own is not None and _own.spawned


def _in_process_group() -> tuple[int | None, int | None]:
    """Rank and world size as torch.distributed knows them."""
    module = imported("torch.distributed.distributed_c10d")
    try:
        if module is not None and module.is_initialized():
            return int(module.get_rank()), int(module.get_world_size())
    except Exception:  # the group is being destroyed, say
        return None, None
    return None, None


# ---- of another process


def of_process(pid: int, environment: Mapping[str, str]) -> Identity:
    """Who process *pid* is, from the *environment* that it was started with."""
    stat = stat_of(pid)
    words = words_of(pid)
    spawned = any(word.startswith("--multiprocessing-fork") for word in words)
    parent = stat.parent if spawned and stat is not None else None
    program = next((os.path.basename(word) for word in words[1:] if not word.startswith("-")), "")
    return _identity(
        environment,
        socket.gethostname(),
        _agent(pid, environment, parent),
        program or "python",
        None if stat is None else stat.ticks,
    )


# ---- as text


def _cut(text: str) -> str:
    """*text* as JSON writes it, of MAX_TEXT characters at most, without the quotes."""
    if len(text) <= MAX_TEXT and _PLAIN.match(text):
        return text
    whole = json.dumps(text)[1:-1]
    if len(whole) <= MAX_TEXT:
        return whole
    parts: list[str] = []
    left = MAX_TEXT
    for character in text:
        part = json.dumps(character)[1:-1]
        left -= len(part)
        if left < 0:
            break
        parts.append(part)
    return "".join(parts)


def short(identity: Identity) -> dict[str, Any]:
    """Its fields, the texts cut."""
    return {name: json.loads(value) for name, value in _as_json(identity)}


def text_fields(identity: Identity) -> bytes:
    """As ``/healthz`` tells it: fields of a JSON object, each with a comma before it. The rank is
    told there already."""
    told = (f',"{name}":{value}' for name, value in _as_json(identity) if name != "rank")
    return "".join(told).encode("ascii")


def _as_json(identity: Identity) -> Iterator[tuple[str, str]]:
    for name in _FIELDS:
        value = getattr(identity, name)
        text = "null" if value is None else str(value)
        yield name, f'"{_cut(value)}"' if isinstance(value, str) else text
