"""The text of /metrics, as the official parsers and promtool read it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support.requests.samples import Samples, families, key, samples

from workerserver.process import _pulse
from workerserver.process._pulse import BUDGETS, Meter, label, set_groups, set_info, set_watchdogs


@pytest.fixture
def meter() -> Iterator[Meter]:
    _pulse.reset()
    yield Meter()
    _pulse.reset()


def scrape(meter: Meter, **readings: Any) -> Samples:
    """What both forms say, which is the same but for what goes on meanwhile."""
    plain = samples(meter.exposition(False, **readings))
    assert plain.keys() == samples(meter.exposition(True, **readings)).keys()
    return plain


def fill(meter: Meter) -> None:
    """Something in each family."""
    set_info(b'rank="3",job="digits"')
    set_groups([(b'backend="gloo",group="0"', 7, 6)])
    set_watchdogs([(b'job="digits"', 1, 2, 3, 0.5)])
    meter.list(["ping", 'a"\\\n'])
    meter.enter("ping")
    meter.standby = 9
    _pulse.watch_switch(True)
    _pulse.watch_asked(1_000_000_000)
    _pulse.watch_answered(1_250_000_000)
    for step in range(100):
        _pulse.beat_at(step, 1_000_000_000 + step * 40_000_000)


def test_watchdogs(meter: Meter) -> None:
    """One that is no longer told of has no sample."""
    set_watchdogs([(b'job="%d"' % job, job % 3, job, 2, 0.5) for job in range(20)])
    found = scrape(meter)
    assert [found[key("workerserver_watchdog_status", job=str(job))] for job in range(8)] == [
        0, 1, 2, 0, 1, 2, 0, 1,
    ]  # fmt: skip
    stalls = key("workerserver_watchdog_incidents_total", job="7", kind="stall")
    ends = key("workerserver_watchdog_incidents_total", job="7", kind="gone")
    assert (found[stalls], found[ends]) == (7, 2)
    assert key("workerserver_watchdog_status", job="8") not in found
    assert found[key("workerserver_watchdog_look_age_seconds", job="7")] > 0
    set_watchdogs([])
    assert not [name for name, _ in scrape(meter) if "watchdog" in name]
    set_watchdogs([(b'job="long-%s"' % (b"x" * 96), 1, 1, 1, 0.5)])
    assert not [name for name, _ in scrape(meter) if "watchdog" in name]


def test_budgets_and_readings(meter: Meter) -> None:
    meter = Meter(limits=[0, 4096, 64, 256, 1 << 26, (1 << 63) - 1, 64, 0.1, float("inf")])
    meter.threads = 3
    found = scrape(meter, connections=5, unproven=2, busiest=4, evicted=1, refused=6, unsent=99)
    used = {name: found[key("workerserver_budget_used", budget=name)] for name in BUDGETS}
    limits = {name: found[key("workerserver_budget_limit", budget=name)] for name in BUDGETS}
    assert used.pop("descriptors") > 0
    assert limits.pop("descriptors") > 0
    assert 0 <= used.pop("snapshots") <= 100  # of the process
    assert used == {
        "connections": 5, "connections_without_token": 2, "connections_of_one_address": 4,
        "request_bytes": 0, "unsent_bytes": 99, "handler_threads": 3, "gil_share": 0,
    }  # fmt: skip
    assert list(limits.values()) == [
        4096, 64, 256, 1 << 26, float((1 << 63) - 1), 64, 0.1, float("inf"),
    ]  # fmt: skip
    assert found[key("workerserver_places_total", what="closed_for_another")] == 1
    assert found[key("workerserver_places_total", what="refused")] == 6
    assert found[key("workerserver_connections")] == 5


def test_labels_are_escaped_and_cut(meter: Meter) -> None:
    evil = 'a"\\\n}{,=\u2028\U0001f600'
    meter.list([evil, "b" * 500, "\\" * 300, "\U0001f600" * 100])
    names = {
        dict(labels)["handler"]
        for name, labels in scrape(meter)
        if name == "workerserver_handler_running"
    }
    assert names == {evil, "b" * 192, "\\" * 96, "\U0001f600" * 48}
    assert label("\ud800") == b"?"
    for size in range(1, 20):
        assert len(label('\\"\n' * 9, size)) <= size


def test_info(meter: Meter) -> None:
    assert scrape(meter)[key("workerserver_info")] == 1
    set_info(b'rank="3",job="%b"' % label('di"g\n'))
    assert scrape(meter)[key("workerserver_info", rank="3", job='di"g\n')] == 1
    assert families(meter.exposition(True))["workerserver"].type == "info"
    with pytest.raises(ValueError, match="3000 bytes"):
        set_info(b"x" * 3000)


def test_heartbeats_and_steps(meter: Meter) -> None:
    assert not [name for name, _ in scrape(meter) if "step" in name or "beat" in name]
    _pulse.heartbeat(42)
    found = scrape(meter)
    assert found[key("workerserver_heartbeat_step")] == 42
    assert 0 <= found[key("workerserver_heartbeat_age_seconds")] < 60
    assert found[key("workerserver_heartbeats_total")] == 1
    assert found[key("workerserver_step_duration_seconds_count")] == 0


def beats(meter: Meter, *pairs: tuple[int, float]) -> Samples:
    for step, at in pairs:
        _pulse.beat_at(step, int((1000 + at) * 1e9))
    return scrape(meter)


def steps(found: Samples) -> tuple[float, float]:
    return (
        found[key("workerserver_step_duration_seconds_count")],
        round(found[key("workerserver_step_duration_seconds_sum")], 4),
    )


def test_step_times_add_up_over_scrapes(meter: Meter) -> None:
    found = beats(meter, (0, 0), (1, 0.04), (1, 0.05), (2, 0.08), (3, 0.7))
    assert steps(found) == (3, 0.7)  # one that repeats its step is no new step
    assert found[key("workerserver_step_duration_seconds_bucket", le="0.025")] == 0
    assert found[key("workerserver_step_duration_seconds_bucket", le="0.05")] == 2
    assert found[key("workerserver_step_duration_seconds_bucket", le="0.5")] == 2
    assert found[key("workerserver_step_duration_seconds_bucket", le="1.0")] == 3
    found = beats(meter, (13, 1.7))  # ten steps ahead: the time of one of them
    assert steps(found) == (4, 0.8)
    assert found[key("workerserver_heartbeats_total")] == 6
    found = beats(meter, (3, 601.7))  # back
    assert steps(found) == (5, 600.8)
    assert found[key("workerserver_step_duration_seconds_bucket", le="300.0")] == 4
    assert found[key("workerserver_step_duration_seconds_bucket", le="+Inf")] == 5


def test_steps_that_the_ring_has_lost(meter: Meter) -> None:
    """Nobody looks for longer than the ring holds: the count and the sum are right."""
    beats(meter, (0, 0))
    found = beats(meter, *((step, step * 0.02) for step in range(1, 10001)))
    assert steps(found) == (10000, 200.0)
    found = beats(meter, (10001, 201.0))
    assert steps(found) == (10001, 201.0)


def test_waits_for_the_gil(meter: Meter) -> None:
    assert not [name for name, _ in scrape(meter) if "gil" in name and "budget" not in name]
    _pulse.watch_switch(True)
    assert scrape(meter)[key("workerserver_gil_unavailable_seconds")] == 0
    for waited in (250_000_000, 125_000_000, 50_000):
        _pulse.watch_asked(1_000_000_000)
        _pulse.watch_answered(1_000_000_000 + waited)
    _pulse.watch_asked(1)  # since the boot
    found = scrape(meter)
    assert found[key("workerserver_gil_wait_seconds")] == 0.00005
    assert found[key("workerserver_gil_wait_max_seconds")] == 0.25
    assert found[key("workerserver_gil_unavailable_seconds")] > 1
    assert found[key("workerserver_gil_wait_duration_seconds_bucket", le="0.0001")] == 1
    assert found[key("workerserver_gil_wait_duration_seconds_bucket", le="0.25")] == 3
    assert found[key("workerserver_gil_wait_duration_seconds_count")] == 3
    assert found[key("workerserver_gil_wait_duration_seconds_sum")] == 0.37505
    _pulse.watch_switch(False)
    found = scrape(meter)
    assert key("workerserver_gil_unavailable_seconds") not in found
    assert found[key("workerserver_gil_wait_seconds")] == 0.00005


def test_groups(meter: Meter) -> None:
    assert not [name for name, _ in scrape(meter) if "collectives" in name]
    set_groups([(b'backend="gloo",group="%d"' % n, n + 5, n) for n in range(100)])
    found = scrape(meter)
    labels = {"backend": "gloo", "group": "63"}
    assert found[key("workerserver_collectives_issued_total", **labels)] == 68
    assert found[key("workerserver_collectives_retired_total", **labels)] == 63
    assert key("workerserver_collectives_issued_total", backend="gloo", group="64") not in found
    assert 0 <= found[key("workerserver_collectives_age_seconds")] < 60


def test_the_process_by_its_standard_names(meter: Meter) -> None:
    found = scrape(meter)
    assert found[key("process_cpu_seconds_total")] > 0
    assert found[key("process_resident_memory_bytes")] > 1 << 20
    assert found[key("process_virtual_memory_bytes")] > 1 << 20
    assert 0 < time.time() - found[key("process_start_time_seconds")] < 86400 * 30
    held = os.open(os.devnull, os.O_RDONLY)
    assert scrape(meter)[key("process_open_fds")] == found[key("process_open_fds")] + 1
    os.close(held)
    assert found[key("process_max_fds")] == os.sysconf("SC_OPEN_MAX")
    again = scrape(meter)[key("process_start_time_seconds")]
    assert again == found[key("process_start_time_seconds")]


def test_any_number_of_handlers_has_a_bound(meter: Meter) -> None:
    """The first 127 handlers have figures of their own, the others share one."""
    names = [f"{n:03}" + '"' * 300 for n in range(1000)]
    for name in names:
        meter.enter(name)
    meter.list(names)
    text = meter.exposition(False)
    found = samples(text)
    assert sum(name == "workerserver_handler_running" for name, _ in found) == 127
    assert found[key("workerserver_handler_running", handler="/others")] == 1000 - 126
    assert len(text) < 1 << 20


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian: prometheus)")
def test_promtool_finds_no_fault(meter: Meter) -> None:
    fill(meter)
    for filled in (meter, Meter()):
        done = subprocess.run(
            ["promtool", "check", "metrics"],
            input=filled.exposition(False), capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_both_forms_have_the_same_families_and_types(meter: Meter) -> None:
    fill(meter)
    plain, rich = families(meter.exposition(False)), families(meter.exposition(True))
    assert rich["workerserver"].type == "info"
    types = {name: family.type for name, family in rich.items()} | {"workerserver_info": "gauge"}
    del types["workerserver"]
    assert {name: family.type for name, family in plain.items()} == types
    assert len(types) > 25
    assert all(re.fullmatch(r"[A-Z].*\.", family.documentation) for family in rich.values())
