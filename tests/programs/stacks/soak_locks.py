"""Threads that take and give back locks without pause, and who really held them.

Every holder writes into one history: behind its acquiring, and before its giving back. So a claim
"thread T holds lock L", made of a moment between two lengths of the history, is right if one of
T's times with L touches what lies between them. A time with L begins where the time before it
ends, as its entry may come late, and lasts until the next one's entry, as it may go on behind its
own.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from soak_work import stop

Entry = tuple[str, int]
"""The address of a lock, and the native id of the thread that has it from now on; 0: nobody."""


def text_of(lock: Any) -> str:
    return f"0x{id(lock):016x}"


class Truth:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rlock = threading.RLock()
        inner = threading.Lock()
        self.condition = threading.Condition(inner)
        self.inner = text_of(inner)
        self.history: list[Entry] = []
        self.dropped = 0  # entries before those in `history`
        self.claims: list[tuple[int, int, str, int]] = []
        self.checked = 0

    def length(self) -> int:
        return self.dropped + len(self.history)

    # ---- the threads

    def took(self, name: str) -> None:
        self.history.append((name, threading.get_native_id()))

    def gives(self, name: str) -> None:
        self.history.append((name, 0))

    def work(self) -> None:
        """With a lock in hand: calls and returns, or a while of sleep."""
        if random.random() < 0.3:
            time.sleep(random.random() * 0.01)
        else:
            sorted(str(n) for n in range(20))

    def plain(self) -> None:
        with self.lock:
            self.took(text_of(self.lock))
            self.work()
            self.gives(text_of(self.lock))

    def nested(self, depth: int = 2) -> None:
        with self.rlock:
            if depth == 2:
                self.took(text_of(self.rlock))
            if depth:
                self.nested(depth - 1)
            else:
                self.work()
            if depth == 2:
                self.gives(text_of(self.rlock))

    def waiting(self) -> None:
        with self.condition:
            self.took(self.inner)
            self.work()
            self.gives(self.inner)
            self.condition.wait(0.002)
            self.took(self.inner)
            self.condition.notify_all()
            self.gives(self.inner)

    def steps(self) -> None:
        for step in random.sample([self.plain, self.nested, self.waiting], 3):
            if not stop.is_set():
                step()

    # ---- the checker

    def claim(self, since: int, threads: list[dict[str, Any]]) -> None:
        """Note what a snapshot says that was begun when the history was *since* long."""
        until = self.length()
        ours = {text_of(self.lock), text_of(self.rlock), self.inner}
        for thread in threads:
            for hold in thread.get("holds", ()):
                if hold["object"] in ours:
                    self.claims.append((since, until, hold["object"], thread["native_id"]))
            wait = thread.get("waits_for", {})
            if wait.get("object") in ours and wait.get("holder"):
                self.claims.append((since, until, wait["object"], wait["holder"]))
        if len(self.claims) > 200 or len(self.history) > 50_000:
            self.check()

    def check(self) -> None:
        """Check all claims that the history has gone on behind of. Raises ValueError."""
        history, start = list(self.history), self.dropped
        late = []
        for claim in self.claims:
            since, until, name, holder = claim
            own = [(start + n, who) for n, (lock, who) in enumerate(history) if lock == name]
            if not own or own[-1][0] < until or own[-1][1] == 0:
                late.append(claim)
                continue
            self.checked += 1
            if not any(who == holder for who in times(own, since, until)):
                raise ValueError(f"{holder} did not hold {name} in {since}-{until}: {own[-40:]}")
        keep = min([since for since, *_ in late], default=start + len(history)) - 2000
        if keep > start:
            del self.history[: keep - start]
            self.dropped = keep
        self.claims = late


def times(own: list[tuple[int, int]], since: int, until: int) -> list[int]:
    """The threads whose times with a lock touch the entries from *since* to *until*."""
    found = []
    for n, (_, who) in enumerate(own):
        if who == 0:
            continue
        begin = own[n - 1][0] if n > 0 else 0
        end = own[n + 2][0] if n + 2 < len(own) else until + 1
        if begin <= until and end >= since:
            found.append(who)
    return found
