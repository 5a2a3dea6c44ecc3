"""A job on two hosts: a fault on the far one, and the verdicts while that host is cut off.

The hosts are network namespaces with a switch between them, a third one. To cut a host off is to
pull its cable out of the switch: no link goes down at the other host, nothing is reset or refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.boxes.network import Network, hosts, needs_hosts
from support.lifecycle import PROGRAMS, environment
from support.waiting import becomes, wait_until

from workerserver.cluster.find.host_lists import unfold

pytest.importorskip("torch")
pytestmark = [*needs_hosts, pytest.mark.slow, pytest.mark.torch]

SCRIPT = PROGRAMS / "cluster/two_hosts_rank.py"
#: This network exists only inside the namespaces.
ADDRESSES = ("10.77.0.1", "10.77.0.2")
STORE = f"{ADDRESSES[0]}:29500"
#: Seconds that each look waits for a worker that does not answer.
DEADLINE = 2.0
#: Seconds for Python's start on a busy machine.
SLACK = 15.0
#: Seconds until a hang counts as one: several usual steps, which are slow on a busy machine.
PATIENCE = 60.0
TOKEN = {"WORKERSERVER_TOKEN": "of-this-job"}


class Said(NamedTuple):
    """A command's exit status, and its duration in seconds."""

    status: int
    out: Any
    err: str
    seconds: float


