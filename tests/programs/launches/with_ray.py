"""Training with Ray Train, two workers on a cluster of this machine alone.

Ray gives its own processes a minute to start. On a busy machine their imports take longer: then
Ray ends them and starts others, for ever. So they get as long as the test.
"""

from __future__ import annotations

import os

#: Read when Ray is imported, and by its processes.
os.environ.update(
    RAY_worker_register_timeout_seconds="900",
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="900",
    RAY_gcs_server_request_timeout_seconds="900",
    RAY_health_check_timeout_ms="900000",
    RAY_prestart_worker_first_driver="0",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_AUTH_MODE="disabled",  # else a token is written into the home folder
)

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
