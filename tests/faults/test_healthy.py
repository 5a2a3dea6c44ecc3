"""The verdict on real jobs without any fault: nobody is suspected at any moment."""

from __future__ import annotations

import time
from typing import Any

import pytest
import scenes
from running import diagnose, job, suspects, told

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.torch, pytest.mark.timeout(900)]

for family in scenes.FAMILIES:
    scenes.load(family)
HEALTHY = sorted(
    (scene for scene in scenes.SCENES.values() if scene.status == 0), key=lambda scene: scene.name
)


def look(scene: scenes.Scene, kind: str | None = None) -> None:
    slow: set[int] = set()
    with job(scene, kind) as sockets:
        start = time.monotonic()
        for moment in scene.moments:
            time.sleep(max(0.0, start + moment - time.monotonic()))
            status, verdict = diagnose(sockets, scene.ranks)
            print(f"{time.monotonic() - start:.0f} s: {verdict['verdict']}")
            assert suspects(verdict) == (), told(verdict)
            assert status in ((0,) if scene.earns else (0, 2)), told(verdict)
            if status == 0:
                assert verdict["verdict"].startswith("no rank is stuck")
                assert verdict["progress"]
            slow = {each["rank"] for each in verdict["stragglers"]}
    if scene.earns and scene.slow_rank != -1:
        assert slow == ({scene.slow_rank} if scene.slow_rank is not None else set())


def marked(scene: scenes.Scene) -> object:
    marks: list[Any] = [pytest.mark.long] * (scene.family == "pausing")
    return pytest.param(scene, marks=marks, id=scene.name)


@pytest.mark.parametrize("scene", [marked(each) for each in HEALTHY])
def test_nobody_is_suspected(scene: scenes.Scene) -> None:
    look(scene)


@pytest.mark.parametrize(
    "scene",
    [scene for scene in HEALTHY if scene.stock is not None],
    ids=lambda scene: scene.name,
)
def test_nobody_is_suspected_on_stock_workers(scene: scenes.Scene) -> None:
    look(scene, "torch")


@pytest.mark.long
@pytest.mark.parametrize("run", range(20))
def test_healthy_again_and_again(run: int) -> None:
    """Jobs of their own, each looked at from its first steps on."""
    scene = scenes.SCENES["fine"]
    with job(scene) as sockets:
        for _ in range(2):
            status, verdict = diagnose(sockets, scene.ranks, "--interval", "1")
            assert (status, suspects(verdict)) == (0, ()), told(verdict)
