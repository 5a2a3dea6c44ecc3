"""Who a process is: by the variables of each launcher, and by what becomes known later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.lifecycle import ask, environment
from support.waiting import wait_until

from workerserver.job import proc
from workerserver.job.identity import Identity, of_process, own, rank_in, text_fields
from workerserver.process._pulse import set_identity

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "29500",
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "GROUP_RANK": "1",
}
SLURM = {
    "SLURM_JOB_ID": "1203",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
}


@pytest.mark.parametrize(
    ("variables", "name", "source"),
    [
        ({**TORCHRUN, "WORKERSERVER_JOB": " mine ", **SLURM}, "mine", "WORKERSERVER_JOB"),
        ({**TORCHRUN, "TORCHELASTIC_RUN_ID": "run7", **SLURM}, "run7", "TORCHELASTIC_RUN_ID"),
        ({**TORCHRUN, **SLURM}, "slurm-1203.0", "SLURM_JOB_ID"),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290"}, "slurm-7", "SLURM_JOB_ID"),
        (
            {**SLURM, "SLURM_ARRAY_JOB_ID": "1200", "SLURM_ARRAY_TASK_ID": "3"},
            "slurm-1200_3.0",
            "SLURM_JOB_ID",
        ),
        (
            {**TORCHRUN, "JOB_COMPLETION_INDEX": "2", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
            "trainer",
            "JOB_COMPLETION_INDEX",
        ),
        ({**TORCHRUN, "JOB_COMPLETION_INDEX": "2"}, "head:29500", "MASTER_ADDR"),
        (TORCHRUN, "head:29500", "MASTER_ADDR"),
        ({"MASTER_ADDR": "head"}, "python-PID", "process"),
    ],
)
def test_the_name_of_a_job(
    variables: dict[str, str], name: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "trainer-2")
    monkeypatch.setattr("workerserver.job.identity.words_of", lambda pid: ["python"])
    found = of_process(os.getpid(), variables)
    assert (found.job, found.job_from) == (name.replace("PID", str(os.getpid())), source)


def test_the_numbers_of_torchrun() -> None:
    found = of_process(os.getpid(), TORCHRUN)
    assert (found.restart, found.world_size, found.rank) == (2, 16, 9)
    assert (found.local_rank, found.local_world_size, found.group_rank) == (1, 8, 1)
    parent = proc.stat_of(os.getppid())
    assert parent is not None
    assert found.agent == f"{os.getppid()}:{parent.ticks}"


def test_the_numbers_of_slurm() -> None:
    """Where RANK is not set. A single task, such as torchrun itself, is no rank."""
    found = of_process(os.getpid(), SLURM)
    assert (found.world_size, found.rank, found.local_rank) == (8, 5, 1)
    assert found.local_world_size == 4
    alone = {**SLURM, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    assert of_process(os.getpid(), alone).rank is None
    assert rank_in({**SLURM, "RANK": "3"}) == 3
    assert rank_in({"RANK": "-1"}) is None


def test_the_rank_under_lightnings_own_launcher() -> None:
    """It sets no RANK, and how many ranks an earlier node has is not told."""
    first = {"NODE_RANK": "0", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    assert rank_in(first) == 1
    assert rank_in(first, local=True) == 1
    assert rank_in({**first, "NODE_RANK": "1"}) is None
    assert rank_in({**first, "RANK": "3"}) == 3
    assert rank_in({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}) is None


def test_a_process_without_a_launcher_is_its_own_agent() -> None:
    stat = proc.stat_of(os.getpid())
    assert stat is not None
    assert of_process(os.getpid(), {}).agent == f"{os.getpid()}:{stat.ticks}"


EVIL = 'a"b\\c\x1b[2J\n\x00é\U0001f600\ud800'


@pytest.mark.parametrize("text", ["x" * 500, EVIL * 20, '"' * 500, "\x00" * 500, "é" * 500])
def test_texts_are_escaped_and_bounded(text: str) -> None:
    texts: Any = dict.fromkeys(("job", "job_from", "agent", "host"), text)
    names = ("restart", "world_size", "rank", "local_rank", "local_world_size", "group_rank")
    numbers: Any = dict.fromkeys(names, 2**62)
    identity = Identity(**texts, **numbers, started=1e11)
    data = text_fields(identity)
    assert data.isascii()
    assert len(data) <= 768
    set_identity(data)
    set_identity(b"")
    fields = json.loads(b"{" + data[1:] + b"}")
    for name in ("job", "job_from", "agent", "host"):
        assert text.startswith(fields[name])
        assert fields[name]
        assert len(json.dumps(fields[name])) - 2 <= 128
    with pytest.raises(ValueError, match="769"):
        set_identity(b"x" * 769)


def test_what_proc_tells(tmp_path: Path) -> None:
    stat = proc.stat_of(os.getpid())
    assert stat is not None
    assert stat.parent == os.getppid()
    assert proc.stat_of(2**22 + 1) is None
    assert proc.environment_of(2**22 + 1) == {}
    assert proc.environment_of("self")["HOME"] == os.environ["HOME"]
    with open("/proc/stat", encoding="utf-8") as file:
        (booted,) = (line.split()[1] for line in file if line.startswith("btime "))
    assert abs((proc.born(0) or 0.0) - int(booted)) <= 1  # the clock may have been set meanwhile
    assert not proc.is_elsewhere("net", os.getpid())
    assert proc.own_pid_in(os.getpid()) == os.getpid()
    with subprocess.Popen(["true"]) as ended:
        wait_until(lambda: proc.stat_of(ended.pid) is None)  # a zombie is no process


def test_the_process_tells_it_to_all(short_path: Path) -> None:
    code = (
        "import os, sys, json\n"
        "from workerserver import WorkerServer\n"
        "from workerserver.job.identity import own\n"
        "from dataclasses import asdict\n"
        "with WorkerServer(sys.argv[1]):\n"
        "    print(json.dumps(asdict(own())), flush=True)\n"
        "    input()\n"
    )
    path = str(short_path / "s")
    with subprocess.Popen(
        [sys.executable, "-c", code, path],
        env=environment(**TORCHRUN, WORKERSERVER_JOB='a "job"'),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            itself = json.loads(process.stdout.readline())
            told = json.loads(ask(path, "/healthz", "GET")[1])
            outside = of_process(process.pid, proc.environment_of(process.pid))
            process.communicate("\n", timeout=60)
        finally:
            process.kill()
    assert itself["job"] == 'a "job"'
    assert {name: told[name] for name in itself} == itself
    assert {name: getattr(outside, name) for name in itself} == itself


LATER = """
import json, os, sys, time, urllib.request
sys.path.insert(0, sys.argv[2])
from support.lifecycle import ask
from workerserver import WorkerServer

