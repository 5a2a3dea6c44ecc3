"""What a recording costs and how right it is: our sampler beside py-spy and austin.

Three questions. Of a program that measures itself how its time is split: by how much is the share
wrong that samples tell? By how much is training slowed down, with 12 threads at 100 samples a
second? What does it take to merge the recordings of thousands of ranks, all simulated?
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.context import Context
from benchmarks.report.model import Bars, Cell, Report, Table, Target
from benchmarks.report.stats import bootstrap, median
from benchmarks.rounds import placed
from benchmarks.simulated.workers import ANYTHING, HEALTH, listening, resized
from benchmarks.simulated.workers import Table as Answers
from benchmarks.subjects.samplers import HZ, Cost, installed, ours, peer, post
from benchmarks.subjects.servers import HERE, Missing, Server, available, launched
from benchmarks.suites.training import BETWEEN, Found, Trainer, interval, training

QUESTION = "What does a recording cost, and how right is it?"

PEERS = ("py-spy", "austin")
SECONDS, QUICK_SECONDS = 10.0, 1.0  # of a recording of the split
BLOCK, QUICK_BLOCK = 2.0, 0.5  # of training
BLOCKS = 2  # in a round, of each subject
THREADS = 12
#: More threads: the main thread, the server's two and torch's own make up the rest.
MORE_THREADS = THREADS - 3
RANKS, QUICK_RANKS = 4096, 64
#: Different recordings of the simulated ranks.
VARIANTS = 64
FORMATS = {"html": "html", "folded": "folded", "speedscope": "speedscope.json", "pprof": "pb.gz",
           "perfetto": "perfetto.json"}  # fmt: skip
RECORDING = "POST /handler/sample_stacks*"
LIMIT_CORE = 2.0  # % of a core
LIMIT_POINTS = 1.0


# ---- the split


def share(folded: Path) -> tuple[float, int]:
    """The share of ``seven()`` in *folded*, in percent, and the weight of all that was counted."""
    weights = {"seven": 0, "three": 0}
    for line in folded.read_text().splitlines():
        match = re.fullmatch(r"(.*) (\d+)", line)
        for name in weights:
            if match is not None and re.search(rf"\b{name}\b", match[1]):
                weights[name] += int(match[2])
    total = sum(weights.values())
    if not total:
        raise RuntimeError(f"{folded}: neither seven() nor three()")
    return 100 * weights["seven"] / total, total


def order(program: Server) -> float:
    """The share that the program has measured since the last order, in percent."""
    assert program.process.stdin is not None
    assert program.process.stdout is not None
    program.process.stdin.write("next\n")
    program.process.stdin.flush()
    told = json.loads(program.process.stdout.readline())
    return 100 * float(told["share"])


def split(context: Context, subjects: list[str]) -> dict[str, list[float]]:
    """Errors in points, by subject."""
    seconds = QUICK_SECONDS if context.quick else SECONDS
    errors: dict[str, list[float]] = {name: [] for name in subjects}
    path = str(context.folder / "split")
    command = [sys.executable, "-m", "benchmarks.subjects.split", path]
    with launched("split", path, command, stdin=subprocess.PIPE) as (program, _), program.awake():
        for number in range(context.rounds):
            for name in subjects:
                output = context.folder / f"{name}.folded"
                output.unlink(missing_ok=True)
                order(program)
                if name == "ours":
                    words = ["record", path, "-o", str(output), "--duration", f"{seconds:g}"]
                    words += ["--hz", str(HZ)]
                    command = [sys.executable, "-m", "workerserver", *words]
                    subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True)
                else:
                    with peer(name, program.pid, seconds, output):
                        time.sleep(seconds)
                truth = order(program)
                errors[name].append(share(output)[0] - truth)
            context.say(f"split, round {number + 1} of {context.rounds}")
    return errors


# ---- training


@dataclass
class Slowed:
    found: Found = field(default_factory=Found)
    core: list[float] = field(default_factory=list)
    """Percent of a core that the sampler took."""


def slowed(context: Context, subjects: list[str]) -> dict[str, Slowed]:
    """Blocks of training under each sampler, each between two blocks without one."""
    seconds = QUICK_BLOCK if context.quick else BLOCK
    blocks = 1 if context.quick else BLOCKS
    facts = {name: Slowed() for name in ("nothing", *subjects)}
    cpus = os.sched_getaffinity(0)
    chosen = random.Random(5)
    with (
        placed({max(cpus)}),
        training(context.folder, "ours", min(cpus), max(cpus)) as trainer,
    ):
        trainer.serve("ours")
        trainer.order(f"threads {MORE_THREADS}")
        trainer.heard()
        for number in range(context.rounds):
            turns = [name for name in facts for _ in range(blocks)]
            chosen.shuffle(turns)
            before = trainer.block(BETWEEN)
            for name in turns:
                with sampling(name, trainer, seconds, context.folder) as cost:
                    block = trainer.block(seconds)
                after = trainer.block(BETWEEN)
                facts[name].found.add(before, block, after)
                if cost.seconds:
                    facts[name].core.append(100 * cost.cpu / cost.seconds)
                before = after
            context.say(f"training, round {number + 1} of {context.rounds}")
    return facts


@contextlib.contextmanager
def sampling(name: str, trainer: Trainer, seconds: float, folder: Path) -> Iterator[Cost]:
    if name == "nothing":
        yield Cost()
    elif name == "ours":
        with ours(trainer.path, seconds + 0.5) as cost:
            yield cost
    else:
        with peer(name, trainer.process.pid, seconds + 2, folder / f"{name}.out") as cost:
            yield cost


# ---- thousands of ranks


def http(body: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: 0\r\n\r\n"
    return resized(head.encode() + body)


def varied(told: dict[str, Any], chosen: random.Random) -> bytes:
    """*told*, with other counts: no two ranks are met equally often in a call."""
    nodes = [
        [parent, function, *(max(count + chosen.randint(-2, 2), 0) if count else 0 for count in at)]
        for parent, function, *at in told["nodes"]
    ]
    return http(json.dumps({**told, "nodes": nodes}, separators=(",", ":")).encode())


def answers(ranks: int, path: str, seconds: float) -> tuple[Answers, int]:
    """The answers of *ranks* ranks, made from those of the real worker at *path*; and the size of a
    recording."""
    told = json.loads(post(path, f"/handler/sample_stacks?duration={seconds:g}&hz={HZ}"))
    health = json.loads(post(path, "/healthz", "GET"))
    chosen = random.Random(6)
    variants = [varied(told, chosen) for _ in range(min(VARIANTS, ranks))]
    table = Answers((HEALTH, RECORDING, ANYTHING))
    for rank in range(ranks):
        own = {**health, "rank": rank, "pid": 10_000 + rank, "world_size": ranks}
        own.update(local_rank=rank, job="simulated", job_from="WORKERSERVER_JOB", agent="9:1")
        table.add(
            {
                HEALTH: http(json.dumps(own).encode()),
                RECORDING: variants[rank % len(variants)],
                ANYTHING: http(b"", "404 Not Found"),
            }
        )
    return table, len(variants[0])


@dataclass
class Merged:
    """One format's figures."""

    seconds: float
    cpu: float
    peak: int
    size: int


