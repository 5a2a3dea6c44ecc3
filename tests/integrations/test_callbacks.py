"""The callbacks with the real packages, in this process: what they beat, and that they serve.

tests/launches has whole jobs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from workerserver.process._pulse import heartbeat, last_heartbeat, reset
from workerserver.process._pulse import steps as told
from workerserver.server import running_server

pytestmark = [
    pytest.mark.integrations,
    pytest.mark.timeout(900),  # a framework alone may take minutes to import on a busy machine
    pytest.mark.filterwarnings("ignore"),
]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"needs {package}")


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Iterator[None]:
    """The callback serves, and nothing of it is left."""
    monkeypatch.setenv("TORCH_WORKER_SERVER_SOCKET", str(short_path / "s.sock"))
    reset()
    assert running_server() is None
    yield
    server = running_server()
    assert server is not None, "the callback does not serve"
    server.shutdown()
    reset()


def beats() -> list[int]:
    """The steps of all heartbeats, in order."""
    return [step for step, _ in json.loads(told())["beats"]]


def data() -> Any:
    import torch

    return torch.utils.data.TensorDataset(torch.ones(4, 2), torch.ones(4, 1))


@needs("lightning")
def test_lightning_repeats_the_step_in_a_validation(tmp_path: Path) -> None:
    import lightning.pytorch as pl
    import torch

    from workerserver.integrations import LightningCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            return (self.net(batch[0]) - batch[1]).square().mean()

        def validation_step(self, batch: Any, index: int) -> None:
            seen.append(last_heartbeat()[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    seen: list[int | None] = []
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[LightningCallback()],
    )
    loader = torch.utils.data.DataLoader(data())
    trainer.fit(Module(), loader, loader)
    assert seen == [4] * 4 + [8] * 4
    # Each batch beats before and after it, each batch of a validation once.
    assert beats() == [0, 1, 1, 2, 2, 3, 3, 4, *[4] * 4, 4, 5, 5, 6, 6, 7, 7, 8, *[8] * 4]


@needs("transformers")
def test_the_trainer_repeats_the_step_while_gradients_add_up(tmp_path: Path) -> None:
    import torch
    from transformers import Trainer, TrainingArguments

    from workerserver.integrations import TransformersCallback

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(2, 1)

        def forward(self, x: Any, y: Any) -> Any:
            return {"loss": (self.net(x) - y).square().mean(), "logits": x}

    rows = [{"x": torch.ones(2), "y": torch.ones(1)} for _ in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        num_train_epochs=1,
        per_device_train_batch_size=1,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["y"],
    )
    trainer = Trainer(
        Net(),
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[TransformersCallback()],
    )
    trainer.train()
    assert beats() == [0, 0, 1, 1, 1, 2]
    trainer.evaluate()
    assert beats() == [0, 0, 1, 1, 1, 2, 2, 2]


@needs("accelerate")
def test_accelerate_counts_the_optimizers_steps() -> None:
    import torch
    from accelerate import Accelerator

    from workerserver.integrations import AccelerateTracker

    accelerator = Accelerator(cpu=True, log_with=AccelerateTracker())
    accelerator.init_trackers("anything", {"lr": 0.1})
    net = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net, optimizer, loader = accelerator.prepare(
        net, optimizer, torch.utils.data.DataLoader(data())
    )
    for x, y in loader:
        accelerator.backward((net(x) - y).square().mean())
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": 1.0})
    assert beats() == [0, 1, 2, 3]
    accelerator.end_training()
    optimizer.step()
    assert beats() == [0, 1, 2, 3]


@needs("torch")
def test_the_count_of_the_training_function_is_told() -> None:
    """ray_train_loop() needs nothing of Ray."""
    import torch

    from workerserver.integrations import ray_train_loop

    @ray_train_loop
    def train(config: dict[str, int]) -> str:
        """Trains."""
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        for _ in range(config["steps"]):
            optimizer.step()
        heartbeat(70)
        optimizer.step()
        return "done"

    assert train({"steps": 2}) == "done"
    assert beats() == [0, 1, 70]
    assert train.__doc__ == "Trains."
