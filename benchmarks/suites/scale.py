"""The cost of asking a whole job, from 64 to 16,384 ranks, all simulated (benchmarks/simulated/).

``stacks`` and ``diagnose`` are the commands of the command line. Each run is a process of its own
on one processor. The workers have the other processor, or the same one if there is no other. Every
answer is checked, because the time of a wrong verdict means nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.context import Context
from benchmarks.report.model import Lines, Report, Table, Target
from benchmarks.report.stats import median, ratio
from benchmarks.rounds import placed
from benchmarks.simulated.hosts import RANKS, collectors
from benchmarks.simulated.workers import CONNECTIONS, Job, Recording, listening, record
from benchmarks.subjects.servers import HERE, Missing, Server, available
from workerserver.cluster.find.host_lists import unfold

QUESTION = "What does it cost to ask a whole job, as it grows?"

SIZES = (64, 1024, 4096, 16384)
QUICK = (64, 1024)
#: Numbers of ranks that are asked through a collector for each host.
HOSTED = (1024, 4096, 16384, 65536)
HOSTED_QUICK = (64,)
#: Different stacks of the waiting ranks.
STACKS = (1, 8, 64)
#: One case has almost as many different stacks as are fetched in full at most.
MANY = Job(4096, 1000)
#: The job for the comparison with torch's collector.
COMPARED = Job(1024, 8)
#: Larger jobs are asked twice, with any number of rounds.
LARGE = 1024

COMMANDS: Mapping[str, Sequence[str]] = {
    "stacks": (),
    # The second look follows at once, so that no pause is measured.
    "diagnose": ("--rounds", "2", "--interval", "0.001"),
}
#: Collectors in one argument of a command line.
NAMED = 1024
#: The longest time of one command.
PATIENCE_SECONDS = 300.0
#: Our time may be at most this part of torch's.
LIMIT = 0.2


@dataclass
class Spent:
    """One command's figures in one case, a value for each round. *looks*: seconds of the questions
    alone, without the start, the verdict and the printing."""

    seconds: list[float] = field(default_factory=list)
    looks: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    received: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


Figures = dict[tuple[str, Job], Spent]


# ---- the command line


def check(command: str, job: Job, status: int, said: Mapping[str, Any]) -> None:
    """Raise RuntimeError unless all ranks answered, ranks with equal stacks form one group, and the
    verdict names the rank that is behind and no other rank."""
    found = {frozenset(unfold(group["ranks"])) for group in said["groups"]}
    right = (said["ranks"], said["responded"]) == (job.ranks, job.ranks) and found == job.groups()
    right &= not said["unreachable"] and not said["problems"]
    if command == "stacks":
        right &= status == 0
    else:
        suspects = [(each["rank"], each["reason"]) for each in said["suspects"]]
        right &= status == 1 and suspects == [(job.behind, "behind")]
        right &= said["verdict"].startswith(f"rank {job.behind} has not entered all_reduce #")
    if not right:
        raise RuntimeError(f"{command}, {job}: wrong, with status {status}: {str(said)[:2000]}")


def measure(command: str, job: Job, places: Sequence[str], spent: Spent) -> None:
    words = [sys.executable, "-m", "benchmarks.spent", command, "--json", *COMMANDS[command]]
    began = time.perf_counter()
    done = subprocess.run(
        [*words, *places],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    seconds = time.perf_counter() - began
    if not done.stdout:
        raise RuntimeError(f"{command}, {job}: {done.stderr.strip()}")
    said = json.loads(done.stdout)
    check(command, job, done.returncode, said)
    own = json.loads(done.stderr)
    spent.seconds.append(seconds)
    spent.looks.append(said["cost"]["seconds"])
    spent.cpu.append(own["cpu"])
    spent.received.append(said["cost"]["bytes_received"])
    spent.peak.append(own["peak"])


def ask(job: Job, recording: Recording, context: Context, figures: Figures) -> None:
    """Run the commands on each worker's socket."""
    folder = context.folder / f"{job.ranks}-{job.stacks}"
    with listening(job.table(recording), folder, tcp=False) as (workers, _):
        rounds(job, workers, [f"{folder}/rank{{rank}}.sock"], context, figures)


