"""An ordinary training script: a small network learns scikit-learn's digits, data-parallel.

    torchrun --standalone --nproc-per-node 4 examples/train_digits.py

Two lines are not ordinary. ``@worker_main()`` serves the control plane on the socket in
TORCH_WORKER_SERVER_SOCKET. ``heartbeat(step)`` tells the server how far the loop has come.
``--hang-rank R --hang-step N`` makes one rank hang for good, by a real deadlock.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from workerserver import heartbeat, worker_main


class Checkpoints:
    """The shards of a checkpoint in memory. A lock keeps readers away from half-written shards."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.shards: dict[str, torch.Tensor] = {}

    def save(self, model: nn.Module) -> None:
        with self.lock:
            self.shards = {name: value.clone() for name, value in model.state_dict().items()}

    def load_checkpoint_shard(self, name: str) -> torch.Tensor:
        with self.lock:
            return self.shards[name]

    def restore(self, model: nn.Module) -> None:
        # The mistake: a Lock is not reentrant, and load_checkpoint_shard() takes the same lock.
        with self.lock:
            model.load_state_dict({name: self.load_checkpoint_shard(name) for name in self.shards})


def batches(
    loader: DataLoader, sampler: DistributedSampler, epochs: int
) -> Iterator[list[torch.Tensor]]:
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield from loader


@worker_main()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--hang-rank", type=int, default=-1)
    parser.add_argument("--hang-step", type=int, default=-1)
    options = parser.parse_args()

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(
        torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels, dtype=torch.int64)
    )
    sampler: DistributedSampler = DistributedSampler(data, shuffle=True, seed=0)
    loader: DataLoader = DataLoader(
        data,
        batch_size=options.batch_size,
        sampler=sampler,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="fork",
    )
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    model = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    checkpoints = Checkpoints()
    checkpoints.save(network)

    loss = torch.zeros(())
    for step, (inputs, targets) in enumerate(batches(loader, sampler, options.epochs)):
        heartbeat(step)
        if rank == options.hang_rank and step == options.hang_step:
            checkpoints.restore(network)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()

    if rank == 0:
        with torch.no_grad():
            found = network(data.tensors[0]).argmax(dim=1)
        right = (found == data.tensors[1]).float().mean().item()
        print(f"loss {loss.item():.4f}, {right:.1%} of the training images recognised", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
