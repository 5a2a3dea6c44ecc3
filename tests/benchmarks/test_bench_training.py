"""The suites training and footprint of benchmarks/: whether they measure what they say."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.context import Context
from benchmarks.report.model import Bars, Report
from benchmarks.subjects.servers import Missing
from benchmarks.subjects.trainer import WARM
from benchmarks.suites import footprint, training
from benchmarks.suites.training import Block, Condition, Found

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks are Linux's")


def well_formed(report: Report) -> None:
    json.loads(json.dumps(report.as_dict(), allow_nan=False))
    for table in report.tables:
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.columns)}
    for plot in report.plots:
        assert isinstance(plot, Bars)
        assert {len(bars) for bars in plot.series.values()} == {len(plot.groups)}
        assert {len(ranges) for ranges in plot.errors.values()} <= {len(plot.groups)}


# --- training: the figures that come from the blocks


def test_a_block_is_compared_with_its_neighbours() -> None:
    found = Found()
    found.add(Block(100, 1.0, 0.8), Block(100, 1.1, 0.8), Block(100, 1.0, 0.8))
    found.add(Block(100, 2.0, 1.0), Block(50, 0.5, 0.5), Block(200, 1.0, 1.0))
    assert found.wall == pytest.approx([10.0, 0.0])
    assert found.cpu[0] == pytest.approx(0.0)
    assert found.cpu[1] == pytest.approx((0.01 / math.sqrt(0.01 * 0.005) - 1) * 100)


def test_each_round_has_every_condition_in_its_own_order() -> None:
    chosen = random.Random(training.SEED)
    rounds = [training.sequence(training.CONDITIONS, chosen) for _ in range(5)]
    for conditions in rounds:
        wanted = {condition: condition.repeats for condition in training.CONDITIONS}
        assert Counter(conditions) == wanted
    assert any(conditions != rounds[0] for conditions in rounds)
    again = random.Random(training.SEED)
    assert rounds[0] == training.sequence(training.CONDITIONS, again)


def found_with(wall: list[float], answered: int = 101) -> dict[Condition, Found]:
    found = {condition: Found() for condition in (*training.CONDITIONS, training.TORCH)}
    polled = training.CONDITIONS[-1]
    assert (polled.pings, polled.dumps) == (100, 1)
    found[polled] = Found(wall, wall, [0.003] * len(wall), [50.0], asked=101, answered=answered)
    return found


@pytest.mark.parametrize(
    ("wall", "met", "said"),
    [
        ([0.1, 0.2, 0.3, 0.2, 0.1, 0.2], True, "CPU"),
        ([-2.0, 3.0, 1.0, -1.0, 2.0, 1.5], True, "inside the noise"),
        ([0.9, 1.0, 1.1, 1.0, 0.9, 1.1], False, "CPU"),
    ],
)
def test_the_target_is_judged_with_its_interval(wall: list[float], met: bool, said: str) -> None:
    report = training.report(found_with(wall), "anywhere", {}, 1.0)
    well_formed(report)
    [target] = report.targets
    assert target.met is met
    assert target.note.startswith(said)
    assert target.lowest is not None
    assert target.highest is not None
    assert target.figure is not None
    assert target.lowest <= target.figure <= target.highest


def test_no_figure_where_polls_were_not_answered() -> None:
    [target] = training.report(found_with([0.1] * 5, answered=100), "anywhere", {}, 1.0).targets
    assert (target.figure, target.met) == (None, False)


def test_no_figure_without_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def gone(kind: str) -> None:
        raise Missing("torch is not installed")

    monkeypatch.setattr(training, "available", gone)
    report = training.run(Context(1, True, tmp_path))
    well_formed(report)
    assert report.missing == {"torch": "torch is not installed"}
    [target] = report.targets
    assert (target.figure, target.met, target.note) == (None, False, "torch is not installed")


# --- training: the process


@pytest.fixture(scope="module")
def trainer() -> Iterator[training.Trainer]:
    pytest.importorskip("torch")
    cpus = os.sched_getaffinity(0)
    with (
        tempfile.TemporaryDirectory(prefix="ws-") as folder,
        training.training(Path(folder), "t", min(cpus), max(cpus)) as process,
    ):
        yield process


@pytest.mark.torch
def test_it_trains_while_it_is_polled(trainer: training.Trainer) -> None:
    trainer.serve("ours")
    block = trainer.block(0.2, pings=50, dumps=10)
    assert block.steps > 0
    assert block.seconds >= 0.2
    assert block.cpu_step > 0
    lasting = training.AHEAD + WARM + 0.2 + training.SLACK
    for name, rate in (("ping", 50), ("dump_traceback", 10)):
        assert block.polls[name][0].answered == math.floor(lasting * rate) + 1
    trainer.serve("none")
    assert not os.path.exists(trainer.path)
    assert trainer.block(0.05).polls == {}


@pytest.mark.torch
def test_polling_goes_on_until_the_block_is_over(
    trainer: training.Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "WARM", -0.3)  # so the poller expects a shorter block
    trainer.serve("ours")
    block = trainer.block(0.3, pings=100)
    results = block.polls["ping"]
    assert len(results) > 1
    assert all(result.answered == result.sent > 0 for result in results)


# --- footprint


def test_interpreters_are_timed_and_must_succeed(tmp_path: Path) -> None:
    variables = footprint.environment(tmp_path)
    assert "PYTHONDONTWRITEBYTECODE" not in variables
    wall, cpu = footprint.spawned("import workerserver", variables)
    assert wall > 0
    assert cpu > 0
    assert (tmp_path / "bytecode").is_dir()
    with pytest.raises(RuntimeError, match=r"failed \(3\)"):
        footprint.spawned("raise SystemExit(3)", variables)


def test_import_times_by_package(tmp_path: Path) -> None:
    packages = footprint.self_times(footprint.environment(tmp_path))
    assert packages["workerserver"][1] > 10
    assert packages["asyncio"][0] > 0
    assert "torch" not in packages


def test_what_a_server_adds(short_path: Path) -> None:
    variables = footprint.environment(short_path)
    probe = footprint.probed("ours", short_path, 20, 2, variables)
    assert probe.threads() == {"workerserver-lo": 1, "workerserver-io": 1}
    assert len(probe.later) == 5
    assert probe.added("pss") > 0
    assert probe.added("dirty") > 0
    assert 0 < probe.own["dirty"] < probe.own["resident"]
    assert probe.polled["descriptors"] > probe.before["descriptors"]
    imports = footprint.Imports()
    for statement in footprint.IMPORTS:
        imports.wall[statement] = imports.cpu[statement] = [30.0, 40.0]
    found = {"ours": [probe]}
    targets = {target.what: target for target in footprint.targets(imports, found)}
    assert targets["import workerserver, without torch"].figure == 0
    without = [target for target in targets.values() if target.figure is None]
    assert len(without) == 6
    assert not any(target.met for target in without)
    threads = targets["threads added, no torch"]
    assert (threads.figure, threads.met) == (2, True)


def test_a_probe_that_fails_says_why(short_path: Path) -> None:
    variables = footprint.environment(short_path)
    too_long = short_path / ("n" * 120)
    with (
        pytest.raises(RuntimeError, match=r"(?s)the probe ended \(1\): .*Error binding"),
        footprint.probe("ours", too_long, variables),
    ):
        pass


def test_unanswered_requests_are_no_figure(short_path: Path) -> None:
    with pytest.raises(RuntimeError, match="0 of 3 answered"):
        footprint.ask(str(short_path / "nobody"), "ping", 3)
