"""Training with the Trainer of Hugging Face transformers."""

from __future__ import annotations

import os
from typing import Any

import torch
from plant import STEPS, Numbers, model, reached
from transformers import Trainer, TrainingArguments

from workerserver.integrations import TransformersCallback


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = model()

    def forward(self, x: Any, y: Any) -> Any:
        return {"loss": torch.nn.functional.mse_loss(self.net(x), y)}


class Shards(Trainer):
    def training_step(self, *words: Any, **named: Any) -> Any:
        reached(self.state.global_step, self.args.process_index)
        return super().training_step(*words, **named)


def main() -> None:
    arguments = TrainingArguments(
        output_dir=os.environ["BEGUN"],
        use_cpu=True,
        max_steps=STEPS,
        per_device_train_batch_size=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Shards(Net(), arguments, train_dataset=Numbers(), callbacks=[TransformersCallback()])
    trainer.train()


if __name__ == "__main__":
    main()