def ask_hosts(job: Job, recording: Recording, context: Context, figures: Figures) -> None:
    """Run the commands on each host's collector, over TCP."""
    folder = context.folder / f"hosts-{job.ranks}-{job.stacks}"
    with listening(collectors(job, recording), folder, tcp=True) as (workers, ports):
        # All collectors could be too long for one argument.
        places = [
            word
            for first in range(0, len(ports), NAMED)
            for word in (
                "--collectors",
                ",".join(f"127.0.0.1:{port}" for port in ports[first : first + NAMED]),
            )
        ]
        rounds(job, workers, places, context, figures)


def rounds(
    job: Job, workers: Server, places: Sequence[str], context: Context, figures: Figures
) -> None:
    cpus = os.sched_getaffinity(0)
    workers.place({max(cpus)})
    for turn in range(context.rounds if job.ranks <= LARGE else min(context.rounds, 2)):
        for command in COMMANDS:
            spent = figures.setdefault((command, job), Spent())
            with workers.awake(), placed({min(cpus)}):
                measure(command, job, places, spent)
            if not turn:
                text = f"{job.ranks} ranks, {job.stacks} stacks: {command}"
                context.say(f"{text}: {spent.seconds[0]:.2f} s")


# ---- torch's collector


@dataclass
class Compared:
    """Rounds of torch's ``fetch_all`` and of ours, by ``torch``, ``ours``, ``collectors``."""

    job: Job
    rounds: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def of(self, subject: str, figure: str) -> list[float]:
        return [each[subject][figure] for each in self.rounds]

    def ratio(self, subject: str) -> tuple[float, float, float]:
        return ratio(self.of(subject, "seconds"), self.of("torch", "seconds"))


