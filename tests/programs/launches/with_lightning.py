"""Training with Lightning's Trainer: two processes, by whichever launcher."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from plant import Numbers, model, reached

from workerserver.integrations import LightningCallback


class Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def training_step(self, batch: Any, index: int) -> Any:
        reached(index, self.global_rank)
        return torch.nn.functional.mse_loss(self.net(batch["x"]), batch["y"])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def main() -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LightningCallback()],
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(Numbers()))


if __name__ == "__main__":
    main()
