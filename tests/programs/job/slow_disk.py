"""A server whose run folder doesn't answer. Use: ``slow_disk.py SOCKET KIND``; TMPDIR is set.

KIND is the kind of the file system that TMPDIR is on, as a table of mounts tells it. The record
waits until the end, as on a disk that hangs. Prints one line of JSON: what went on meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from support.lifecycle import ask
from support.waiting import becomes

from workerserver import WorkerServer, register_handler
from workerserver.job import records
from workerserver.job.records import Record
from workerserver.process import run_folder

asked, answers = threading.Event(), threading.Event()
writers: list[str] = []
write = records.write


def hang(folder: str, record: Record) -> str:
    writers.append(threading.current_thread().name)
    asked.set()
    answers.wait()
    return write(folder, record)


def main(path: str, kind: str) -> None:
    place = os.environ["TMPDIR"]
    table = Path(place, "mounts")
    table.write_text(
        f"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 0:9 / {place} rw shared:1 - {kind} none rw\n"
    )
    run_folder._MOUNTS = str(table)
    records.write = hang
    register_handler("where", lambda: threading.current_thread().name)
    server = WorkerServer(path)
    found = {"asked": asked.wait(30), "ping": ask(path)[1]}
    if kind == "nfs4":
        found["where"] = ask(path, "/handler/where")[1]
    server.shutdown(1.0)
    folder = run_folder.run_folder()
    found["hangs"] = not answers.is_set()
    answers.set()
    found["writers"] = writers
    found["gone"] = becomes(lambda: os.listdir(folder) == [], 30)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
