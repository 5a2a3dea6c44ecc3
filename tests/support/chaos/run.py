"""A real torchrun job under faults and load, and the verdict on it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.chaos.faults import INJECTED, OUTSIDE, STRICT, Control, built, outside
from support.chaos.load import ASKED, Load, Tally
from support.lifecycle import PROGRAMS, environment
from support.torchrun import training
from support.waiting import becomes, wait_until
from support.wire import Client

__all__ = ["RANKS", "Story", "alone", "chaos"]

RANKS = 2
#: An answer after a fault has this long to come. A processor may be busy with other things.
RECOVERY_SECONDS = 60.0
#: Of 1,024 calls; the rarer a call is, the more of them have to fail.
SHARES = {"nofile": 500, "nomem": 200, "intr": 300, "short": 300, "pipe": 60, "thread": 900}
#: Resident memory may grow by so much from the second look to the last: the trainer's own varies.
GROWTH_MIB = 12.0


@dataclass
class Story:
    """What happened, and what was *wrong* with it; nothing should be."""

    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    absent: set[str] = field(default_factory=set)
    tally: Tally = field(default_factory=Tally)
    slowest_recovery: float = 0.0
    looks: list[dict[str, float]] = field(default_factory=list)
    results: list[dict[str, object]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        steps = self.results[0]["steps"] if self.results else 0
        forked = sum(int(str(each["forked"])) for each in self.results)
        yield f"{self.seconds:.0f} s; {steps} steps of {RANKS} ranks; {forked} forks"
        yield f"faults: {dict(sorted(self.faults.items()))}"
        yield f"calls that failed: {dict(sorted(self.injected.items()))}"
        if self.absent:
            yield f"not possible here: {', '.join(sorted(self.absent))}"
        yield f"slowest recovery: {self.slowest_recovery:.2f} s"
        yield f"requests: {self.tally.asked}; replies: {dict(self.tally.replies)}"
        yield f"without a reply, for a fault: {dict(sorted(self.tally.excused.items()))}"
        for look in (self.looks[:1] + self.looks[-1:]) if self.looks else []:
            yield ", ".join(f"{name} {value:g}" for name, value in look.items())
        yield from (f"WRONG: {each}" for each in self.wrong)
        yield "verdict: " + ("wrong" if self.wrong else "right")


class Rank:
    def __init__(self, number: int, folder: Path, path: str) -> None:
        self.number, self.path = number, path
        self.pid = int((folder / f"pid{number}").read_text())
        self.control = Control(folder / f"control.{self.pid}")
        self.first: Counter[str] = Counter()

    def answers(self) -> bool:
        """Whether every kind of request has its right answer, each on a connection of its own."""
        for request, right in ASKED.values():
            try:
                with Client(self.path, 10.0) as client:
                    reply = client.ask(request)
            except (OSError, EOFError):
                return False
            if reply.status != 200 or not right(reply):
                return False
        return True

    def begins(self) -> bool:
        """Whether it serves, and holds the same things at two looks, which then are its first."""
        with Client(self.path, 10.0) as client:
            client.ask(ASKED["dump, GIL"][0])
        time.sleep(0.2)
        self.first = self.holds()
        time.sleep(0.3)
        return self.first == self.holds()

    def holds(self) -> Counter[str]:
        """Its descriptors by kind, and its threads by name."""
        found: Counter[str] = Counter()
        for entry in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(OSError):
                found[os.readlink(f"/proc/{self.pid}/fd/{entry}").partition(":")[0]] += 1
        for entry in os.listdir(f"/proc/{self.pid}/task"):
            with contextlib.suppress(OSError):
                found["thread " + Path(f"/proc/{self.pid}/task/{entry}/comm").read_text()] += 1
        return found

    def more(self) -> Counter[str]:
        """What it has beyond its first look, and the threads of ours that it has lost."""
        now = self.holds()
        lost = {each: n for each, n in self.first.items() if each.startswith("thread workers")}
        return (
            now
            - self.first
            + Counter({f"no {each}": n - now[each] for each, n in lost.items() if n > now[each]})
        )

    def memory(self) -> float:
        """Resident MiB."""
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(text.partition("VmRSS:")[2].split()[0]) / 1024


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 4 MiB in *folder*; None unless this user may mount one."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def alone(steps: int, folder: Path) -> list[str]:
    """The losses' hash on each rank of a job that never heard of us."""
    folder.mkdir()
    words = [str(PROGRAMS / "chaos/rank.py"), str(folder), str(steps), "alone"]
    with training(words, environment(), folder, RANKS, interval=1) as job:
        assert job.wait(24 * 3600.0) == 0
    found = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(RANKS)]
    return [str(each["losses"]) for each in found]


