"""Real jobs on a machine of their own.

The argument is the name of a scene. The script prints one JSON object with what the commands said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.jobs.machine import TRAIN, Jobs, Said, begun, isolate, until, workerserver
from support.lifecycle import environment, free_port
from support.torchrun import end

STRANGER = 54321
FOLDER = Path("/tmp/job")


@contextlib.contextmanager
def decoys() -> Iterator[list[str]]:
    """Listeners that are no workers, in all places where one looks. Gives who was connected to."""
    met: list[str] = []
    run = Path(f"/tmp/workerserver-{os.geteuid()}")
    run.mkdir(mode=0o700, exist_ok=True)
    places: list[tuple[int, Any]] = [
        (socket.AF_UNIX, str(run / "other.sock")),
        (socket.AF_UNIX, str(run / f"rank7-{os.getpid()}.sock")),
        (socket.AF_UNIX, "/tmp/decoy.sock"),
        (socket.AF_INET, ("127.0.0.1", 0)),
    ]

    def accept(listener: socket.socket, name: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                listener.accept()[0].close()
                met.append(name)

    with contextlib.ExitStack() as stack:
        for family, address in places:
            listener = stack.enter_context(socket.socket(family))
            listener.bind(address)
            listener.listen()
            name = str(listener.getsockname())
            threading.Thread(target=accept, args=(listener, name), daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        # A process that was started with the variable, while another one listens there.
        sleeper = subprocess.Popen(
            ["sleep", "1000"], env=environment(TORCH_WORKER_SERVER_SOCKET="/tmp/decoy.sock")
        )
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        yield met


@contextlib.contextmanager
def job_of_another_user() -> Iterator[int]:
    from workerserver import WorkerServer, start

    WorkerServer("/tmp/warm.sock").shutdown()  # that user can't read our modules
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        start()
        os.write(writing, b"x")
        time.sleep(1000)
        os._exit(0)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"x"
        yield pid
    finally:
        os.close(reading)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# ---- the scenes


def two_jobs(jobs: Jobs) -> Said:
    """One healthy, under the decorator; one hung, under ``workerserver run``; strangers."""
    healthy, one = jobs.torchrun(2, TORCH_WORKER_SERVER_SOCKET=f"{FOLDER}/rank{{rank}}.sock")
    _, two = jobs.torchrun(2, "-m", "workerserver", "run", HANG="1", WORKERSERVER_JOB="hung job")
    with decoys() as met, job_of_another_user() as stranger:
        begun(one, 2)
        pids = begun(two, 2)
        return {
            "diagnose": until(1, "diagnose", "--json"),
            "text": workerserver("diagnose"),
            "head": subprocess.run(
                f"{sys.executable} -m workerserver diagnose | head -1; echo ${{PIPESTATUS[0]}}",
                shell=True,
                executable="/bin/bash",
                env=environment(),
                capture_output=True,
                text=True,
                check=False,
            ).stdout.splitlines(),
            "one": workerserver("diagnose", "--job", "hung job", "--json"),
            "no such job": workerserver("diagnose", "--job", "other"),
            "pid": workerserver("diagnose", str(pids[0]), "--json"),
            "launcher": workerserver("diagnose", str(healthy.pid), "--json"),
            "mixed": workerserver(
                "diagnose",
                "--json",
                str(FOLDER),
                f"/tmp/workerserver-{os.geteuid()}/rank[01]-*.sock",
            ),
            "ls": workerserver("ls", "--json"),
            "stacks": workerserver("stacks", "--json"),
            "fr": workerserver("fr", "--json"),
            "ping": workerserver("ping", "--json"),
            "top": workerserver("top", "--count", "1"),
            "watch": workerserver("watch", "--count", "1", "--folder", "/tmp/watched"),
            "pids": pids,
            "met": list(met),
            "stranger": stranger,
            "logs": [(each / "log").read_text() for each in (one, two)],
        }


def restarted(jobs: Jobs) -> Said:
    """torchrun starts the workers again, and then one hangs."""
    _, folder = jobs.torchrun(
        2,
        restarts=1,
        watch=True,
        FAIL_ONCE="1",
        HANG="0",
        TORCH_WORKER_SERVER_SOCKET=f"{FOLDER}/{{pid}}.sock",
    )
    # In the first start rank 0 hangs too, until torchrun ends it.
    pids = begun(folder, 2, restart=1)
    said = until(1, "diagnose", "--json")
    return {"diagnose": said, "ls": workerserver("ls", "--json"), "pids": pids}


def one_after_the_other(jobs: Jobs) -> Said:
    """A job of four is killed; a job of two follows in the same folder; its rank 1 is killed."""
    where: Any = {"TORCH_WORKER_SERVER_SOCKET": f"{FOLDER}/rank{{rank}}.sock"}
    template = where["TORCH_WORKER_SERVER_SOCKET"]
    first, folder = jobs.torchrun(4, **where)
    begun(folder, 4)
    end(first)
    said: Said = {
        "ended": workerserver("diagnose", "--json"),
        "ended by template": workerserver("diagnose", template),
        "ended by folder": workerserver("stacks", str(FOLDER)),
        "ended ping": workerserver("ping", str(FOLDER)),
        "ended ls": workerserver("ls", str(FOLDER)),
        "ended call": workerserver("call", "ping", str(FOLDER)),
    }
    _, folder = jobs.torchrun(2, **where, HOLD="1")
    pids = begun(folder, 2)
    said["swept"] = sorted(each.name for each in FOLDER.iterdir())
    with socket.socket(socket.AF_UNIX) as left:  # what a worker without a record leaves
        left.bind(str(FOLDER / "rank3.sock"))
    said["healthy"] = until(0, "diagnose", template, "--json")
    said["healthy text"] = workerserver("diagnose", template)
    said["healthy by itself"] = workerserver("diagnose", "--json")
    os.kill(pids[1], signal.SIGKILL)
    said["gone"] = until(1, "diagnose", "--json")
    said["gone by template"] = until(1, "diagnose", template, "--json")
    said["pids"] = pids
    return said


def launches(jobs: Jobs) -> Said:
    """mp.spawn, a plain script, stock torch workers, and a name that nobody has."""
    where: Any = {"TORCH_WORKER_SERVER_SOCKET": f"{FOLDER}/rank{{rank}}.sock"}
    port = str(free_port())
    _, spawned = jobs.start([TRAIN, "spawn"], HANG="1", PORT=port, **where)
    pids = begun(spawned, 2)
    said: Said = {
        "spawn": until(1, "diagnose", "--json"),
        "spawn by template": until(1, "diagnose", where["TORCH_WORKER_SERVER_SOCKET"], "--json"),
        "spawn sockets": sorted(each.name for each in FOLDER.iterdir()),
        "spawn pids": pids,
        "spawn ls": workerserver("ls", "--json"),
    }
    _, alone = jobs.start(
        [TRAIN, "alone"], TORCH_WORKER_SERVER_SOCKET="/tmp/new/alone.sock", WORKERSERVER_JOB="alone"
    )
    said["alone pid"] = begun(alone, 1)[0]
    said["alone"] = workerserver("diagnose", "--job", "alone", "--json")
    said["alone log"] = (alone / "log").read_text()
    return said


def mixed_servers(jobs: Jobs) -> Said:
    """Two of our workers and two of torch's. Rank 3, which is torch's, hangs."""
    where: Any = {"TORCH_WORKER_SERVER_SOCKET": f"{FOLDER}/rank{{rank}}.sock"}
    _, folder = jobs.torchrun(4, **where, STOCK="23", HANG="3")
    pids = begun(folder, 4)
    return {"diagnose": until(1, "diagnose", str(FOLDER), "--json"), "pids": pids}


SCENES: dict[str, Callable[[Jobs], Said]] = {
    each.__name__: each
    for each in (two_jobs, restarted, one_after_the_other, launches, mixed_servers)
}


def main() -> None:
    isolate()
    FOLDER.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        said = SCENES[sys.argv[1]](Jobs(stack))
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
