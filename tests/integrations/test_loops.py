"""Heartbeats of loops that no framework knows, and what the callbacks import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
from support.lifecycle import environment

from workerserver import heartbeat
from workerserver.integrations import __all__ as NAMES
from workerserver.integrations import steps
from workerserver.process._pulse import last_heartbeat, reset


@pytest.fixture(autouse=True)
def no_heartbeat() -> Iterator[None]:
    reset()
    yield
    reset()


def test_steps_beat_before_each_batch() -> None:
    seen = [(batch, last_heartbeat()[0]) for batch in steps("abc")]
    assert seen == [("a", 0), ("b", 1), ("c", 2)]


def test_steps_go_on_in_the_next_epoch() -> None:
    list(steps("abc"))
    assert [last_heartbeat()[0] for _ in steps("ab")] == [3, 4]
    assert [last_heartbeat()[0] for _ in steps("ab", first=100)] == [100, 101]


@pytest.mark.torch
@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
def test_an_optimizer_beats_until_the_program_does() -> None:
    import torch

    from workerserver.integrations.loops import OptimizerBeats

    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    beats = OptimizerBeats()
    told = []
    for _ in range(3):
        optimizer.step()
        told.append(last_heartbeat()[0])
    assert told == [0, 1, 2]

    heartbeat(500)  # the program counts by itself from now on
    optimizer.step()
    assert last_heartbeat()[0] == 500
    heartbeat(2)
    optimizer.step()
    assert last_heartbeat()[0] == 2
    beats.stop()

    beats = OptimizerBeats()
    optimizer.step()
    assert last_heartbeat()[0] == 3
    beats.stop()
    optimizer.step()
    assert last_heartbeat()[0] == 3


FRAMEWORKS = ("torch", "lightning", "pytorch_lightning", "transformers", "accelerate", "ray")


def test_no_framework_is_imported_unasked() -> None:
    script = f"""
import sys
import workerserver.integrations as integrations
integrations.steps
assert set({NAMES!r}) <= set(dir(integrations))
print(sorted(set({FRAMEWORKS!r}) & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("LightningCallback", "pytorch_lightning"),
        ("TransformersCallback", "transformers"),
        ("AccelerateTracker", "accelerate"),
    ],
)
def test_a_framework_that_is_missing_is_named(name: str, package: str) -> None:
    import workerserver.integrations

    if find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    with pytest.raises(ModuleNotFoundError, match=package):
        getattr(workerserver.integrations, name)
