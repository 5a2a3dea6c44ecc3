"""Hugging Face transformers: a callback of its Trainer."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from workerserver.control_plane import start
from workerserver.process.free_threaded.beats import heartbeat

__all__ = ["TransformersCallback"]


class TransformersCallback(TrainerCallback):
    """Serves in each process of the Trainer, and beats at each step.

    ``Trainer(callbacks=[TransformersCallback()])``. The step is ``state.global_step``. A batch that
    only adds to gradients, and a batch of an evaluation, repeats the step: it is a sign of life.
    """

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        start()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        start()  # for a callback that was added later

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        heartbeat(state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        heartbeat(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        heartbeat(state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        heartbeat(state.global_step)
