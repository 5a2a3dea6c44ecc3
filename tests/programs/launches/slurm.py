"""A real Slurm on a machine of its own: one controller, two nodes, and the recipes of
docs/howto/slurm.md to the letter, apart from the number of tasks.

The argument is the name of a scene. The script prints one JSON object with what the commands said.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from support.jobs import machine
from support.jobs.machine import Said, isolate
from support.lifecycle import ROOT, environment, free_port
from support.torchrun import end
from support.waiting import wait_until

HERE = Path(__file__).parent
FOLDER = Path("/tmp/slurm")
BIN = FOLDER / "bin"
LOG = FOLDER / "job.log"
TOKEN = str(FOLDER / "job.token")
CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldPort={controller}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,defer
JobRequeue=1
ReturnToService=2
NodeName=n1 NodeAddr=127.0.0.1 Port={first} CPUs=8
NodeName=n2 NodeAddr=127.0.0.1 Port={second} CPUs=8
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""
#: What the recipes call, with the interpreter of this test.
PROGRAMS = {
    "python": "",
    "torchrun": "-m torch.distributed.run",
    "workerserver": "-m workerserver",
}


def settings(**more: str) -> dict[str, str]:
    usual = {
        "SLURM_CONF": str(FOLDER / "slurm.conf"),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "HOME": str(FOLDER),
        "BEGUN": str(FOLDER / "begun"),
        "OMP_NUM_THREADS": "1",
    }
    return environment(**{**usual, **more})


def start_slurm(stack: contextlib.ExitStack) -> None:
    for each in (FOLDER, FOLDER / "state", BIN, FOLDER / "begun"):
        each.mkdir()
    host = socket.gethostname().partition(".")[0]
    ports = {name: free_port() for name in ("controller", "first", "second")}
    (FOLDER / "slurm.conf").write_text(CONF.format(host=host, folder=FOLDER, **ports))
    # The recipes ask for the address of the first node.
    hosts = FOLDER / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text() + "127.0.0.1 n1 n2\n")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    for name, words in PROGRAMS.items():
        (BIN / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (BIN / name).chmod(0o755)
    # Each node has a host name of its own.
    node = "unshare --uts sh -c 'hostname {0}; exec slurmd -D -N {0}'"
    for name, command in (
        ("slurmctld", "exec slurmctld -D"),
        ("n1", node.format("n1")),
        ("n2", node.format("n2")),
    ):
        log = stack.enter_context((FOLDER / f"{name}.log").open("wb"))
        daemon = subprocess.Popen(["sh", "-c", command], env=settings(), stdout=log, stderr=log)
        stack.callback(end, daemon)
    wait_until(lambda: said("sinfo", "-h", "-o", "%D %t")["said"] == ["2 idle"], 60)


def said(*words: str, **more: str) -> Said:
    done = subprocess.run(
        words, env=settings(**more), capture_output=True, text=True, timeout=300, check=False
    )
    return {
        "status": done.returncode,
        "said": done.stdout.splitlines(),
        "error": done.stderr,
    }


def until(status: int, *words: str) -> Said:
    return machine.until(status, *words, run=with_token)


def with_token(*words: str) -> Said:
    return said(*words, WORKERSERVER_TOKEN_FILE=TOKEN)


def recipe(title: str, kind: str) -> list[str]:
    """The blocks of code below a heading of the page."""
    page = (ROOT / "docs/howto/slurm.md").read_text()
    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
    assert match is not None
    return re.findall(rf"^```{kind}\n(.*?)^```$", match[1], re.M | re.S)


def script(title: str, nodes: int = 2) -> Path:
    """The recipe as a script, for two ranks on each node."""
    (text,) = recipe(title, "bash")
    for old, new in (
        ("--nodes=2", f"--nodes={nodes}"),
        ("--ntasks-per-node=8", "--ntasks-per-node=2"),
        ("--nproc-per-node 8", "--nproc-per-node 2"),
        ("train.py", str(HERE / "on_slurm.py")),
    ):
        text = text.replace(old, new)
    place = FOLDER / "recipe.sh"
    place.write_text(text)
    return place


def submit(path: Path, *options: str, **more: str) -> str:
    """The number of the job."""
    words = ["sbatch", "--parsable", "-O", "-o", str(LOG), "--open-mode=append", *options]
    answer = said(*words, str(path), **more)
    assert answer["status"] == 0, answer
    return str(answer["said"][0])


def begun(ranks: int, name: str = "0-0") -> None:
    folder = FOLDER / "begun" / name
    try:
        wait_until(lambda: len(list(folder.glob("*-0"))) == ranks, 250)
    except AssertionError:
        print(said("squeue", "-l"), LOG.read_text(errors="replace"), file=sys.stderr)
        raise


def ask(job: str) -> list[str]:
    """The page's command that asks from inside the job."""
    (text,) = recipe("Ask", "")
    return ["bash", "-c", text.replace("1200", job)]


def from_everywhere(job: str) -> Said:
    """The verdict by the recipe, and by the plain command on a node of the job."""
    inside = ["srun", "--jobid", job, "--overlap", "-n1", "-N1", "workerserver", "diagnose"]
    return {
        "recipe": until(1, *ask(job)),
        "in the job": until(1, *inside),
        "outside": until(1, "workerserver", "diagnose"),
        "log": LOG.read_text(errors="replace"),
    }


def save_token() -> None:
    page = (ROOT / "docs/howto/slurm.md").read_text()
    (text,) = re.findall(r"^\(umask.*$", page, re.M)
    subprocess.run(["bash", "-c", text.replace("~", str(FOLDER))], env=settings(), check=True)


# ---- the scenes


def a_task_for_each_rank() -> Said:
    job = submit(script("One task for each rank"), HANG="2")
    begun(4)
    return {**from_everywhere(job), "job": job}