def compare(job: Job, recording: Recording, context: Context) -> Compared:
    """Let torch's code and ours ask the same workers, over TCP. Raises Missing."""
    if importlib.util.find_spec("aiohttp") is None:
        raise Missing("aiohttp, which torch's collector uses, is not installed")
    cpus = os.sched_getaffinity(0)
    command = [sys.executable, "-m", "benchmarks.watched.fetching", str(context.rounds)]
    with contextlib.ExitStack() as stack:
        ports = []
        for name, table in (
            ("workers", job.table(recording)),
            ("hosts", collectors(job, recording)),
        ):
            folder = context.folder / f"compared-{name}"
            server, its_ports = stack.enter_context(listening(table, folder, tcp=True))
            server.place({max(cpus)})
            stack.enter_context(server.awake())
            ports.append(its_ports)
        with placed({min(cpus)}):
            done = subprocess.run(
                command,
                cwd=HERE.parent,
                input=json.dumps(ports),
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
    if done.returncode:
        raise RuntimeError(f"the comparison failed: {done.stderr.strip()}")
    found = Compared(job, [json.loads(line) for line in done.stdout.splitlines()])
    for subject in ("ours", "collectors"):
        if set(found.of(subject, "groups")) != {len(job.groups())}:
            raise RuntimeError(
                f"{subject}: {found.of(subject, 'groups')} groups, not {len(job.groups())}"
            )
    context.say(f"torch's collector and ours, {job.ranks} ranks")
    return found


# ---- the report


def tables(figures: Figures, who: str) -> Iterator[Table]:
    columns = ("ranks", "different stacks", "s", "of them looks s", "processor s", "received MB")
    titles = {
        "stacks": f"stacks: every {who} asked once",
        "diagnose": f"diagnose: every {who} asked twice, one verdict",
    }
    for command, title in titles.items():
        rows = [
            (
                job.ranks,
                len(job.groups()),
                median(spent.seconds),
                median(spent.looks),
                median(spent.cpu),
                median(spent.received) / 1e6,
                median(spent.peak) / 2**20,
            )
            for (name, job), spent in figures.items()
            if name == command
        ]
        notes = [
            "From the start of the process to its end; looks: the questions alone, without"
            " starting Python, the verdict and the printing.",
            f"With more than {LARGE:,} ranks: at most two rounds.",
        ]
        yield Table(title, (*columns, "peak MiB"), rows, notes)


SUBJECTS = {
    "torch": "torch fetch_all",
    "ours": "ours, each rank asked",
    "collectors": "ours, each host's collector asked",
}


def comparison(found: Compared) -> Table:
    return Table(
        f"The stacks of {found.job.ranks:,} ranks over TCP, {len(found.job.groups())} different",
        ("collector", "s", "processor s", "received MB", "time/torch's"),
        [
            (
                name,
                median(found.of(subject, "seconds")),
                median(found.of(subject, "cpu")),
                median(found.of(subject, "bytes")) / 1e6,
                1.0 if subject == "torch" else found.ratio(subject)[0],
            )
            for subject, name in SUBJECTS.items()
        ],
        [
            "In one process after all imports: look-up of the addresses in the TCPStore, and all"
            " answers. Ours also makes groups of the answers; torch's stay single texts.",
            f"A host has {RANKS} ranks. The collectors of all hosts work at the same time.",
        ],
    )


def plot(figures: Figures, hosted: Figures, compared: Compared | None) -> Lines:
    shown = max(job.stacks for _, job in figures if job != MANY)
    series = {
        f"{command}{through}": [
            (job.ranks, median(spent.seconds))
            for (name, job), spent in some.items()
            if (name, job.stacks) == (command, shown)
        ]
        for some, through in ((figures, ""), (hosted, ", through collectors"))
        for command in COMMANDS
    }
    if compared is not None:
        theirs = median(compared.of("torch", "seconds"))
        series["torch fetch_all"] = [(compared.job.ranks, theirs)]
    return Lines(
        "scale",
        f"A whole job asked by one process, from its start to its end; {shown} different stacks",
        "ranks",
        "seconds",
        series,
        log_x=True,
        log_y=True,
    )


def room(ranks: int) -> None:
    """Raise Missing if one process can't have so many listeners."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < ranks + CONNECTIONS:
        raise Missing(f"needs {ranks + CONNECTIONS} descriptors, {most} are allowed")


def run(
    context: Context,
    sizes: Sequence[int] | None = None,
    stacks: Sequence[int] = STACKS,
    compared: Job = COMPARED,
    many: Job | None = MANY,
    hosted: Sequence[Job] | None = None,
) -> Report:
    available("torch")
    jobs = [
        Job(ranks, count)
        for ranks in sizes or (QUICK if context.quick else SIZES)
        for count in stacks
    ]
    if many is not None and not context.quick:
        jobs.append(many)
    if hosted is None:
        hosted = [Job(n, max(stacks)) for n in (HOSTED_QUICK if context.quick else HOSTED)]
    missing: dict[str, str] = {}
    figures: Figures = {}
    by_hosts: Figures = {}
    recording = record(context.folder, max(job.stacks for job in (*jobs, *hosted, compared)))
    context.say("recorded a real job")
    for job in jobs:
        try:
            room(job.ranks)
        except Missing as reason:
            missing[f"{job.ranks} ranks"] = str(reason)
        else:
            ask(job, recording, context, figures)
    for job in hosted:
        ask_hosts(job, recording, context, by_hosts)
    found: Compared | None = None
    try:
        found = compare(compared, recording, context)
    except Missing as reason:
        missing["torch"] = str(reason)
    ratios = {}
    if found is not None:
        ratios = {
            f"stacks of all ranks tcp {subject}/torch": found.ratio(subject)
            for subject in SUBJECTS
            if subject != "torch"
        }
    return Report(
        name="scale",
        question=QUESTION,
        tables=[
            *tables(figures, "rank"),
            *tables(by_hosts, f"collector of {RANKS} ranks"),
            *([comparison(found)] if found else []),
        ],
        plots=[plot(figures, by_hosts, found)],
        targets=[
            target(f"the stacks of {compared.ranks:,} ranks, {name}", *figure)
            for subject, name in SUBJECTS.items()
            if subject != "torch"
            for figure in [(found.ratio(subject) if found else None, missing.get("torch", ""))]
        ],
        ratios=ratios,
        missing=missing,
    )


def target(what: str, figure: tuple[float, float, float] | None, note: str) -> Target:
    middle, lowest, highest = figure or (None, None, None)
    met = middle is not None and middle <= LIMIT
    return Target(what, middle, LIMIT, "of torch's fetch_all", met, lowest, highest, note)
