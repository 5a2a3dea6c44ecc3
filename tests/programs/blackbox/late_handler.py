"""A rank whose program installs a handler of its own after its black box has begun.

late_handler.py FOLDER
"""

from __future__ import annotations

import os
import signal
import sys
import time

from workerserver import worker_main


def main(folder: str) -> None:
    heard: list[int] = []
    with worker_main(blackbox=folder):
        signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
        print(os.getpid(), flush=True)
        while not heard:
            time.sleep(0.01)
        print("late handler", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
