"""Sharded and parallel models: FSDP2, DTensor, tensor x pipeline grids."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from scenes import FOREVER, RANK, STEPS, Suspect, beat, fault, prepare, reduce
from torch.distributed.device_mesh import init_device_mesh


def hang(*_: Any) -> None:
    time.sleep(FOREVER)


def model() -> torch.nn.Sequential:
    return torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))


def fsdp(shape: tuple[int, ...], names: tuple[str, ...], hook: Callable[[Any], None]) -> None:
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    whole = model()
    for layer in whole:
        fully_shard(layer, mesh=mesh)
    fully_shard(whole, mesh=mesh)
    for step in range(2):
        beat(STEPS + step)
        if step:
            hook(whole)
        whole(torch.ones(2, 8)).sum().backward()


def stuck_forward(whole: Any) -> None:
    """In the second layer."""
    if RANK == 1:
        whole[1].register_forward_pre_hook(hang)


# The numbers of the operations are those of torch 2.13.
@fault(3, Suspect(1, "behind", "default_pg", "all_gather", 17, "hang"))
def fsdp_stuck_in_forward() -> None:
    fsdp((3,), ("shards",), stuck_forward)


def stuck_before_step(whole: Any) -> None:
    if RANK == 3:
        prepare()


@fault(4, Suspect(3, "behind", "mesh_replicas", "all_reduce", 4, "prepare"))
def fsdp_in_two_dimensions() -> None:
    """Replicas of shards: rank 2 waits for rank 3 in their shards, rank 1 in their replicas."""
    fsdp((2, 2), ("replicas", "shards"), stuck_before_step)


def parallel(hook: Callable[[Any], None]) -> None:
    """A tensor-parallel pair of layers."""
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))
    whole = parallelize_module(
        torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 12)),
        mesh,
        {"0": ColwiseParallel(), "1": RowwiseParallel()},
    )
    for step in range(3):
        beat(STEPS + step)
        if step == 2:
            hook(whole)
        whole(torch.ones(2, 12)).sum().backward()


def stuck_between_layers(whole: Any) -> None:
    if RANK == 2:
        whole[0].register_forward_hook(hang)


@fault(3, Suspect(2, "behind", "default_pg", "all_reduce", 12, "hang"))
def tensor_parallel() -> None:
    parallel(stuck_between_layers)


@fault(3, Suspect(1, "behind", "default_pg", "all_gather", 7, "prepare"))
def gathers_a_dtensor() -> None:
    """full_tensor() is a collective; rank 1 has no reason to log."""
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (3,))
    sharded = distribute_tensor(torch.ones(12), mesh, [Shard(0)])
    beat(STEPS)
    if RANK == 1:
        prepare()
    sharded.full_tensor()
    reduce()


def grid_step(mesh: Any, step: int, stops: int) -> None:
    """Two stages of two ranks each: a sum within the stage, then the result to the next one."""
    tensor, peer = torch.ones(4), (RANK + 2) % 4
    beat(STEPS + step)
    if RANK > 1:
        dist.recv(tensor, peer)
    if stops == RANK and step == 1:
        prepare()
    dist.all_reduce(tensor, group=mesh["tensor"].get_group())
    if RANK < 2:
        dist.send(tensor, peer)
        dist.recv(tensor, peer)
    else:
        dist.send(tensor, peer)


@fault(4, Suspect(3, "behind", "mesh_tensor", "all_reduce", 2, "prepare"))
def grid_stops_in_the_last_stage() -> None:
    """Rank 2 waits for rank 3 within the stage, ranks 0 and 1 for gradients from them."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    for step in range(3):
        grid_step(mesh, step, 3)


@fault(4, Suspect(0, "behind", "mesh_tensor", "all_reduce", 2, "prepare"))
def grid_stops_in_the_first_stage() -> None:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    for step in range(3):
        grid_step(mesh, step, 0)


@fault(4, Suspect(1, "behind", "default_pg", "recv from rank 1", None, "prepare"))
def grid_without_sums() -> None:
    """Rank 1 sends nothing to rank 3; ranks 0 and 2 wait for the rest in a monitored barrier."""
    beat(STEPS)
    if RANK == 1:
        prepare()
    if RANK == 3:
        dist.recv(torch.ones(4), 1)
    dist.monitored_barrier()
