"""A worker that asks for a black box where no tmpfs is.

no_place.py FOLDER
"""

from __future__ import annotations

import logging
import sys

from workerserver import heartbeat, worker_main
from workerserver.blackbox import place


def main(folder: str) -> None:
    logging.basicConfig(format="%(message)s")
    place.places = lambda: [folder]  # on a disk
    for _ in range(2):
        with worker_main(blackbox=folder):
            heartbeat(1)
    print("trained")


if __name__ == "__main__":
    main(sys.argv[1])
