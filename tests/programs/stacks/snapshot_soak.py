"""``snapshot_soak.py SECONDS [torch]``: snapshots at full speed beside changing stacks.

Other threads run deep recursion, generators, coroutines, short-lived threads and generated code,
with ``torch`` also a training loop with AdamW and a DataLoader with a forked worker. Every line of
every snapshot must be in faulthandler's form. Prints the number of snapshots. Exit 0 if all lines
were right.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

from soak_work import (
    coroutines,
    failures,
    generated,
    generators,
    recurse,
    short_threads,
    soak,
    stop,
)

from workerserver.stacks._stacks import snapshot

HEAD = re.compile(r"(Current t|T)hread 0x[0-9a-f]{16} \(most recent call first\):")
FRAME = re.compile(r'  File "[ -~]+", line (\d+|\?\?\?) in [ -~]+')
MORE = "  ..."


def check(text: str, known: set[str]) -> None:
    """Raise ValueError at the first line that is not well formed. Skips lines in *known*."""
    wanted = "head"
    for line in text[:-1].split("\n"):
        if wanted == "head":
            good, wanted = HEAD.fullmatch(line) is not None, "frame"
        elif line == "":
            good, wanted = True, "head"
        elif line == MORE:
            good, wanted = wanted == "frame", "end"
        else:
            good = wanted == "frame" and (line in known or FRAME.fullmatch(line) is not None)
            known.add(line)
        if not good:
            raise ValueError(f"not in faulthandler's form: {line!r}")
    if not text.endswith("\n"):
        raise ValueError("does not end with a line end")
    if len(known) > 20_000:
        known.clear()


def deep() -> None:
    recurse(700)


def train() -> Callable[[], None]:
    """One epoch of a small training run, as a function to call again and again."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(6)])
    optimizer = torch.optim.AdamW(model.parameters())
    data = torch.utils.data.TensorDataset(torch.randn(256, 32))
    loader = torch.utils.data.DataLoader(
        data, batch_size=16, num_workers=1, multiprocessing_context="fork", timeout=30
    )

    def epoch() -> None:
        for _ in range(8):  # many steps for each forked worker
            for (batch,) in loader:
                for _ in range(8):
                    optimizer.zero_grad()
                    model(batch).sum().backward()
                    optimizer.step()
                if stop.is_set():
                    return

    return epoch


def snap(seconds: float) -> int:
    end = time.monotonic() + seconds
    known: set[str] = set()
    taken = 0
    while time.monotonic() < end and not stop.is_set():
        check(snapshot().text(), known)
        taken += 1
        if taken % 50 == 0:
            assert all(thread.frames for thread in snapshot().threads)
    return taken


def main() -> int:
    sys.setswitchinterval(1e-4)
    total: list[int] = []
    soak(
        lambda: total.append(snap(float(sys.argv[1]))),
        [deep, generators, coroutines, short_threads, generated],
        train() if "torch" in sys.argv[2:] else generators,
    )
    print("snapshots:", *total)
    print(*failures, sep="\n")
    return 1 if failures or not total or total[0] == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
