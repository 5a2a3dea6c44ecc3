"""Healthy jobs that go on all the time, each in its own way."""

from __future__ import annotations

import ctypes
import queue
import subprocess
import threading
import time

import torch
import torch.distributed as dist
from scenes import FOLDER, RANK, STEPS, How, beat, begun, healthy, reduce
from torch.nn.parallel import DistributedDataParallel

FOR_GOOD = 10**6
#: Looked at at once, one time after the other.
NOW = (0.0, 0.0, 0.0)
QUIET = How(ring=0, beats=False)
#: Looked at from the fourth step on: the first ones of a model may take long.
RUNS = How(begins=False)


def go(step: int) -> None:
    beat(step)
    if step == STEPS + 3:
        begun()


@healthy(3, earns=True, moments=NOW, stock=True)
def fine() -> None:
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        time.sleep(0.01)
        reduce()


@healthy(3, earns=True, slow_rank=1, moments=NOW, stock=True)
def straggler() -> None:
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        if RANK == 1:
            time.sleep(0.3)
        reduce()


@healthy(3, earns=True, slow_rank=-1, moments=NOW, stock=True)
def saves_often() -> None:
    """Every fifth step rank 0 keeps the others waiting for two seconds."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        time.sleep(0.05)
        if step % 5 == 0 and RANK == 0:
            time.sleep(2.0)
        reduce()


def steps(pause_s: float) -> None:
    for step in range(STEPS, FOR_GOOD):
        go(step)
        time.sleep(pause_s)
        reduce()


# Nothing is counted, and a loop in lock-step may be met at one place each time.
@healthy(3, how=QUIET)
def lock_step_unseen() -> None:
    for _ in range(FOR_GOOD):
        load()
        reduce()


def load() -> None:
    time.sleep(0.2)


@healthy(3, how=How(beats=False), earns=True)
def lock_step_recorded() -> None:
    for _ in range(FOR_GOOD):
        load()
        reduce()


@healthy(3, how=RUNS, earns=True)
def in_a_thread() -> None:
    """The main thread joins the loop's."""
    trainer = threading.Thread(target=steps, args=(0.1,))
    trainer.start()
    trainer.join()


@healthy(3, how=RUNS, earns=True)
def ddp_in_a_polled_thread() -> None:
    trainer = threading.Thread(target=train_model)
    trainer.start()
    while trainer.is_alive():
        time.sleep(0.5)


def train_model() -> None:
    model = DistributedDataParallel(torch.nn.Linear(64, 64))
    for step in range(STEPS, FOR_GOOD):
        go(step)
        model(torch.ones(32, 64)).sum().backward()
        time.sleep(0.05)


@healthy(3, how=RUNS, earns=True)
def beside_idle_consumers() -> None:
    """Twenty threads that wait for work, and sometimes get some."""
    work: queue.Queue[int] = queue.Queue()
    changed = threading.Condition()
    for _ in range(10):
        threading.Thread(target=consume, args=(work,), daemon=True).start()
        threading.Thread(target=await_change, args=(changed,), daemon=True).start()
    for step in range(STEPS, FOR_GOOD):
        go(step)
        work.put(step)
        time.sleep(0.05)
        reduce()


def consume(work: queue.Queue[int]) -> None:
    while True:
        work.get()


def await_change(changed: threading.Condition) -> None:
    with changed:
        changed.wait()


@healthy(3, how=RUNS, earns=True)
def groups_of_each_epoch() -> None:
    """Made and destroyed again and again, under one name."""
    for epoch in range(FOR_GOOD):
        group = dist.new_group([0, 1, 2], group_desc="epoch")
        for step in range(5):
            go(STEPS + 5 * epoch + step)
            time.sleep(0.1)
            dist.all_reduce(torch.ones(4), group=group)
        dist.destroy_process_group(group)


def microbatch(size: int) -> None:
    """Forward through this rank's stage, and back."""
    tensor = torch.ones(4)
    if RANK:
        dist.recv(tensor, RANK - 1)
    time.sleep(0.05)
    if size - 1 > RANK:
        dist.send(tensor, RANK + 1)
        dist.recv(tensor, RANK + 1)
    if RANK:
        dist.send(tensor, RANK - 1)


@healthy(4, how=RUNS, earns=True)
def pipeline() -> None:
    for step in range(STEPS, FOR_GOOD):
        go(step)
        for _ in range(4):
            microbatch(4)
        reduce()


# gloo doesn't record the messages, and without heartbeats nothing but stacks tells of them.
@healthy(4, how=QUIET)
def pipeline_unseen() -> None:
    for _ in range(FOR_GOOD):
        microbatch(4)


@healthy(4, how=RUNS, earns=True)
def ring_of_messages() -> None:
    for step in range(STEPS, FOR_GOOD):
        go(step)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, torch.ones(4), (RANK + 1) % 4),
                dist.P2POp(dist.irecv, torch.ones(4), (RANK - 1) % 4),
            ]
        )
        time.sleep(0.05)
        for work in works:
            work.wait()


