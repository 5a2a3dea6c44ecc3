"""Threads wait in copies of a library whose .eh_frame is damaged, a different one in each copy.

``broken_tables.py LIBRARY FOLDER COUNT`` prints ``good 1`` if the stack of the undamaged one is
whole, and how many of the damaged ones' are whole or cut.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from workerserver.stacks._stacks import snapshot


def tables_of(data: bytes) -> list[tuple[int, int]]:
    """Where .eh_frame and .eh_frame_hdr lie in the file, as (offset, size)."""
    table, size, count, names = struct.unpack_from("<Q10xHHH", data, 40)
    sections = [struct.unpack_from("<IIQQQQ", data, table + index * size) for index in range(count)]
    text = sections[names][4]
    found = []
    for name, _, _, _, offset, length in sections:
        end = data.index(b"\0", text + name)
        if data[text + name : end].startswith(b".eh_frame"):
            found.append((offset, length))
    return found


def ends() -> dict[str, str]:
    value = json.loads(snapshot(mode="nogil", native=True).render("json"))
    return {each["name"]: each["native"]["end"] for each in value["threads"]}


def main() -> None:
    library, folder, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    data = library.read_bytes()
    places = [offset + k for offset, length in tables_of(data) for k in range(length)]
    chance = random.Random(3)
    reading, writing = os.pipe()
    threads = []
    for number in range(count + 1):
        changed = bytearray(data)
        for _ in range(0 if number == 0 else chance.choice((1, 4, len(places)))):
            changed[chance.choice(places)] = chance.randrange(256)
        copy = folder / f"copy{number}.so"
        copy.write_bytes(changed)
        wait = ctypes.CDLL(str(copy)).wait_in
        threads.append(
            threading.Thread(target=wait, args=(reading,), name=f"copy{number}", daemon=True)
        )
        threads[-1].start()
    until = time.monotonic() + 60
    while ends()["copy0"] != "whole" and time.monotonic() < until:
        time.sleep(0.05)
    for _ in range(10):
        found = ends()
    print("good", int(found.pop("copy0") == "whole"))
    kinds = Counter(
        "whole" if end == "whole" else "cut" for name, end in found.items() if "copy" in name
    )
    print("whole", kinds["whole"])
    print("cut", kinds["cut"])
    os.write(writing, b"x" * len(threads))
    for thread in threads:
        thread.join(60)


if __name__ == "__main__":
    main()