def chaos(
    folder: Path,
    seed: int,
    seconds: float,
    how: str,
    *,
    fault_seconds: float = 1.0,
    rest_seconds: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> Story:
    """A job with a server in each rank that meets every fault at least once, and goes on for
    *seconds*. RuntimeError without a C compiler. The steps are compared by the caller if *how* is
    ``served``."""
    library = built(folder)
    if library is None:
        raise RuntimeError("no C compiler")
    story = Story()
    with small_disk(folder) as disk:
        path = str(folder / "s{rank}")
        settings = environment(
            CHAOS_CONTROL=str(folder / "control"),
            LD_PRELOAD=str(library),
            TORCH_WORKER_SERVER_SOCKET=path,
            WORKERSERVER_BLACKBOX=str((disk or folder) / "boxes"),
            **({"TMPDIR": str(disk)} if disk else {}),
        )
        words = [str(PROGRAMS / "chaos/rank.py"), str(folder), "0", how]
        with training(words, settings, folder, RANKS, interval=1) as job:
            ranks = [Rank(n, folder, path.replace("{rank}", str(n))) for n in range(RANKS)]
            _play(story, ranks, job, seed, seconds, fault_seconds, rest_seconds, disk, say)
            (folder / "stop").touch()
            if job.wait(24 * 3600.0) != 0:
                story.wrong.append(f"torchrun ended with {job.returncode}")
            for rank in ranks:
                rank.control.close()
    for number in range(RANKS):
        result = folder / f"result{number}.json"
        if result.exists():
            story.results.append(json.loads(result.read_text()))
        else:
            story.wrong.append(f"rank {number} has no result")
    for number, each in enumerate(story.results):
        if how == "twice" and each["alone"] != each["losses"]:
            story.wrong.append(f"rank {number} lost other losses than without a server")
    return story


def _play(
    story: Story,
    ranks: list[Rank],
    job: subprocess.Popen[bytes],
    seed: int,
    seconds: float,
    fault_seconds: float,
    rest_seconds: float,
    disk: Path | None,
    say: Callable[[str], None],
) -> None:
    chance = random.Random(seed)
    for rank in ranks:
        # Nothing that takes a thread for handlers: such a thread stays for ten seconds.
        wait_until(lambda rank=rank: rank.begins(), RECOVERY_SECONDS)  # type: ignore[misc]
    load = Load([rank.path for rank in ranks], seed, pause=0.04)
    began = time.monotonic()
    try:
        while not story.faults or time.monotonic() - began < seconds:
            for name in chance.sample([*INJECTED, *OUTSIDE], len(INJECTED) + len(OUTSIDE)):
                if job.poll() is not None:
                    story.wrong.append(f"the job ended under {sorted(story.faults)}")
                    return
                rank = chance.choice(ranks)
                load.excuse("" if name in STRICT else name)
                _fault(story, name, rank, chance, fault_seconds, disk)
                _recover(story, name, ranks, job)
                load.excuse("")
                if name not in story.absent:
                    story.faults[name] += 1
                time.sleep(rest_seconds * chance.random())
            load.hold()
            _look(story, ranks, time.monotonic() - began)
            load.go()
            say(f"{time.monotonic() - began:.0f} s: {dict(story.looks[-1])}")
            if story.wrong or load.tally.wrong:
                break
    finally:
        load.end()
        story.seconds = time.monotonic() - began
        story.tally = load.tally
        story.wrong += load.tally.wrong[:20]
        for rank in ranks:
            story.injected.update(rank.control.injected())
    for name in INJECTED:
        if not story.injected[name]:
            story.wrong.append(f"no call has failed by {name}")
    if len(story.looks) > 3:
        for rank in ranks:
            name = f"MiB of rank {rank.number}"
            growth = story.looks[-1][name] - story.looks[1][name]
            if growth > GROWTH_MIB:
                story.wrong.append(f"rank {rank.number} has grown by {growth:.1f} MiB")


def _fault(
    story: Story, name: str, rank: Rank, chance: random.Random, seconds: float, disk: Path | None
) -> None:
    """The fault *name* in *rank* for some time, which begins and ends at a random moment."""
    lasting = seconds * (0.5 + chance.random())
    time.sleep(seconds * 0.3 * chance.random())
    if name in OUTSIDE:
        with outside(name, rank.pid, rank.path, disk) as happened:
            if happened:
                time.sleep(lasting)
            else:
                story.absent.add(name)
        return
    jumps = [3600, -3600, 40 * 86400, -86400] if name == "clock" else [0]
    for jump in jumps:
        rank.control.arm((name,), SHARES.get(name, 512), chance.getrandbits(63), jump * 10**9)
        time.sleep(lasting / len(jumps))
    # Some calls are rare: the load may have needed none of them by chance.
    before = rank.control.injected()[name]
    give_up = time.monotonic() + RECOVERY_SECONDS
    while not before and not rank.control.injected()[name] and time.monotonic() < give_up:
        _crowd(rank.path)
    rank.control.disarm()


def _crowd(path: str) -> None:
    """A few of each request at one time, so that new threads are needed for them."""
    with contextlib.ExitStack() as stack:
        for name in ("thread", "thread", "thread", "file", "dump, no GIL", "echo", "metrics"):
            with contextlib.suppress(OSError):
                stack.enter_context(Client(path)).send(ASKED[name][0])
        time.sleep(0.1)


def _recover(story: Story, name: str, ranks: list[Rank], job: subprocess.Popen[bytes]) -> None:
    since = time.monotonic()
    for rank in ranks:
        if not becomes(
            lambda rank=rank: job.poll() is not None or rank.answers(),  # type: ignore[misc]
            RECOVERY_SECONDS,
        ):
            story.wrong.append(f"rank {rank.number} does not answer after {name}")
    story.slowest_recovery = max(story.slowest_recovery, time.monotonic() - since)


def _look(story: Story, ranks: list[Rank], at: float) -> None:
    """What each rank holds, once no request is under way and no thread waits for work."""
    look: dict[str, float] = {"seconds": round(at)}
    for rank in ranks:
        if not becomes(lambda rank=rank: not rank.more(), RECOVERY_SECONDS):  # type: ignore[misc]
            story.wrong.append(f"rank {rank.number} has, beyond the first look: {rank.more()}")
        held = rank.holds()
        threads = sum(n for name, n in held.items() if name.startswith("thread"))
        look[f"MiB of rank {rank.number}"] = round(rank.memory(), 1)
        look[f"descriptors of rank {rank.number}"] = held.total() - threads
        look[f"threads of rank {rank.number}"] = threads
    story.looks.append(look)


def main(argv: list[str] | None = None) -> int:
    import argparse
    import tempfile

    parser = argparse.ArgumentParser(prog="python -m support.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long (10)")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and the requests (1)")
    parser.add_argument("--rest", type=float, default=0.0, metavar="SECONDS",
                        help="at most so long without a fault between two (0)")  # fmt: skip
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as name:
        story = chaos(
            Path(name),
            options.seed,
            60.0 * options.minutes,
            "served",
            rest_seconds=options.rest,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        if len(story.results) == RANKS:
            steps = int(str(story.results[0]["steps"]))
            expected = alone(steps, Path(name) / "alone")
            if [each["losses"] for each in story.results] != expected:
                story.wrong.append("the losses differ from those of a job without us")
            else:
                print(f"the same {steps} losses, to the bit, as in a job without us")
    for line in story.lines():
        print(line)
    return int(bool(story.wrong))
