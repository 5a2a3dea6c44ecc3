"""A worker whose main function fails. ``... worker_main_rank.py ours|torch decorator|with WHAT``.

WHAT is ``raise``, ``return`` or an exit code.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from support.lifecycle import ask


class TrainingFailed(Exception):
    pass


def train(what: str) -> None:
    path = os.environ.get("TORCH_WORKER_SERVER_SOCKET")
    if path is not None:
        path = path.replace("{rank}", os.environ["RANK"])
        assert ask(path)[0] == 200
        print(f"rank {os.environ['RANK']} serves", flush=True)
    if what == "raise":
        raise TrainingFailed(f"rank {os.environ['RANK']} lost its way")
    if what != "return":
        sys.exit(int(what))


def main(kind: str, form: str, what: str) -> None:
    package = {"ours": "workerserver", "torch": "torch.distributed.elastic.control_plane"}[kind]
    worker_main: Any = importlib.import_module(package).worker_main
    if form == "decorator":
        worker_main()(train)(what)
    else:
        with worker_main():
            train(what)


if __name__ == "__main__":
    main(*sys.argv[1:])