class Job:
    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder

    def ask(self, command: str, *place: str, host: int = 0) -> Said:
        """What ``workerserver COMMAND --json`` says on *host*; without a *place*: of the ranks
        that are in the store."""
        options = ("--json", "--deadline", f"{DEADLINE:g}", *(place or ("--store", STORE)))
        began = time.monotonic()
        done = subprocess.run(
            self.network.on(host, sys.executable, "-m", "workerserver", command, *options),
            env=environment(**TOKEN),
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        seconds = time.monotonic() - began
        out = json.loads(done.stdout) if done.stdout else None
        return Said(done.returncode, out, done.stderr, seconds)

    def first_suspicion(self) -> Said:
        """The first verdict in which anybody is suspected, or the last one that came in time."""
        said: list[Said] = []

        def suspects() -> bool:
            said.append(self.ask("diagnose"))
            return said[-1].status != 0

        becomes(suspects, PATIENCE)
        return said[-1]

    def goes_on(self) -> None:
        """All ranks answer again, and each has made enough steps to have a usual pace."""
        before = min(self.steps())
        wait_until(lambda: min(self.steps()) > before + 3, 60)

    def steps(self) -> list[int]:
        said = self.ask("ping")
        assert said.status == 0, said
        return [each["step"] for each in said.out["workers"]]

    @contextlib.contextmanager
    def rank_3_stuck(self) -> Iterator[None]:
        """Hold the lock on the rank's batch during the block."""
        with (self.folder / "batch").open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        self.goes_on()

    @contextlib.contextmanager
    def cut_off(self, host: int) -> Iterator[None]:
        """The job goes on afterwards: TCP has only waited."""
        self.network.cut_off(host)
        try:
            yield
        finally:
            self.network.join(host)
        self.goes_on()


def sockets(folder: Path, host: int) -> str:
    """Those of a host's ranks; no other host has them."""
    return f"{folder}/host{host}/rank{{rank}}.sock"


@contextlib.contextmanager
def torchrun(network: Network, host: int, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    (folder / f"host{host}").mkdir()
    settings = environment(
        TORCH_WORKER_SERVER_SOCKET=sockets(folder, host),
        WORKERSERVER_TCP=f"{ADDRESSES[host]}:0",
        GLOO_SOCKET_IFNAME="eth0",
        TORCH_FR_BUFFER_SIZE="2000",
        OMP_NUM_THREADS="1",
        FOLDER=str(folder),
        TMPDIR=str(folder),
        **TOKEN,
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
    command += ["--nproc-per-node", "2", "--node-rank", str(host)]
    command += ["--master-addr", ADDRESSES[0], "--master-port", STORE.rpartition(":")[2]]
    with (folder / f"host{host}.log").open("wb") as log:
        process = subprocess.Popen(
            network.on(host, *command, str(SCRIPT)), env=settings, stdout=log, stderr=log
        )
    with process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with hosts(len(ADDRESSES)) as network:
        yield network


@pytest.fixture(scope="module")
def job(network: Network) -> Iterator[Job]:
    """Four ranks, two on each host, in the middle of their training."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp")))
        stack.callback(network.end_processes)
        (folder / "batch").touch()
        begun = [folder / f"begun{rank}" for rank in range(4)]
        running = [stack.enter_context(torchrun(network, host, folder)) for host in range(2)]
        try:
            wait_until(
                lambda: (
                    all(each.exists() for each in begun)
                    or any(each.poll() is not None for each in running)
                ),
                90,
            )
            assert [each.poll() for each in running] == [None, None]
        except BaseException:
            for log in sorted(folder.glob("host*.log")):
                print(log.name, log.read_text(errors="replace"), sep="\n")
            raise
        yield Job(network, folder)


def stacks_of(groups: list[dict[str, Any]]) -> set[int]:
    """Whose stacks are there, down to the job's own code."""
    for group in groups:
        assert any(line.startswith(f"{SCRIPT}:") for line in group["stack"])
    return {rank for group in groups for rank in unfold(group["ranks"])}


def test_ranks_of_both_hosts_are_found(job: Job) -> None:
    said = job.ask("diagnose")
    assert (said.status, said.err) == (0, ""), said
    assert said.out["verdict"].startswith("no rank is stuck")
    assert (said.out["ranks"], said.out["responded"]) == (4, 4)
    assert (said.out["unreachable"], said.out["suspects"]) == ([], [])


def test_rank_of_the_far_host_is_stuck(job: Job) -> None:
    with job.rank_3_stuck():
        said = job.first_suspicion()
    print(said.out["verdict"])
    assert (said.status, said.err) == (1, ""), said
    assert (said.out["responded"], said.out["unreachable"]) == (4, [])
    (suspect,) = said.out["suspects"]
    assert (suspect["rank"], suspect["host"], suspect["reason"]) == (3, ADDRESSES[1], "behind")
    assert suspect["collective"] == "all_reduce"
    assert suspect["location"].endswith(" load_batch")


class Outage(NamedTuple):
    """What is said while host 1 is cut off: at host 0; and at host 1, of the job and of its own
    ranks."""

    stacks: Said
    verdict: Said
    far: Said
    far_own: Said


@pytest.fixture(scope="module")
def outage(job: Job) -> Outage:
    def far() -> tuple[Said, Said]:
        own = (sockets(job.folder, 1), "--world-size", "4")
        lost = job.ask("diagnose", host=1)
        return lost, job.ask("diagnose", *own, host=1)

    with job.cut_off(1), ThreadPoolExecutor(1) as beside:
        later = beside.submit(far)
        return Outage(job.ask("stacks"), job.ask("diagnose"), *later.result())


def test_host_is_cut_off(outage: Outage) -> None:
    stacks, verdict = outage.stacks, outage.verdict
    print(verdict.out["verdict"], f"{stacks.seconds:.1f} s, {verdict.seconds:.1f} s", sep="\n")

    assert (stacks.status, stacks.err) == (1, ""), stacks
    assert (verdict.status, verdict.err) == (1, ""), verdict
    for said, looks in ((stacks, 1), (verdict, 2)):
        assert said.seconds < looks * DEADLINE + SLACK
        assert (said.out["ranks"], said.out["responded"]) == (4, 2)
        assert stacks_of(said.out["groups"]) == {0, 1}
        gone = said.out["unreachable"]
        assert [(each["rank"], each["host"]) for each in gone] == [
            (2, ADDRESSES[1]),
            (3, ADDRESSES[1]),
        ]
        for each in gone:
            assert each["address"].startswith(f"{ADDRESSES[1]}:")
            assert each["reason"] in ("timeout", "unreachable")

    sentence = verdict.out["verdict"]
    assert sentence.startswith("ranks 2-3 do not answer (")
    # What was under way may have ended the last all_reduce for one of them, which is in the next.
    assert re.search(r"; (ranks 0-1 wait|rank [01] waits) for them in all_reduce #", sentence)
    suspects = verdict.out["suspects"]
    assert [(each["rank"], each["reason"]) for each in suspects] == [
        (2, "unreachable"),
        (3, "unreachable"),
    ]


def test_the_other_host_has_the_store(outage: Outage) -> None:
    """The workers can't be found any more, but named workers answer."""
    lost, own = outage.far, outage.far_own
    print(lost.err, f"{lost.seconds:.1f} s, {own.seconds:.1f} s")

    assert (lost.status, lost.out) == (2, None)
    assert lost.seconds < DEADLINE + SLACK
    assert lost.err == f"workerserver: store {STORE}: no answer in {DEADLINE:g} s\n"

    # Nobody has seen ranks 0-1, so nobody is accused. But all are told what the others wait for.
    assert (own.status, own.err) == (2, ""), own
    # What was under way may have ended the last all_reduce for one of them.
    late = r"could not tell: (ranks 0-1 have|rank [0-3] has) not entered all_reduce #"
    assert re.match(late, own.out["verdict"]), own.out["verdict"]
    assert own.out["suspects"] == []
    assert (own.out["ranks"], own.out["responded"]) == (4, 2)
    assert stacks_of(own.out["groups"]) == {2, 3}