def merged(context: Context, ranks: int) -> tuple[dict[str, Merged], int]:
    cpus = os.sched_getaffinity(0)
    found: dict[str, Merged] = {}
    with training(context.folder, "real", min(cpus), max(cpus)) as trainer:
        trainer.serve("ours")
        trainer.order(f"threads {MORE_THREADS}")
        trainer.heard()
        trainer.order(f"train {3 if context.quick else 12}")
        time.sleep(0.5)
        table, size = answers(ranks, trainer.path, QUICK_SECONDS if context.quick else SECONDS)
        trainer.heard()
    folder = context.folder / "ranks"
    with listening(table, folder, tcp=False) as (workers, _):
        workers.place({max(cpus)})
        for name, suffix in FORMATS.items():
            output = context.folder / f"job.{suffix}"
            words = ["record", f"{folder}/rank{{rank}}.sock", "-o", str(output)]
            words += ["--duration", f"{SECONDS:g}", "--json"]
            with workers.awake(), placed({min(cpus)}):
                began = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.spent", *words],
                    cwd=HERE.parent,
                    capture_output=True,
                    text=True,
                    check=False,
                )
                seconds = time.perf_counter() - began
            if done.returncode or json.loads(done.stdout)["responded"] != ranks:
                raise RuntimeError(f"{name}: {done.returncode} {done.stderr[-500:]}")
            own = json.loads(done.stderr.splitlines()[-1])
            found[name] = Merged(seconds, own["cpu"], own["peak"], output.stat().st_size)
            context.say(f"{ranks} ranks as {name}: {seconds:.1f} s")
    return found, size


