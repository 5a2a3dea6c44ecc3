"""Lightning: a callback of its Trainer."""

from __future__ import annotations

from typing import Any

from workerserver.control_plane import start
from workerserver.process.free_threaded.beats import heartbeat
from workerserver.process.loaded import imported

__all__ = ["LightningCallback"]


def _callback_class() -> Any:
    """``Callback`` of the package that the program uses: Lightning has two names."""
    if imported("lightning.pytorch") is None and imported("pytorch_lightning") is not None:
        from pytorch_lightning import Callback
    else:
        try:
            from lightning.pytorch import Callback
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "lightning":
                raise
            from pytorch_lightning import Callback
    return Callback


_Callback: Any = _callback_class()


class LightningCallback(_Callback):
    """Serves in each process of the Trainer, and beats at each batch.

    ``Trainer(callbacks=[LightningCallback()])``. The step is ``trainer.global_step``, which counts
    the optimizer's steps. A batch of a validation repeats the step: it is a sign of life.

    The server starts when the Trainer has set up its process group. To see a hang before that, put
    ``worker_main()`` around the script's main function, or use ``workerserver run``.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        start()

    def on_train_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        heartbeat(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        heartbeat(trainer.global_step)

    def on_validation_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        heartbeat(trainer.global_step)

    def on_test_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        heartbeat(trainer.global_step)

    def on_predict_batch_start(self, trainer: Any, *_: Any, **__: Any) -> None:
        heartbeat(trainer.global_step)