def torchrun_as_the_one_task() -> Said:
    job = submit(script("torchrun as the one task of each node"), HANG="2")
    begun(4)
    return {**from_everywhere(job), "job": job}


def salloc(stack: contextlib.ExitStack) -> Said:
    """The same script inside an allocation that a person holds."""
    path = script("One task for each rank")
    words = ["salloc", "-O", "--nodes=2", "--ntasks-per-node=2", "bash", str(path)]
    with LOG.open("wb") as log:
        process = subprocess.Popen(words, env=settings(HANG="2"), stdout=log, stderr=log)
    stack.callback(end, process)
    begun(4)
    (job,) = said("squeue", "-h", "-o", "%i")["said"]
    return {**from_everywhere(job), "job": job}


def an_array() -> Said:
    """Two tasks of an array on the two nodes; the second one hangs."""
    path = script("One task for each rank", nodes=1)
    job = submit(path, "--array=0-1", HANG="1", HANG_TASK="1")
    begun(2, "0-0")
    begun(2, "1-0")
    return {
        "outside": until(1, "workerserver", "diagnose"),
        "healthy": until(0, "workerserver", "diagnose", "--job", f"slurm-{job}_0.0"),
        "hung": until(1, "workerserver", "diagnose", "--job", f"slurm-{job}_1.0"),
        "log": LOG.read_text(errors="replace"),
        "job": job,
    }


def free_decade() -> str:
    """A port without its last digit: all ten ports are free."""
    for first in range(25000, 32000, 10):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + 10):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return str(first // 10)
    raise AssertionError("no free ports")


def known_ports() -> Said:
    """``--slurm``: jobs of one node with known ports. A second job has the same ones: its ranks
    train without a server. A third one has a collector. Only one task is in the step that asks."""
    path = script("torchrun as the one task of each node", nodes=1)
    text = path.read_text()
    decade = free_decade()
    ports = "0.0.0.0:" + decade + "{local_rank}"
    assert "WORKERSERVER_TCP=0.0.0.0:0" in text
    path.write_text(text.replace("WORKERSERVER_TCP=0.0.0.0:0", f"WORKERSERVER_TCP='{ports}'"))

    def asked(status: int, job: str, *more: str, **variables: str) -> Said:
        words = ["srun", "--jobid", job, "--overlap", "-n1", "-N1", "workerserver", "diagnose"]
        return machine.until(
            status,
            *words,
            *more,
            run=lambda *words: said(*words, **variables, WORKERSERVER_TOKEN_FILE=TOKEN),
        )

    first = submit(path, "-w", "n1", HANG="1", BEGUN=str(FOLDER / "begun/first"))
    begun(2, "first/0-0")
    answers: Said = {
        "by template": asked(1, first, "--slurm", WORKERSERVER_TCP=ports),
        "by environment": asked(1, first, WORKERSERVER_TCP=ports),
        "by range": asked(1, first, "--slurm", "--port", decade + "[0-1]"),
    }
    second = submit(path, "-w", "n1", HANG="-1", BEGUN=str(FOLDER / "begun/second"))
    begun(2, "second/0-0")
    answers["another job's"] = asked(2, second, "--slurm", WORKERSERVER_TCP=ports)
    sockets = FOLDER / "sockets"
    sockets.mkdir(mode=0o700)
    collector = f"0.0.0.0:{decade}9"
    path.write_text(
        text.replace(
            "WORKERSERVER_TCP=0.0.0.0:0",
            f"WORKERSERVER_COLLECTOR={collector} "
            f"TORCH_WORKER_SERVER_SOCKET={sockets}/{{rank}}.sock",
        )
    )
    third = submit(path, "-w", "n1", HANG="1", BEGUN=str(FOLDER / "begun/third"))
    begun(2, "third/0-0")
    answers["by collector"] = asked(1, third, "--slurm", WORKERSERVER_COLLECTOR=collector)
    answers["by its port"] = asked(
        1, third, "--slurm", "--port", decade + "9", WORKERSERVER_COLLECTOR=collector
    )
    return {**answers, "jobs": [first, second, third], "log": LOG.read_text(errors="replace")}


def a_requeue() -> Said:
    """A job that hangs is queued again, and hangs again."""
    job = submit(script("One task for each rank"), "--requeue", HANG="2")
    begun(4)
    first = until(1, *ask(job))
    assert said("scontrol", "requeue", job)["status"] == 0
    begun(4, "0-1")
    return {"first": first, **from_everywhere(job), "job": job}


def before_the_limit() -> Said:
    """The signal that Slurm sends before the time limit."""
    job = submit(script("Before the time limit"), "--chdir", str(FOLDER), HANG="2")
    begun(4)
    until(1, *ask(job))  # the hang is old enough
    verdict = FOLDER / f"verdict-{job}.txt"
    assert said("scancel", "--batch", "--signal=USR1", job)["status"] == 0
    wait_until(lambda: verdict.exists() and "ranks answered" in verdict.read_text(), 120)
    return {
        "verdict": {"status": 1, "said": verdict.read_text().splitlines()},
        "states": said("squeue", "-h", "-o", "%t")["said"],
    }


SCENES: dict[str, Callable[[], Said]] = {
    each.__name__: each
    for each in (
        a_task_for_each_rank,
        torchrun_as_the_one_task,
        an_array,
        known_ports,
        a_requeue,
        before_the_limit,
    )
}


def main() -> None:
    isolate()
    with contextlib.ExitStack() as stack:
        start_slurm(stack)
        save_token()
        name = sys.argv[1]
        answers = salloc(stack) if name == "salloc" else SCENES[name]()
        for job in said("squeue", "-h", "-o", "%A")["said"]:
            said("scancel", "--signal=KILL", "--full", job)
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
