"""``python -m tests.simulator``: simulate jobs, judge them, print or shrink one by its seed."""

from __future__ import annotations

import argparse
import time
from collections import Counter

from .adapter import judge, more
from .job.generate import generate
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
    options = parser.parse_args()
    if options.seed is not None:
        show(play(generate(options.seed), tell, more=more))
    elif options.shrink is not None:
        show(play(shrink(generate(options.shrink)), tell))
    else:
        many(options.first, options.jobs, options.judge)


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


def many(first: int, jobs: int, judged: bool) -> None:
    tally = Tally()
    true: Counter[tuple[str, str]] = Counter()
    began = time.process_time()
    spent = 0.0
    for seed in range(first, first + jobs):
        played = play(generate(seed), tell, more=more if judged else None)
        if judged:
            before = time.process_time()
            tally.add(played, judge(played))
            spent += time.process_time() - before
        else:
            true["hung" if played.truth.deadlocked else "goes on", case_of(played)] += 1
    simulated = time.process_time() - began - spent
    if judged:
        for line in tally.tables():
            print(line)
        print(f"judge: {jobs / spent * 60:,.0f} jobs a minute")
    else:
        for (what, case), count in sorted(true.items()):
            print(f"{count:8} {what:8} {case}")
    print(f"simulator: {jobs / simulated * 60:,.0f} jobs a minute, on one core")


if __name__ == "__main__":
    main()
