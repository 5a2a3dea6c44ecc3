"""Ranks that keep the others waiting and yet go on: slow, not stuck."""

from __future__ import annotations

from collections.abc import Iterator

from workerserver.cluster.judge.facts import Slow
from workerserver.cluster.judge.job import Job
from workerserver.cluster.judge.slow.arrivals import Source
from workerserver.cluster.judge.slow.study import Finding, Standing, study

__all__ = ["slow_fact", "stragglers"]


def stragglers(job: Job) -> Iterator[Slow]:
    """Those that the traces at hand show. They are compared only if there is a trace of each rank
    that is to be compared."""
    sources = {rank: Source(job.host(rank)) for rank in job.ranks}
    for finding, standing in study(job.analysis.groups, sources).named:
        if finding.series.among == finding.series.ranks:
            yield slow_fact(finding, standing)


def slow_fact(finding: Finding, standing: Standing) -> Slow:
    series = finding.series
    return Slow(
        rank=standing.rank,
        group=series.group.label if series.group is not None else "",
        late=standing.late_s or 0.0,
        occasions=len(finding.occasions),
        operations=sum(each.operations for each in finding.occasions),
        operation=series.name,
        share=standing.share,
        basis="queue" if series.queued else series.basis,
        waits=not finding.all_waits,
    )