def health():
    return json.loads(ask(sys.argv[1], "/healthz", "GET")[1])

with WorkerServer(sys.argv[1]):
    before = health()
    {how}
    end = time.monotonic() + 60
    while health()["rank"] is None and time.monotonic() < end:
        time.sleep(0.1)
    after = health()
    folder = os.environ["TMPDIR"] + f"/workerserver-{{os.geteuid()}}"
    (name,) = os.listdir(folder)
    with open(f"{{folder}}/{{name}}") as file:
        record = json.load(file)
    print(json.dumps([before, after, record]))
"""
WAYS = {
    "environment": 'os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="h", MASTER_PORT="1")',
    "process group": (
        "import torch.distributed as dist; "
        'dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)'
    ),
}


@pytest.mark.parametrize("transport", ["native", "uvloop"])
@pytest.mark.parametrize("way", WAYS)
def test_the_rank_may_come_later(way: str, transport: str, short_path: Path) -> None:
    """Also in the record. The I/O thread tells it without the GIL, once the loop has seen it."""
    if "torch" in WAYS[way] and find_spec("torch") is None:
        pytest.skip("needs torch")
    done = subprocess.run(
        [
            *(sys.executable, "-c", LATER.format(how=WAYS[way])),
            *(str(short_path / "s"), str(Path(__file__).parents[1])),
        ],
        env=environment(
            TMPDIR=str(short_path), WORKERSERVER_GIL_WATCH="1", WORKERSERVER_TRANSPORT=transport
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    before, after, record = json.loads(done.stdout)
    assert (before["rank"], before["world_size"]) == (None, None)
    assert (after["rank"], after["world_size"]) == (0, 1)
    assert (record["rank"], record["world_size"]) == (0, 1)
    if way == "environment":
        assert (after["job"], before["job_from"]) == ("h:1", "process")


def test_own_costs_no_import() -> None:
    before = set(sys.modules)
    assert isinstance(own(), Identity)
    assert not {name for name in set(sys.modules) - before if name.startswith("torch")}
