"""A torchrun job on several hosts, which are namespaces: programs/blackbox/hosts/host_rank.py with
black boxes in one folder, and what the watchdogs of the hosts say."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from support.boxes.network import Network
from support.boxes.told import lines_in, verdicts_in
from support.lifecycle import PROGRAMS, environment
from support.waiting import wait_until

__all__ = ["SECONDS", "Job", "job_on"]

SECONDS = 100.0  # on a busy machine: the watchdog and its diagnosis have a low priority
PORT = "29500"


class Job:
    """*ranks*: of each host. *running*: torchrun on each host, with all that lives there."""

    def __init__(
        self,
        network: Network,
        folder: Path,
        ranks: int,
        variables: Mapping[str, str],
        restarts: int = 0,
        tcp: bool = True,
        collectors: bool = False,
        clocks: bool = False,
        wall: int = 0,
    ) -> None:
        self.network = network
        self.folder = folder
        self.boxes = folder / "boxes"
        self.ranks = ranks * len(network.hosts)
        self.running: list[subprocess.Popen[bytes]] = []
        self._each = ranks
        self._variables = {
            "WORKERSERVER_BLACKBOX": str(self.boxes),
            "WORKERSERVER_BLACKBOX_INTERVAL": "0.5",
            "WORKERSERVER_STALL": "3",
            **variables,
        }
        self._restarts = restarts
        self._tcp = tcp
        self._collectors = collectors
        self._clocks = clocks
        self._wall = wall

    def start(self) -> None:
        names = [f"{each} node{host}" for host, each in enumerate(self.network.addresses)]
        (self.folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *names, ""]))
        for rank in range(self.ranks):
            (self.folder / f"disk{rank}").touch()
        for host in range(len(self.network.hosts)):
            self._start(host)
        self._await_begun()
        self.await_watched()

    def await_watched(self) -> None:
        """Until each host's keeper has copied its boxes twice. Then its watchdog knows the job."""

        def copies() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in self.boxes.glob("*/rank*.box")}

        wait_until(lambda: len(copies()) == self.ranks, SECONDS)
        first = copies()
        wait_until(lambda: all(copies()[path] > when for path, when in first.items()), SECONDS)

    def _start(self, host: int) -> None:
        own = self.folder / f"host{host}"
        own.mkdir()
        address = self.network.addresses[host]
        variables = {"WORKERSERVER_TCP": f"{address}:0"} if self._tcp else {}
        if self._collectors:
            variables["WORKERSERVER_COLLECTOR"] = f"{address}:0"
            variables["TORCH_WORKER_SERVER_SOCKET"] = f"{own}/rank{{rank}}.sock"
        settings = environment(
            **{**variables, **self._variables},
            GLOO_SOCKET_IFNAME="eth0",
            OMP_NUM_THREADS="1",
            TMPDIR=str(own),
        )
        if self._wall and host:
            settings |= {"LD_PRELOAD": str(wall_clock(own)), "WALL_AHEAD": str(self._wall)}
        apart: tuple[str, ...]
        apart = (
            "unshare",
            "--uts",
            "--ipc",
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
        )
        if self._clocks:
            ahead = str(host * 24 * 3600)
            apart += ("--time", "--boottime", ahead, "--monotonic", ahead)
        script, names = PROGRAMS / "blackbox/hosts/host.py", self.folder / "hosts"
        first = (sys.executable, str(script), f"node{host}", str(names))
        words = [sys.executable, "-m", "torch.distributed.run"]
        words += ["--nnodes", str(len(self.network.hosts)), "--node-rank", str(host)]
        words += ["--nproc-per-node", str(self._each), "--max-restarts", str(self._restarts)]
        if self._restarts:  # without a rendezvous torchrun's agents don't start again together
            # With one store for all attempts gloo finds the addresses of ranks that have ended.
            settings["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
            words += ["--rdzv-backend", "c10d", "--rdzv-id", "job", "--local-addr", address]
            words += ["--rdzv-endpoint", f"{self.network.addresses[0]}:{PORT}"]
        else:
            words += ["--master-addr", self.network.addresses[0], "--master-port", PORT]
        words += [str(PROGRAMS / "blackbox/hosts/host_rank.py"), str(self.folder)]
        with self.log(host).open("wb") as log:
            self.running.append(
                subprocess.Popen(
                    self.network.on(host, *apart, *first, *words),
                    env=settings,
                    stdout=log,
                    stderr=log,
                )
            )

    def log(self, host: int) -> Path:
        return self.folder / f"host{host}.log"

    def _await_begun(self) -> None:
        begun = [self.folder / f"begun{rank}-0" for rank in range(self.ranks)]
        wait_until(
            lambda: (
                all(each.exists() for each in begun)
                or all(each.poll() is not None for each in self.running)
            ),
            SECONDS,
        )
        assert all(each.exists() for each in begun)

    # ---- what happens to it

    @contextlib.contextmanager
    def hung(self, rank: int) -> Iterator[None]:
        """The *rank* waits for its disk."""
        with (self.folder / f"disk{rank}").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def end(self, rank: int, way: str, restart: int = 0) -> None:
        part = self.folder / f"end{rank}.part"
        part.write_text(way)
        part.rename(self.folder / f"end{rank}-{restart}")

    def kill_host(self, host: int) -> None:
        """All processes of it, at once."""
        self.running[host].kill()

    def finish(self) -> list[int]:
        """End the job as a job ends that is done; torchrun's exit statuses."""
        (self.folder / "done").touch()
        return self.await_end()

    def await_end(self) -> list[int]:
        """Until nobody lives on any host; torchrun's exit statuses."""
        return [each.wait(SECONDS) for each in self.running]

    # ---- what is said

    def lines(self) -> list[tuple[int, str]]:
        """Each line of a watchdog, with the host in whose log it stands."""
        return [
            (host, line)
            for host in range(len(self.network.hosts))
            for line in lines_in(self.log(host))
        ]

    def await_lines(self, count: int) -> list[tuple[int, str]]:
        wait_until(lambda: len(self.lines()) >= count, SECONDS)
        return self.lines()

    def verdicts(self) -> list[dict[str, Any]]:
        return verdicts_in(self.boxes)


def wall_clock(folder: Path) -> Path:
    """The library of a clock that is ahead, made in *folder*."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "wall_clock.so"
    source = str(Path(__file__).with_name("wall_clock.c"))
    command = [compiler, "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run([*command, "-o", str(library), source], check=True)
    return library


@contextlib.contextmanager
def job_on(
    network: Network,
    folder: Path,
    ranks: int = 1,
    *,
    restarts: int = 0,
    tcp: bool = True,
    collectors: bool = False,
    clocks: bool = False,
    wall: int = 0,
    **variables: str,
) -> Iterator[Job]:
    """A job with so many *ranks* on each host, in the middle of its training. All is ended with the
    block. After a failure the logs are printed. *wall*: seconds that the wall clock of all hosts
    but the first one is ahead."""
    job = Job(network, folder, ranks, variables, restarts, tcp, collectors, clocks, wall)
    try:
        job.start()
        yield job
    except BaseException:
        for log in sorted(folder.glob("host*.log")):
            print(log.name, log.read_text(errors="replace"), sep="\n")
        raise
    finally:
        network.end_processes()
        for process in job.running:
            process.wait()
