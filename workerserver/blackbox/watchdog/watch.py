"""The watchdog: looks at the ranks of its host, and has a verdict made of each incident, once.

An incident is a stall, in which no rank makes a step for longer than the threshold, or the end of a
rank that was no clean one. It is open until the job makes steps again, and as long as it is open
nothing else is told. So a hang that is ended by a time-out is one incident, with all ranks that end
because of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from workerserver.blackbox.format import BoxError
from workerserver.blackbox.known_end import mark_end
from workerserver.blackbox.watchdog.diagnosis import diagnosed, targets_of
from workerserver.blackbox.watchdog.incident import Incident, Settings, essence
from workerserver.blackbox.watchdog.others import Others, Places
from workerserver.blackbox.watchdog.pace import Pace
from workerserver.blackbox.watchdog.ranks import Rank, look, restart_of
from workerserver.blackbox.watchdog.ready import Ready
from workerserver.blackbox.watchdog.state import State, forget, write
from workerserver.blackbox.watchdog.telling import Teller
from workerserver.job.proc import lives
from workerserver.process.credentials import token_from_environment

__all__ = ["REST_SECONDS", "Watch"]

#: An eighth of the threshold, within these bounds.
LOOK_SECONDS = (0.5, 2.0)
LOOKS = 8
#: Between two rounds of a diagnosis is this part of the threshold, but 1 to 2 s.
INTERVALS = 5
#: How often a watchdog without boxes looks whether the last rank has ended.
ALIVE_SECONDS = 0.5
#: Until the first rank is known.
FIRST_SECONDS = 30.0
#: The keeper copies the box of a rank that has ended, with what the kernel tells of its end.
COPY_SECONDS = 4.0
#: An end that no verdict explains is looked at again, so often.
TRIES = 3
#: A stall that is not clear yet is looked at again after half the threshold, but no sooner.
LEAST_PAUSE_SECONDS = 4.0
#: So many thresholds without any change are an incident, whatever the verdict is.
STILL = 3.0
#: Steps that are made so long after a rank has gone show that the job goes on without it.
WITHOUT_SECONDS = 10.0
#: A stall is left for so long to each host with lower ranks.
TURN_SECONDS = 4.0
MAX_TURNS = 8
#: Until the watchdog that has taken an incident has told it, or given it back.
TAKEN_SECONDS = 1.0
#: After the last rank has ended: for the line on stderr, then for the verdict's file and for those
#: who are told. A diagnosis of boxes takes half a second of processor time. At nice 19, where ten
#: others wanted each processor, that was 45 s.
LINE_SECONDS = 1.8
REST_SECONDS = 180.0


class Watch:
    """*stderr*: a descriptor of the job's; None if there is none. After start(), a thread of its
    own looks at the job: a diagnosis takes seconds."""

    def __init__(self, settings: Settings, stderr: int | None) -> None:
        self._settings = settings
        self._teller = Teller(settings.folder, settings.cwd, settings.label, stderr)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._wake = threading.Event()
        self._over = False
        self._run_folder = ""
        self._ends: dict[tuple[int, int], bool] = {}  # whether it was a clean one
        self._marked: dict[tuple[int, int], bool] = {}  # the same of those that nobody copied
        self._left = False
        self._pace = Pace(settings.stall)
        self._known: dict[tuple[int, int], Rank] = {}
        self._gone: dict[tuple[int, int], float] = {}
        self._settled: set[tuple[int, int]] = set()  # ends that need no further look
        self._incident: Incident | None = None
        self._tries: Counter[tuple[int, int]] = Counter()  # verdicts that did not explain an end
        self._again = 0.0
        self._essence: object = None
        self._still_since = 0.0
        self._others = Others(settings.store, settings.folder, settings.label, settings.world)
        self._ready: Ready | None = None
        self._state = State(settings.label.rpartition("@")[0])
        self._alone = False  # the last diagnosis could ask nobody on other hosts
        self._token: str | None = None
        with contextlib.suppress(ValueError):
            self._token = token_from_environment()

    # ---- what the keeper calls

    def get_ready(self, asks: socket.socket | None = None) -> None:
        """Before this process has threads: fork off the one that makes diagnoses. It runs the
        command that the other end of *asks* wants, too."""
        with contextlib.suppress(OSError):
            self._ready = Ready(collects=asks is not None)
        if asks is not None:
            if self._ready is None:
                asks.close()
            else:
                self._ready.serve(asks)

    def start(self, run_folder: str) -> None:
        """*run_folder*: where the copies of the boxes lie; "" if there are none."""
        self._run_folder = run_folder
        self._thread.start()

    def ended(self, process: tuple[int, int], *, clean: bool, copied: bool) -> None:
        """A *process* (pid and ticks) has ended. *clean*: as its box tells. *copied*: the box is in
        the folder of copies, else it is left on the tmpfs."""
        self._left = self._left or not copied
        self._ends[process] = clean
        self._wake.set()

    def finish(self, since: float) -> None:
        """The last rank has ended, at the monotonic time *since*. Returns once all is told. Before,
        stderr is closed."""
        self._over = True
        self._wake.set()
        self._thread.join(max(0.0, since + LINE_SECONDS - time.monotonic()))
        self.close_stderr()
        give_up = time.monotonic() + REST_SECONDS
        self._thread.join(REST_SECONDS)
        self._teller.wait(give_up - time.monotonic())

    @property
    def finishes(self) -> bool:
        """The last rank has ended, and what became of it is not told yet."""
        return self._over and self._thread.is_alive()

    def warn(self, line: str) -> None:
        """On the job's stderr."""
        self._teller.say(line)

    def close_stderr(self) -> None:
        """For good: whoever reads the job's output sees its end as without us."""
        self._teller.close_stderr()

    def await_end(self) -> None:
        """Without boxes: the same once no rank lives that has ever been seen."""
        give_up = time.monotonic() + FIRST_SECONDS
        while True:
            time.sleep(ALIVE_SECONDS)
            known = list(self._known) or list(self._settled)
            if any(lives(*key) for key in list(self._known) + list(self._settled)):
                continue
            if known or time.monotonic() >= give_up:
                break
        self.finish(time.monotonic())

    # ---- looking

    def _run(self) -> None:
        self._incident = self._teller.remembered(self._settings.boxes)
        if self._incident is not None and len(self._incident.mark) == 2:
            held, file = self._incident.mark
            self._others.restore((str(held), str(file)))
        if self._incident is not None:
            self._state.status = _status_of(self._incident.told)
        while not self._over:
            began = time.monotonic()
            self._state.looked = began
            self._show()
            with contextlib.suppress(Exception):  # the next look may find more
                self._look(began)
            shortest, longest = LOOK_SECONDS
            pause = min(max(self._pace.threshold / LOOKS, shortest), longest)
            self._wake.wait(max(shortest / 2, pause - (time.monotonic() - began)))
            self._wake.clear()
        with contextlib.suppress(Exception):
            self._last_look()
        forget(self._settings.boxes)

    def _show(self) -> None:
        with contextlib.suppress(OSError):
            write(self._settings.boxes, self._state)

    def _look(self, now: float) -> None:
        living = self._living(now)
        moved = self._pace.look(living, now)
        ended = self._unclean(now)
        if self._incident is not None:
            self._settle(ended)
            if moved and self._is_over(self._incident, living, now):
                self._recovered(living)
        elif len(self._gone) > len(ended):
            pass  # the box of one of them is under way: it may tell why the others have ended
        elif ended:
            self._end_of(ended, living, now)
        elif self._pace.quiet_s < self._pace.threshold:
            self._essence, self._again = None, 0.0
            self._others.free()
        elif living and now >= self._again and self._is_our_turn(living):
            self._stall(living, now)
        if living and not ended and self._pace.quiet_s < self._pace.threshold:
            self._others.learn(living, now)
            if moved:
                self._others.goes_on(restart_of(living))

    def _last_look(self) -> None:
        """Nobody lives any more."""
        now = time.monotonic()
        self._living(now)
        ended = self._unclean(now + COPY_SECONDS)
        while ended and self._incident is None:
            self._again = 0.0
            self._end_of(ended, (), now)
            ended = [rank for rank in ended if rank.key in self._gone]
            if ended and self._incident is None:
                time.sleep(TAKEN_SECONDS)

    def _living(self, now: float) -> list[Rank]:
        """The ranks that live; who lived before and is gone is noted."""
        found = {rank.key: rank for rank in self._ranks()}
        living = {key: rank for key, rank in found.items() if rank.alive}
        for key, rank in found.items():  # it was never seen alive
            if not rank.alive and key not in self._settled:
                self._known.setdefault(key, rank)
        for key in list(self._ends):  # it has ended before the first look at it
            if key not in self._settled:
                self._known.setdefault(key, Rank(*key, False))
        for key, rank in self._known.items():
            if key not in living:
                self._gone.setdefault(key, now)
                rank.alive = False
        self._known.update(living)
        newest = restart_of(list(living.values()))
        return [each for each in living.values() if each.restart in (None, newest)]

    def _ranks(self) -> list[Rank]:
        mine = self._settings
        return look(mine.boxes, mine.agent, mine.label, self._token)

    def _unclean(self, now: float) -> list[Rank]:
        """The ranks that are gone without a clean end, once their boxes are copied."""
        found = []
        for key, since in list(self._gone.items()):
            rank = self._known[key]
            clean = self._ends.get(key)
            if clean is None and rank.box:
                if now - since < COPY_SECONDS:
                    continue
                if key not in self._marked:  # the keeper waits for a folder that blocks
                    self._marked[key] = False
                    with contextlib.suppress(OSError, BoxError):
                        self._marked[key] = mark_end(rank.box, time.time() - (now - since))
                clean = self._marked[key]
            elif clean is None:
                # A process removes its record at a clean end. It may still live then.
                clean = not os.path.exists(rank.record)
            if clean:
                self._settle([rank])
            else:
                found.append(rank)
        return found

    def _settle(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            self._gone.pop(rank.key, None)
            self._known.pop(rank.key, None)
            self._tries.pop(rank.key, None)
            self._settled.add(rank.key)

    # ---- incidents

    def _is_our_turn(self, living: Sequence[Rank]) -> bool:
        """A stall is seen on all hosts. Those with lower ranks come first."""
        known = [rank.rank for rank in living if rank.rank is not None]
        before = min(known) // len(known) if known and self._settings.store else 0
        late = self._pace.quiet_s - self._pace.threshold
        return late >= TURN_SECONDS * min(before, MAX_TURNS)

    def _end_of(self, ended: Sequence[Rank], living: Sequence[Rank], now: float) -> None:
        if now < self._again:
            return
        state = self._others.take(restart_of(ended), self._pace.threshold)
        if state == "told":  # these ends belong to it
            self._settle(ended)
        if state in ("told", "taken"):
            self._again = now + TAKEN_SECONDS
            return
        # The others are in their boxes.
        unboxed = [rank for rank in ended if not rank.box and rank.key not in self._ends]
        document = self._diagnose([*living, *unboxed])
        if self._still(living) is None:
            self._others.free()
            return
        if document is not None and document["status"] == 1:
            self._tell(Incident("gone", restart_of(ended), now), document, living)
            done = list(ended)
        else:
            # Each end has its own tries: one that nothing explains keeps no later one from being
            # told.
            self._tries.update(rank.key for rank in ended)
            last = document is not None and not living
            done = [rank for rank in ended if last or self._tries[rank.key] >= TRIES]
            if done and document is None and living:
                self._tell(Incident("gone", restart_of(done), now), _untold(done), living)
        self._settle(done)
        self._again = now + LEAST_PAUSE_SECONDS if len(done) < len(ended) else 0.0
        if self._incident is None:  # another host may know more
            self._others.free()

    def _stall(self, living: Sequence[Rank], now: float) -> None:
        threshold = self._pace.threshold
        quiet = self._pace.quiet_s
        if self._others.take(restart_of(living), threshold) in ("told", "taken"):
            self._again = now + LEAST_PAUSE_SECONDS
            return
        document = self._diagnose(living)
        fresh = self._still(living)
        if fresh is None:
            return
        if self._pace.look(fresh, time.monotonic()) or self._pace.quiet_s < threshold:
            return  # a step was made meanwhile
        self._again = now + max(threshold / 2, LEAST_PAUSE_SECONDS)
        if document is None:
            document = {"status": 2, "verdict": "could not tell: the diagnosis could not be made"}
        seen = essence(document)
        if self._essence is None or seen != self._essence:
            self._still_since = now - (quiet if self._essence is None else 0.0)
            self._essence = seen
        still = now - self._still_since >= STILL * threshold and not document.get("progress")
        if document["status"] == 1 or (document["status"] == 2 and still):
            incident = Incident("stall", restart_of(living), now, quiet_s=self._pace.quiet_s)
            self._tell(incident, document, living)

    def _still(self, living: Sequence[Rank]) -> list[Rank] | None:
        """The ranks that live now; None if one of *living* has ended while the diagnosis was made.
        Its box was on its way to the folder then, perhaps unseen. Without that box, somebody may be
        named who ended because of this rank. The next look knows more."""
        fresh = [rank for rank in self._ranks() if rank.alive]
        alive = {rank.key for rank in fresh}
        return fresh if all(rank.key in alive for rank in living) else None

    def _diagnose(self, ranks: Sequence[Rank]) -> dict[str, Any] | None:
        mine = self._settings
        # With a low threshold the job has a short time-out.
        interval = min(2.0, max(1.0, self._pace.threshold / INTERVALS))
        boxes, copies = mine.boxes, ""
        unclean = not all(self._ends.values())  # somebody has ended so, told or not
        if unclean or any(key in self._ends for key in self._known):  # their boxes are copied
            copies = mine.folder if mine.hosts else self._run_folder
            boxes = mine.boxes if self._left else ""
        store = mine.store if self._others.reachable else ""
        ways = [(boxes, copies, store), (mine.boxes, "", store)]  # DIR may block
        if store:  # it may be gone by now
            ways.append((boxes, copies, ""))
        for boxes, copies, store in dict.fromkeys(ways):
            known = Places() if store else self._others.places
            self._alone = mine.hosts and not store and not known.any
            targets = targets_of(ranks if self._alone or not mine.hosts else (), boxes, copies)
            document = diagnosed(targets, store, interval, known, self._ready)
            if document is not None:
                return document
        return None

    def _tell(self, incident: Incident, document: dict[str, Any], living: Sequence[Rank]) -> None:
        self._incident = incident
        self._state.status = _status_of(document)
        if not self._others.holds and self._is_for_another(document, living):
            incident.silent = True
            return
        sentence = str(document["verdict"])
        line = "workerserver watchdog: "
        if incident.kind == "stall" and "no step" not in sentence:
            line += f"no step for {incident.quiet_s:.0f} s: "
        line += sentence
        if self._alone:
            line += " (only the ranks of this host can be reached from here)"
        told = {
            **document,
            "incident": incident.kind,
            "quiet_s": round(self._pace.quiet_s, 1) if incident.kind == "stall" else None,
            "threshold_s": round(self._pace.threshold, 1),
            "told": time.time(),
            "host": self._settings.label.rpartition("@")[2].rpartition("-")[0],
            "recovered": None,
        }
        incident.told = told
        targets = targets_of(living, "", self._run_folder)
        incident.name = self._teller.tell(line, told, targets=targets)
        if incident.kind == "stall":
            self._state.stall += 1
        else:
            self._state.gone += 1
        self._show()
        self._others.told()
        incident.mark = self._others.mark
        self._teller.remember(self._settings.boxes, incident)

    def _is_for_another(self, document: Mapping[str, Any], living: Sequence[Rank]) -> bool:
        """Whether the watchdog of another host tells it: that of the lowest rank that answers."""
        if not self._settings.store or not isinstance(document.get("ranks"), int):
            return False
        mine = {rank.rank for rank in living}
        silent = {each.get("rank") for each in document.get("unreachable", ())}
        silent |= {each.get("rank") for each in document.get("boxes", ())}
        lowest = next((rank for rank in range(document["ranks"]) if rank not in silent), None)
        return lowest is not None and bool(mine) and lowest not in mine

    def _is_over(self, incident: Incident, living: Sequence[Rank], now: float) -> bool:
        """Whether steps that are made now show that the job goes on."""
        if self._pace.quiet_s >= self._pace.threshold:
            return False
        again = restart_of(living) != incident.restart
        return again or incident.kind == "stall" or now - incident.began >= WITHOUT_SECONDS

    def _recovered(self, living: Sequence[Rank]) -> None:
        incident, self._incident = self._incident, None
        self._state.status = 0
        self._essence, self._again = None, 0.0
        self._teller.forget(self._settings.boxes)
        self._others.free()
        if incident is None or incident.silent or incident.told is None:
            return
        restart = restart_of(living)
        again = "" if restart in (None, incident.restart) else f" after restart {restart}"
        line = f"workerserver watchdog: the job goes on{again}, at step {self._pace.step}"
        recovered = {"time": time.time(), "step": self._pace.step, "restart": restart}
        self._teller.tell(line, {**incident.told, "recovered": recovered}, incident.name)


def _status_of(document: Mapping[str, Any] | None) -> int:
    """2 where it is not known."""
    return 1 if document is not None and document.get("status") == 1 else 2


def _untold(ended: Sequence[Rank]) -> dict[str, Any]:
    """The verdict where a rank is gone, others live, and no diagnosis can be made."""
    who = [f"process {each.pid}" if each.rank is None else f"rank {each.rank}" for each in ended]
    sentence = f"could not tell: {', '.join(who)} ended, and no diagnosis could be made"
    return {"status": 2, "verdict": sentence}
