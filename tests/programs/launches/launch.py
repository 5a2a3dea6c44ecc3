"""A job, started as users start it, in which a rank hangs; and what the first command says of it.

The argument is the name of a launch. The script prints one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import NamedTuple

from support.jobs.machine import Jobs, begun, isolate, until, workerserver
from support.lifecycle import free_port

HERE = Path(__file__).parent


class Launch(NamedTuple):
    """*words* behind ``python``; how many *ranks* train, and which one hangs. *tries*: how often it
    is started if it ends before that."""

    words: tuple[str, ...]
    ranks: int = 2
    hangs: int = 1
    tries: int = 1


def program(name: str) -> str:
    return str(HERE / f"{name}.py")


def torchrun() -> tuple[str, ...]:
    port = str(free_port())
    return ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)


def accelerate(processes: int) -> tuple[str, ...]:
    # Several processes without a GPU: as for GPUs, for "--cpu" wants MPI. The script has cpu=True.
    kind = "--cpu" if processes == 1 else "--multi_gpu"
    words: tuple[str, ...] = (kind, "--num_processes", str(processes), "--num_machines", "1")
    words += ("--mixed_precision", "no", "--dynamo_backend", "no")
    words += ("--main_process_port", str(free_port()))
    return ("-m", "accelerate.commands.launch", *words, program("with_accelerate"))


def launches() -> dict[str, Launch]:
    return {
        "python": Launch((program("plain"),), ranks=1, hangs=0),
        "lightning under torchrun": Launch((*torchrun(), program("with_lightning"))),
        "lightning": Launch((program("with_lightning"),)),
        "trainer under torchrun": Launch((*torchrun(), program("with_transformers"))),
        "trainer": Launch((program("with_transformers"),), ranks=1, hangs=0),
        "accelerate, one process": Launch(accelerate(1), ranks=1, hangs=0),
        "accelerate, two processes": Launch(accelerate(2)),
        # Ray gives its node 30 s to start, whatever is set. A busy machine needs more, at first.
        "ray": Launch((program("with_ray"),), tries=4),
        "notebook": Launch((program("with_notebook"),), ranks=1, hangs=0),
    }


def trained(launch: Launch, jobs: Jobs) -> tuple[list[int], Path]:
    """The pids of the ranks once all of them train, and the job's folder."""
    for left in reversed(range(launch.tries)):
        launcher, folder = jobs.start(launch.words, HANG=str(launch.hangs))
        try:
            # A framework such as Ray starts a dozen processes, which a busy machine may starve.
            return begun(folder, launch.ranks, seconds=900, launcher=launcher), folder
        except AssertionError:
            if launcher.poll() is None or not left:
                raise
    raise AssertionError("not tried at all")


def main() -> None:
    isolate()
    launch = launches()[sys.argv[1]]
    with contextlib.ExitStack() as stack:
        pids, folder = trained(launch, Jobs(stack))
        said = {
            "diagnose": until(1, "diagnose", "--json"),
            "text": workerserver("diagnose"),
            "ls": workerserver("ls", "--json"),
            "pids": pids,
            "log": (folder / "log").read_text(errors="replace"),
        }
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
