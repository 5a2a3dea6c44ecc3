"""Training with Ray Train, two workers on a cluster of this machine alone."""

from __future__ import annotations

import os

import ray
import torch
from plant import Numbers, model, reached
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchTrainer, prepare_model

from workerserver.integrations import ray_train_loop


def train() -> None:
    rank = get_context().get_world_rank()
    net = prepare_model(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    for step, batch in enumerate(torch.utils.data.DataLoader(Numbers())):
        loss = torch.nn.functional.mse_loss(net(batch["x"]), batch["y"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        reached(step, rank)


def main() -> None:
    ray.init(num_cpus=3, include_dashboard=False)
    trainer = TorchTrainer(
        ray_train_loop(train),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=os.environ["BEGUN"]),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
