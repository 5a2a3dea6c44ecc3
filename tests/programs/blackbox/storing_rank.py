"""A thread waits for a key of a TCPStore that never comes; then another one raises."""

from __future__ import annotations

import os
import threading
import time

from torch.distributed import TCPStore

from workerserver import worker_main


def fails() -> None:
    raise ValueError("a batch of nothing")


@worker_main()
def main() -> None:
    store = TCPStore("127.0.0.1", 0, is_master=True)
    other = TCPStore("127.0.0.1", store.port)
    threading.Thread(target=other.wait, args=(["never"],), daemon=True).start()
    time.sleep(1)
    failing = threading.Thread(target=fails)
    failing.start()
    failing.join()
    os._exit(7)  # torch aborts if the interpreter ends while a thread waits for the store


main()
