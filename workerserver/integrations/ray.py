"""Ray Train: its callbacks run in its controller, so the training function itself is wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from workerserver.control_plane import start
from workerserver.integrations.loops import OptimizerBeats

__all__ = ["ray_train_loop"]

P = ParamSpec("P")
R = TypeVar("R")


def ray_train_loop(function: Callable[P, R]) -> Callable[P, R]:
    """Serve in the Ray worker that runs *function*, and beat after each step of an optimizer::

        TorchTrainer(ray_train_loop(train), scaling_config=ScalingConfig(num_workers=8))

    A decorator, too. If the loop calls ``heartbeat`` or uses ``steps``, the steps of that count are
    reported. In a worker that trains with Lightning or transformers, use their callbacks inside
    *function* instead.
    """

    @functools.wraps(function)
    def serve(*args: P.args, **kwargs: P.kwargs) -> R:
        start()
        beats = OptimizerBeats()
        try:
            return function(*args, **kwargs)
        finally:
            beats.stop()

    return serve
