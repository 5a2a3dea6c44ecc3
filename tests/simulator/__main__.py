"""``python -m tests.simulator``: simulate jobs, judge them, print or shrink one by its seed."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections import Counter
from math import inf

from .adapter import judge, more
from .job.generate import generate
from .job.machine import EndlessError
from .job.program import text
from .job.truth import Played, play
from .judged import Tally, case_of, violations
from .shrink import shrink
from .told.answers import tell


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulator", description=__doc__)
    parser.add_argument("jobs", nargs="?", type=int, default=10_000, help="how many (10,000)")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first one's seed")
    parser.add_argument("--judge", action="store_true", help="judge them, and tell what is wrong")
    parser.add_argument("--seed", type=int, help="print the job with this seed, and its verdict")
    parser.add_argument("--shrink", type=int, metavar="SEED", help="make a failing job smaller")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="judge in N processes"
    )
    parser.add_argument(
        "--minutes", type=float, default=inf, metavar="M", help="end after so many minutes"
    )
    options = parser.parse_args()
    if options.seed is not None:
        show(play(generate(options.seed), tell, more=more))
    elif options.shrink is not None:
        show(play(shrink(generate(options.shrink)), tell))
    else:
        many(options.first, options.jobs, options)


def show(played: Played) -> None:
    print(text(played.job))
    truth = played.truth
    print(f"truth: {truth}")
    verdict = judge(played)
    print(f"verdict {verdict.status}: {verdict.sentence}")
    for suspect in verdict.suspects:
        print(f"  rank {suspect.rank}: {suspect.reason}, {suspect.location}")
        for line in suspect.evidence:
            print(f"    {line}")
    for violation in violations(played, verdict):
        print(f"VIOLATION {violation.kind}: {violation.text}")


CHUNK = 200


def many(first: int, jobs: int, options: argparse.Namespace) -> None:
    began = time.monotonic()
    if options.judge:
        tally = Tally()
        starts = range(first, first + jobs, CHUNK)
        with multiprocessing.Pool(options.processes) as pool:
            work = pool.imap_unordered(
                chunk, ((seed, min(CHUNK, first + jobs - seed)) for seed in starts)
            )
            for number, each in enumerate(work, 1):
                tally.merge(each)
                for found in each.kinds.values():  # now: a long run may be ended early
                    for one in found:
                        print(f"seed {one.seed}: {one.kind}: {one.case} {one.text}", flush=True)
                if number % 10 == 0:
                    print(f"{tally.jobs} jobs, {sum(tally.counts.values())} violations", flush=True)
                if time.monotonic() > began + 60 * options.minutes:
                    break
        jobs = tally.jobs
        for line in tally.tables():
            print(line)
    else:
        true: Counter[tuple[str, str]] = Counter()
        for seed in range(first, first + jobs):
            played = play(generate(seed), tell)
            true["hung" if played.truth.deadlocked else "goes on", case_of(played)] += 1
        for (what, case), count in sorted(true.items()):
            print(f"{count:8} {what:8} {case}")
    print(f"{jobs / (time.monotonic() - began) * 60:,.0f} jobs a minute")


def chunk(which: tuple[int, int]) -> Tally:
    """So many jobs from a seed on, judged."""
    first, jobs = which
    tally = Tally()
    for seed in range(first, first + jobs):
        try:
            played = play(generate(seed), tell, more=more)
        except EndlessError:
            continue
        tally.add(played, judge(played))
    return tally


if __name__ == "__main__":
    main()
