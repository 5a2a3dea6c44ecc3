"""For gdb: count the calls of CPython's take_gil() by thread.

``gdb -q -batch -p PID -x gdb_take_gil.py``. Each SIGUSR1 to the process prints the counts since the
last SIGUSR1. The process doesn't get the signal.
"""

import json
from collections import Counter

import gdb  # type: ignore[import-untyped]

counts: "Counter[int]" = Counter()


class Take(gdb.Breakpoint):  # type: ignore[misc]
    def stop(self) -> bool:
        counts[gdb.selected_thread().ptid[1]] += 1
        return False


gdb.execute("set pagination off")
gdb.execute("handle SIGUSR1 stop nopass", to_string=True)
Take("take_gil")
print("counting", flush=True)
while True:
    gdb.execute("continue", to_string=True)
    print("counts", json.dumps(counts), flush=True)
    counts.clear()
