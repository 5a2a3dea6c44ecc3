"""The verdict on real jobs, each with one planted fault."""

from __future__ import annotations

import time

import pytest
import scenes
from running import diagnose, diagnose_hung, job, suspects, told

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(700)]

for family in scenes.FAMILIES:
    scenes.load(family)
SCENES = sorted(scenes.SCENES.values(), key=lambda scene: scene.name)


def marked(scene: scenes.Scene) -> object:
    marks = [pytest.mark.quick] * scene.quick
    return pytest.param(scene, marks=marks, id=scene.name)


@pytest.mark.parametrize("scene", [marked(each) for each in SCENES if each.status == 1])
def test_fault(scene: scenes.Scene) -> None:
    with job(scene) as sockets:
        status, verdict = diagnose_hung(sockets, scene, scene.how.deadline_s)
    print(verdict["verdict"])
    assert (status, suspects(verdict)) == (1, scene.suspects), told(verdict)
    assert verdict["ranks"] == scene.ranks
    assert [each["rank"] for each in verdict["unreachable"]] == [
        each.rank for each in scene.suspects if each.reason == "unreachable"
    ]
    assert verdict["stragglers"] == []
    for each in verdict["suspects"]:
        assert each["gil_holder"] == (each["reason"] == "gil held")


@pytest.mark.parametrize("scene", [marked(each) for each in SCENES if each.status == 2])
def test_nobody_is_accused_and_nothing_called_healthy(scene: scenes.Scene) -> None:
    with job(scene) as sockets:
        time.sleep(scene.how.settled_s)
        verdicts = [diagnose(sockets, scene.ranks) for _ in range(2)]
    for status, verdict in verdicts:
        print(verdict["verdict"])
        assert (status, suspects(verdict)) == (2, ()), told(verdict)
    assert scene.says in verdicts[-1][1]["verdict"], told(verdicts[-1][1])


STOCK = [each for each in SCENES if each.status == 1 and each.stock is not None]


@pytest.mark.parametrize("scene", STOCK, ids=lambda scene: scene.name)
def test_fault_on_stock_workers(scene: scenes.Scene) -> None:
    """What stock workers can't tell is said beside each scene."""
    assert scene.stock is not None
    with job(scene, "torch") as sockets:
        if scene.stock:
            status, verdict = diagnose_hung(sockets, scene, 3.0)
        else:
            time.sleep(scene.how.settled_s)
            status, verdict = diagnose(sockets, scene.ranks, "--deadline", "3")
    print(verdict["verdict"])
    expected = (1, scene.stock) if scene.stock else (2, ())
    assert (status, suspects(verdict)) == expected, told(verdict)
