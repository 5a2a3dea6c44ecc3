"""One rank of a job of the corpus: ``torchrun … job.py FAMILY NAME workerserver|torch|mixed``.

All ranks make some steps, say so by a file in $FOLDER, and play the scene. Whoever gets through it
stays until it is killed, unless the scene says otherwise.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from datetime import timedelta
from typing import Any

import scenes
import torch.distributed as dist


def main(family: str, name: str, kind: str) -> None:
    scenes.load(family)
    scene = scenes.SCENES[name]
    if scene.how.recorded is not None and scenes.RANK not in scene.how.recorded:
        os.environ["TORCH_FR_BUFFER_SIZE"] = "0"
    if kind == "mixed":
        kind = "torch" if scenes.RANK % 2 else "workerserver"
    if kind == "torch":
        variable = "TORCH_WORKER_SERVER_SOCKET"  # torch doesn't fill in the rank
        os.environ[variable] = os.environ[variable].replace("{rank}", str(scenes.RANK))
        kind = "torch.distributed.elastic.control_plane"
    package: Any = importlib.import_module(kind)
    with package.worker_main():
        if scene.how.joined:
            timeout = timedelta(seconds=scenes.FOREVER)
            dist.init_process_group("gloo", timeout=timeout)
            scenes.train(scene.how.steps)
            if scene.how.begins:
                scenes.begun()
        scene.play()
        if scene.how.stays:
            time.sleep(scenes.FOREVER)


if __name__ == "__main__":
    main(*sys.argv[1:])