# ---- the report


def run(context: Context, ranks: int | None = None) -> Report:
    available("torch")
    began = time.monotonic()
    missing: dict[str, str] = {}
    subjects = ["ours"]
    for name in PEERS:
        try:
            installed(name)
            subjects.append(name)
        except Missing as reason:
            missing[name] = str(reason)
    errors = split(context, subjects)
    facts = slowed(context, subjects)
    count = ranks or (QUICK_RANKS if context.quick else RANKS)
    forms, size = merged(context, count)
    return Report(
        "record",
        QUESTION,
        [split_table(errors, context), training_table(facts), merged_table(forms, count, size)],
        [bars(facts)],
        list(targets(errors, facts)),
        missing=missing,
        seconds=time.monotonic() - began,
    )


def split_table(errors: Mapping[str, list[float]], context: Context) -> Table:
    seconds = QUICK_SECONDS if context.quick else SECONDS
    return Table(
        "Error of a split of 70 to 30 parts, in points",
        ["sampler", "recordings", "mean", "mean without sign", "largest"],
        [
            [
                name,
                len(found),
                round(sum(found) / len(found), 2),
                round(sum(map(abs, found)) / len(found), 2),
                round(max(map(abs, found)), 2),
            ]
            for name, found in errors.items()
        ],
        [
            f"recordings of {seconds:g} s, {HZ} samples a second, against what the program measured"
            " itself; chance alone makes 1.45 points of standard deviation in 1,000 samples",
        ],
    )


def training_table(facts: Mapping[str, Slowed]) -> Table:
    rows: list[list[Cell]] = []
    for name, each in facts.items():
        wall, cpu = bootstrap(each.found.wall), bootstrap(each.found.cpu)
        rows.append(
            [
                name,
                len(each.found.wall),
                round(wall[0], 2),
                interval(wall),
                round(cpu[0], 2),
                interval(cpu),
                round(median(each.core), 2) if each.core else None,
            ]
        )
    return Table(
        f"Slow-down of training with {THREADS} threads at {HZ} samples a second",
        [
            "sampler",
            "blocks",
            "slower %",
            "95 % interval",
            "CPU added %",
            "95 % interval ",
            "sampler's share of a core %",
        ],
        rows,
        [
            "the training process and its own sampler on one core; other samplers on another one,"
            " with the DataLoader's worker",
            "'nothing' against nothing is the noise of this run",
            "CPU: of the training process, with our sampler in it",
        ],
    )


def merged_table(forms: Mapping[str, Merged], ranks: int, size: int) -> Table:
    return Table(
        f"The recordings of {ranks:,} simulated ranks, merged into one file",
        ["form", "s", "processor s", "peak MiB", "file MB"],
        [
            [name, each.seconds, each.cpu, each.peak / 2**20, each.size / 1e6]
            for name, each in forms.items()
        ],
        [
            "seconds from the start of the command to its end, beside the 10 s of the recording:"
            " simulated ranks answer at once",
            f"each rank sends {size / 1e3:.0f} kB",
        ],
    )


def bars(facts: Mapping[str, Slowed]) -> Bars:
    found = {name: bootstrap(each.found.wall) for name, each in facts.items()}
    return Bars(
        "record",
        f"Slow-down of training at {HZ} samples a second, median and 95 % interval",
        "%",
        list(found),
        {"slow-down": [each[0] for each in found.values()]},
        {"slow-down": [each[1:] for each in found.values()]},
    )


def targets(errors: Mapping[str, list[float]], facts: Mapping[str, Slowed]) -> Iterator[Target]:
    core = median(facts["ours"].core)
    yield Target(
        f"our sampler with {THREADS} threads at {HZ} samples a second",
        round(core, 2),
        LIMIT_CORE,
        "% of a core",
        met=core <= LIMIT_CORE,
    )
    if "py-spy" in errors:
        own, theirs = (
            sum(map(abs, errors[name])) / len(errors[name]) for name in ("ours", "py-spy")
        )
        yield Target(
            "our mean error of the split, less py-spy's",
            round(own - theirs, 2),
            LIMIT_POINTS,
            "points",
            met=own - theirs <= LIMIT_POINTS,
        )
