"""How long a job may go without a step before somebody looks."""

from __future__ import annotations

from collections.abc import Sequence

from workerserver.blackbox.watchdog.ranks import Rank

__all__ = ["Pace"]

LEAST_SECONDS = 60.0
USUAL_STEPS = 10
#: Of the longest pause so far: an evaluation, a checkpoint.
PAUSES = 2.0


class Pace:
    """What is known of the job's steps. *stall*: the user's threshold in seconds; None: the job's
    own pace counts. *quiet_s*: for how long no rank has made a step, or, in a job without
    heartbeats, for how long all stacks have stayed the same."""

    def __init__(self, stall: float | None) -> None:
        self._stall = stall
        self._steps: dict[tuple[int, int], int | None] = {}
        self._digests: list[object] = []
        self._since: float | None = None
        self._longest = 0.0
        self._median = 0.0
        self.quiet_s = 0.0
        self.step: int | None = None

    @property
    def threshold(self) -> float:
        if self._stall is not None:
            return self._stall
        return max(LEAST_SECONDS, USUAL_STEPS * self._median, PAUSES * self._longest)

    def look(self, ranks: Sequence[Rank], now: float) -> bool:
        """Take in a look at the living *ranks* at the monotonic time *now*. Whether a step was made
        since the look before."""
        paced = [rank for rank in ranks if rank.step_age_s is not None]
        steps = {rank.key: rank.step for rank in paced}
        same = self._steps
        moved = any(key in same and same[key] != step for key, step in steps.items())
        if moved and self._steps:
            self._longest = max(self._longest, self.quiet_s)
        self._steps = steps
        medians = sorted(each.step_median_s for each in paced if each.step_median_s is not None)
        self._median = medians[len(medians) // 2] if medians else self._median
        if paced:
            self.step = max((rank.step for rank in paced if rank.step is not None), default=None)
            self.quiet_s = min(rank.step_age_s or 0.0 for rank in paced)
            self._since = None
            return moved
        digests: list[object] = [(rank.key, rank.digest) for rank in ranks]
        if digests != self._digests or self._since is None:
            self._digests, self._since = digests, now
        told = bool(ranks) and all(rank.digest is not None for rank in ranks)
        self.quiet_s = now - self._since if told else 0.0
        return False