@healthy(3, how=How(ring=0), earns=True)
def meets_each_step() -> None:
    """monitored_barrier is in no recorder."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        time.sleep(0.1)
        dist.monitored_barrier()


@healthy(3, how=RUNS, earns=True)
def fsdp() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (3,))
    model = torch.nn.Sequential(torch.nn.Linear(12, 12), torch.nn.Linear(12, 12))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for step in range(STEPS, FOR_GOOD):
        go(step)
        model(torch.ones(2, 12)).sum().backward()
        time.sleep(0.1)


@healthy(4, how=RUNS, earns=True)
def grid() -> None:
    """Two stages of two ranks each: sums within a stage, messages between the stages."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("pipeline", "tensor"))
    stage, peer = mesh["tensor"].get_group(), (RANK + 2) % 4
    for step in range(STEPS, FOR_GOOD):
        go(step)
        tensor = torch.ones(4)
        if RANK > 1:
            dist.recv(tensor, peer)
        time.sleep(0.05)
        dist.all_reduce(tensor, group=stage)
        if RANK < 2:
            dist.send(tensor, peer)


@healthy(3, how=RUNS, earns=True)
def keeps_gil_in_turns() -> None:
    """Each step C code keeps the GIL for more than three times as long as counts as held."""
    for step in range(STEPS, FOR_GOOD):
        go(step)
        if RANK == 1:
            ctypes.PyDLL(None).sleep(3)
        time.sleep(0.1)
        reduce()


@healthy(3, how=RUNS, earns=True)
def profiled() -> None:
    """torch's profiler records and exports each few steps."""
    from torch.profiler import ProfilerActivity, profile

    for round_ in range(FOR_GOOD):
        with profile(activities=[ProfilerActivity.CPU]) as recorder:
            for step in range(10):
                go(STEPS + 10 * round_ + step)
                torch.ones(64, 64) @ torch.ones(64, 64)
                reduce()
        recorder.export_chrome_trace(str(FOLDER / f"trace{RANK}.json"))
        time.sleep(0.3)


@healthy(4, how=How(kind="mixed"), earns=True)
def half_of_them_stock() -> None:
    steps(0.1)


@healthy(1, how=How(joined=False), earns=True)
def alone() -> None:
    begun()
    for step in range(FOR_GOOD):
        beat(step)
        time.sleep(0.05)


# Nothing is counted: changing functions may tell that it goes on.
@healthy(1, how=How(joined=False, ring=0, beats=False))
def alone_unseen() -> None:
    begun()
    while True:
        load()
        other()


def other() -> None:
    sum(range(2_000_000))


@healthy(4, how=RUNS, earns=True)
def trainers_and_samplers() -> None:
    """Ranks 2 and 3 count their samples, ranks 0 and 1 their steps, each at its own pace."""
    trainers = dist.new_group([0, 1], group_desc="trainers")
    samples = 0
    for step in range(STEPS, FOR_GOOD):
        if RANK < 2:
            go(step)
            dist.recv(torch.ones(4), RANK + 2)
            dist.all_reduce(torch.ones(4), group=trainers)
            continue
        for _ in range(3):
            samples += 1
            go(samples)
            time.sleep(0.1 * RANK)
        dist.send(torch.ones(4), RANK - 2)


@healthy(3, how=RUNS, earns=True)
def saves_beside_the_loop() -> None:
    """A thread writes checkpoints all the time."""
    weights = {"weights": torch.zeros(1 << 16)}

    def save() -> None:
        while True:
            torch.save(weights, FOLDER / f"checkpoint{RANK}")
            time.sleep(0.2)

    threading.Thread(target=save, daemon=True).start()
    steps(0.1)


@healthy(3, how=RUNS, earns=True)
def no_rank_needs_another() -> None:
    """As in parameter searches: each at its own pace, and nothing in common."""
    for step in range(STEPS, FOR_GOOD):
        go(step)
        time.sleep(0.1 * (1 + RANK))


@healthy(3, earns=True, slow_rank=None)
def long_steps() -> None:
    """All ranks compute for 6 s in each tenth step."""
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        end = time.monotonic() + (6.0 if step % 10 == 9 else 0.2)
        while time.monotonic() < end:
            torch.ones(64, 64) @ torch.ones(64, 64)
            time.sleep(0.001)
        reduce()


@healthy(3)
def warms_up() -> None:
    """Rank 0 compiles in a process of its own, before the first step of the new model."""
    beat(STEPS)
    if RANK == 0:
        script = "end=$(($(date +%s)+18)); while [ $(date +%s) -lt $end ]; do :; done"
        subprocess.run(["sh", "-c", script], check=True)
    for step in range(STEPS, FOR_GOOD):
        beat(step)
        reduce()
        time.sleep(0.2)
