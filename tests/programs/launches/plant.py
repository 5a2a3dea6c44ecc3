"""What all training programs here share: their data, and the rank that hangs.

``BEGUN``: the folder in which each rank reports its pid. ``HANG``: the rank that hangs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch

STEPS_BEFORE = 20
STEPS = 1_000_000


def load_shard() -> None:
    time.sleep(10_000)


def reached(step: int, rank: int) -> None:
    """A rank trains, in steps of a usual length, until it hangs."""
    time.sleep(0.02)
    if step == STEPS_BEFORE:
        Path(os.environ["BEGUN"], f"{rank}-0").write_text(str(os.getpid()))
        if os.environ["HANG"] == str(rank):
            load_shard()


class Numbers(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> Any:
        value = torch.full((4,), float(index % 7))
        return {"x": value, "y": value.sum().reshape(1)}


def model() -> torch.nn.Module:
    return torch.nn.Linear(4, 1)
