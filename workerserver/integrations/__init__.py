"""Callbacks for training frameworks.

Each one serves in the processes that train, as ``workerserver.start()`` does, and calls
``heartbeat`` at each step. A framework is imported when its callback is first asked for, so none is
a dependency.

LightningCallback     for the Trainer of ``lightning.pytorch`` or ``pytorch_lightning``
TransformersCallback  for the Trainer of ``transformers``
AccelerateTracker     for ``accelerate.Accelerator(log_with=...)``
ray_train_loop        for the training function of ``ray.train.torch.TorchTrainer``
steps                 for a loop of your own
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workerserver.process.lazy import lazy_names

if TYPE_CHECKING:
    from workerserver.integrations.accelerate import AccelerateTracker
    from workerserver.integrations.lightning import LightningCallback
    from workerserver.integrations.loops import steps
    from workerserver.integrations.ray import ray_train_loop
    from workerserver.integrations.transformers import TransformersCallback

__all__ = [
    "AccelerateTracker",
    "LightningCallback",
    "TransformersCallback",
    "ray_train_loop",
    "steps",
]

_LAZY = {
    "AccelerateTracker": f"{__name__}.accelerate",
    "LightningCallback": f"{__name__}.lightning",
    "TransformersCallback": f"{__name__}.transformers",
    "ray_train_loop": f"{__name__}.ray",
    "steps": f"{__name__}.loops",
}

__getattr__, __dir__ = lazy_names(__name__, _LAZY)
