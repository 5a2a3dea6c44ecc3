"""Clients that ask without a pause and read nothing, in a network namespace of their own.

    unread_scene.py CLIENTS REQUESTS

Prints one JSON list: the bytes that the kernel keeps for each of the server's connections (ss -m).
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
import threading

from support.waiting import wait_until

from workerserver import WorkerServer

CLONE_NEWNET = 0x40000000
THREADS = 150  # so that a dump has some 100 kB
CLIENT = """
import socket, sys
port, clients, requests = map(int, sys.argv[1:])
socks = []
request = b"POST /handler/dump_traceback HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n"
for _ in range(clients):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", port))
    sock.sendall(request * requests)
    socks.append(sock)
print("sent", flush=True)
sys.stdin.read()
"""


def main(clients: int, requests: int) -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    over = threading.Event()
    threads = [threading.Thread(target=over.wait) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    with WorkerServer("127.0.0.1", 0) as server:
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, str(server.port), str(clients), str(requests)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert client.stdout is not None
        assert client.stdout.readline() == b"sent\n"
        last = -1

        def settled() -> bool:
            """Whether nothing more was answered since the last look."""
            nonlocal last
            before, last = last, sum(server.requests.values())
            return last == before > 0

        over.wait(0.5)
        wait_until(lambda: over.wait(0.3) or settled())
        text = subprocess.run(
            ["ss", "-tmnH", "sport", "=", f":{server.port}"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        kept = [int(size) for size in re.findall(r"skmem:\(.*?,w([0-9]+),", text)]
        print(json.dumps(kept), flush=True)
        client.communicate()
    over.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
