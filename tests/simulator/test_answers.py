"""The simulated answers agree with each other, and with what real code makes of them."""

from __future__ import annotations

import json
from functools import cache
from math import inf

import pytest

from workerserver.handlers.flight_recorder import summarize

from .adapter import parsed, rounds
from .job.generate import generate
from .job.truth import Played, play
from .told.answers import Answers, stacks_json, tell, text_of
from .told.recorder import trace

SEEDS = range(0, 4000, 17)


@cache
def played(seed: int) -> Played:
    return play(generate(seed), tell)


def looks(seed: int) -> list[Answers]:
    return [each for _, look in played(seed).looks for each in look]


def test_the_real_parsers_make_the_same_of_the_bodies() -> None:
    for seed in SEEDS:
        job = played(seed)
        for (_, told), round_ in zip(job.looks, rounds(job.job, job.looks), strict=True):
            for each, state in zip(told, round_.states, strict=True):
                health, threads = parsed(
                    json.dumps(each.healthz) if each.healthz is not None else None,
                    text_of(each) if each.stock else json.dumps(stacks_json(each)),
                    each.stock,
                )
                assert health == state.health
                if each.threads is not None:
                    assert threads == state.threads


def test_the_real_handler_makes_the_same_summary_of_the_whole_recorders() -> None:
    for seed in SEEDS:
        for told in looks(seed):
            if told.summary is None or told.recorded is None:
                continue
            groups = [g for g in told.recorded.groups if told.rank in g.ranks]
            if len({group.name for group in groups}) < len(groups):
                continue  # torch.distributed no longer knows the first of two of one name
            world = {g.name: {"desc": g.desc, "ranks": list(g.ranks)} for g in groups}
            dumps = {
                "fr": trace(told.recorded, "gloo"),
                "nccl": trace(told.recorded, "nccl"),
            }
            made = json.loads(json.dumps({"rank": told.rank, **summarize(dumps, world)}))
            assert made == told.summary, seed


def test_recorders_are_sound() -> None:
    """Rings are full or whole; numbers rise; what is done was begun, and nothing is to come."""
    for seed in SEEDS:
        for told in looks(seed):
            if told.recorded is None:
                continue
            for ring in told.recorded.rings.values():
                assert len(ring) <= told.recorded.rank.plan.ring
                assert [entry.number for entry in ring] == list(
                    range(ring[0].number, ring[0].number + len(ring))
                )
                assert ring[0].number == 0 or len(ring) == told.recorded.rank.plan.ring
                for entry in ring:
                    assert entry.created <= told.time
                    assert entry.created <= entry.started or entry.started == inf
                    assert entry.started < entry.done or entry.done == inf


def test_who_stands_in_a_collective_has_it_pending() -> None:
    """Unless its ring has lost it, or it has none. Of NCCL's calls only a barrier blocks."""
    seen = 0
    for seed in SEEDS:
        for told in looks(seed):
            if told.recorded is None or told.threads is None:
                continue
            for each in told.threads:
                op = each.thread.op
                if op is None or op.kind != "call" or each.thread.until > told.time:
                    continue
                group = told.recorded.groups[op.group]
                assert group.backend == "gloo" or op.name == "barrier"
                ring = told.recorded.rings.get(group.backend, ())
                pending = [entry for entry in ring if entry.done > told.time]
                if ring and each.thread.entry is not None and each.thread.entry in ring:
                    seen += 1
                    assert each.thread.entry in pending, seed
    assert seen > 50


def test_steps_only_rise_and_hung_ranks_stand() -> None:
    for seed in SEEDS:
        (_, first), (_, second) = played(seed).looks
        truth = played(seed).truth
        for before, after in zip(first, second, strict=True):
            if before.healthz is None or after.healthz is None:
                continue
            assert after.healthz["cpu_s"] >= before.healthz["cpu_s"] - 1e-6, seed
            if before.healthz["step"] is not None:
                assert after.healthz["step"] >= before.healthz["step"]
            if truth.settled and before.rank in truth.stuck:
                assert after.healthz["step"] == before.healthz["step"], seed
                assert not moved(before, after), seed


def moved(before: Answers, after: Answers) -> bool:
    """Operations went on."""
    if before.summary is None or after.summary is None:
        return False
    return [group["last_issued"] for group in before.summary["groups"]] != [
        group["last_issued"] for group in after.summary["groups"]
    ]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_bodies_are_json(seed: int) -> None:
    for told in looks(seed):
        for value in (told.healthz, told.summary, stacks_json(told)):
            json.dumps(value, allow_nan=False)
        if told.recorded is not None:
            for backend in ("gloo", "nccl"):
                json.dumps(told.trace(backend), allow_nan=False)


def test_a_batch_of_nccl_ends_with_its_closing_entry() -> None:
    """Its parts have its number, and stay scheduled whatever becomes of it."""
    closed = 0
    for seed in SEEDS:
        for told in looks(seed):
            if told.recorded is None:
                continue
            for entry in trace(told.recorded, "nccl").get("entries", ()):
                if entry["profiling_name"] == "nccl:coalesced":
                    closed += entry["state"] == "completed"
                    assert entry["is_p2p"]
                    assert entry["input_sizes"] == []
    assert closed > 20


def test_nccl_says_started_only_with_timing() -> None:
    """As torch's own tests of its recorder have it (test_c10d_nccl.py): without
    TORCH_NCCL_ENABLE_TIMING what is pending is "scheduled", and no operation counts as started. A
    barrier is an all_reduce of one element, under a name of its own."""
    seen: set[tuple[bool, str]] = set()
    for seed in SEEDS:
        for told in looks(seed):
            if told.recorded is None:
                continue
            timing = told.recorded.rank.plan.timing
            dump = trace(told.recorded, "nccl")
            for entry in dump.get("entries", ()):
                seen.add((timing, entry["state"]))
                if "barrier" in entry["profiling_name"]:
                    assert entry["profiling_name"] == "nccl:all_reduce_barrier"
                    assert entry["input_sizes"] == [[1]]
            started = {each["last_started_collective"] for each in dump["pg_status"].values()}
            assert timing or started <= {"-1"}
    states = {"scheduled", "completed"}
    assert seen == {
        *((timing, each) for timing in (False, True) for each in states),
        (True, "started"),
    }
