"""The loads beside a server. A load runs in the main thread of the server's process, for ever.

The server is up before the load begins. The load calls ``begin`` when it is under way.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

__all__ = ["LOADS"]

Begin = Callable[[], None]

DEEP = 1000
THREADS = 200


def idle(begin: Begin) -> NoReturn:
    begin()
    while True:
        time.sleep(3600)


def python(begin: Begin) -> NoReturn:
    """A Python loop that gives the GIL up only when another thread asks for the GIL."""
    begin()
    while True:
        sum(range(1000))


def gil_c(begin: Begin) -> NoReturn:
    """A C function that never gives the GIL back."""
    hold = ctypes.PyDLL(None).sleep
    begin()
    while True:
        hold(3600)


def threads(begin: Begin) -> NoReturn:
    """Threads that wait, ten frames deep."""
    forever = threading.Event()

    def wait(depth: int) -> None:
        if depth:
            wait(depth - 1)
        else:
            forever.wait()

    for _ in range(THREADS):
        threading.Thread(target=wait, args=(10,), daemon=True).start()
    idle(begin)


def recursion(begin: Begin) -> NoReturn:
    """One thread that waits under a thousand frames."""
    sys.setrecursionlimit(DEEP + 500)

    def down(depth: int) -> None:
        if depth:
            down(depth - 1)
        else:
            idle(begin)

    down(DEEP)
    raise AssertionError


def training_steps(workers: int = 1) -> Iterator[None]:
    """Train a small multi-layer perceptron on generated images: forward, backward, AdamW. Batches
    come from a DataLoader. Yields once for each step, some 3 ms on one core."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[tuple[Any, int]]):  # type: ignore[misc]
        def __len__(self) -> int:
            return 1 << 40  # an endless epoch, because each new epoch forks workers

        def __getitem__(self, index: int) -> tuple[Any, int]:
            generator = torch.Generator().manual_seed(index % 997)
            return torch.randn(784, generator=generator), index % 10

    torch.set_num_threads(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(784, 256), torch.nn.ReLU(),
        torch.nn.Linear(256, 256), torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = torch.nn.CrossEntropyLoss()
    loader = DataLoader(Images(), batch_size=64, num_workers=workers, prefetch_factor=8)
    while True:
        for images, labels in loader:
            optimizer.zero_grad(set_to_none=True)
            loss_of(model(images), labels).backward()
            optimizer.step()
            yield


def training(begin: Begin) -> NoReturn:
    for number, _ in enumerate(training_steps()):
        if number == 20:  # warm
            begin()
    raise AssertionError


LOADS: dict[str, Callable[[Begin], NoReturn]] = {
    "idle": idle,
    "python": python,
    "training": training,
    "gil-c": gil_c,
    "threads": threads,
    "recursion": recursion,
}
