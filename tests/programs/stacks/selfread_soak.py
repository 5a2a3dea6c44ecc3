"""``selfread_soak.py AMOUNT [python|torch|locks]``: self-read snapshots beside changing stacks.

AMOUNT is a number of snapshots, or a time such as ``2s``. One thread takes snapshots without the
GIL at full speed and checks every frame: the function has to be one of its file's, and the line
has to be one of the function's lines. Other threads run recursion, generators, coroutines,
comprehensions, threads that start and end, code that is compiled, run and deleted, and with
``torch`` a training loop. Three threads take and give back locks; with ``locks`` nothing else runs
beside them. Each holder that a snapshot names is compared with who really had the lock then.

Prints one line of JSON. Exit 0 if all was right and every kind of work was seen.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import CodeType

from soak_locks import Truth
from soak_work import (
    coroutines,
    failures,
    generated,
    generators,
    recurse,
    short_threads,
    soak,
    stop,
)

from workerserver.stacks import known
from workerserver.stacks._stacks import Frame, ThreadStack, snapshot

GENERATED = re.compile("<generated\n(\\d+) \u00e9\u4e2d\U0001f600>")
DEPTH = 120  # of the deepest of our stacks, with room for the frames below and above

CALLERS = {
    "recurse": {"recurse", "deep", "chain", "run"},
    "nested": {"nested", "generators", "steps"},
    "chain": {"chain", "_run"},
    "deep": {"mixed"},
    "generators": {"mixed", "until_stopped"},
    "coroutines": {"mixed"},
    "generated": {"mixed"},
    "mixed": {"until_stopped"},
    "short_threads": {"until_stopped"},
    "until_stopped": {"run", "soak"},
    "steps": {"until_stopped"},
    "work": {"plain", "nested", "waiting"},
    "plain": {"steps"},
    "waiting": {"steps"},
    "soak": {"main"},
    "main": {"<module>"},
    "soaking": {"run"},
    "_bootstrap_inner": {"_bootstrap"},
    "run": {"_bootstrap_inner", "run", "coroutines", "soaking"},
}

Lines = dict[tuple[str, str | None], set[int | None]]
"""For each (function, qualname) of a file: the lines of its code."""


def deep() -> None:
    for _ in range(20):
        recurse(70)


def mixed() -> None:
    for work in (deep, generators, coroutines, generated):
        work()


def train() -> Callable[[], None]:
    """One epoch of a small training run, as a function to call again and again."""
    import torch

    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(32, 32) for _ in range(6)])
    optimizer = torch.optim.AdamW(model.parameters())

    def epoch() -> None:
        for _ in range(8):
            optimizer.zero_grad()
            model(torch.randn(16, 32)).sum().backward()
            optimizer.step()

    return epoch


class Checker:
    """Checks frames. A frame that was good once is not checked again."""

    def __init__(self) -> None:
        self.known: set[Frame] = set()
        self.pairs: set[tuple[str, str]] = set()
        self.files: dict[str, Lines] = {}
        self.functions: set[str] = set()

    def check(self, stack: ThreadStack) -> None:
        for frame in stack.frames:
            if frame not in self.known:
                self.check_frame(frame)
                if len(self.known) > 20_000:
                    self.known.clear()
                    self.pairs.clear()
                self.known.add(frame)
                self.functions.add(frame.function)
        if not stack.unstable and not stack.truncated:
            self.check_order(stack.frames)
        if stack.name is not None and not re.fullmatch(r"[-\w ()]+", stack.name):
            raise ValueError(f"name {stack.name!r}")

    def check_order(self, frames: tuple[Frame, ...]) -> None:
        """Check a whole stack: each frame's caller, and the first frame."""
        functions = [frame.function for frame in frames]
        for pair in pairwise(functions):
            function, caller = pair
            if pair not in self.pairs and caller not in CALLERS.get(function, {caller}):
                raise ValueError(f"{caller} called {function}: {frames}")
            self.pairs.add(pair)
        if functions and functions[-1] not in ("_bootstrap", "<module>"):
            raise ValueError(f"starts with {functions[-1]}: {frames}")
        if len(functions) > DEPTH:
            raise ValueError(f"{len(functions)} frames: {frames}")

    def check_frame(self, frame: Frame) -> None:
        file, line, function, qualname = frame
        of_generated = GENERATED.fullmatch(file)
        if of_generated is not None:
            name = f"f{of_generated[1]}"
            lines = {2, 3, None} if function == "<genexpr>" else {0, 1, 2, 3}
            good = function in ("<module>", name, "<genexpr>") and line in lines
            good = good and (qualname or name).split(".")[0] in ("<module>", name)
        elif file.startswith("<"):  # frozen modules, namedtuples
            good = re.fullmatch(r"<[ -;=?-~]+>", file) is not None and function.isprintable()
        else:
            if file not in self.files:
                self.files[file] = lines_of(file)
            lines = self.files[file].get((function, qualname), set())
            good = line in lines
        if not good:
            raise ValueError(f"{frame}")


def lines_of(file: str) -> Lines:
    found: Lines = defaultdict(set)
    pending = [compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)]
    while pending:
        code = pending.pop()
        qualname = getattr(code, "co_qualname", None)  # CPython 3.11
        lines = found[code.co_name, qualname]
        lines.add(code.co_firstlineno)
        lines.update(line for _, _, line in code.co_lines())
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


class Soak:
    def __init__(self, amount: str, locks_only: bool) -> None:
        self.locks_only = locks_only
        self.for_seconds = float(amount[:-1]) if amount.endswith("s") else 0.0
        self.count = 1 if amount.endswith("s") else int(amount)
        self.taken = self.stacks = self.unstable = self.truncated = self.cut = 0
        self.seconds = 0.0
        self.checker = Checker()
        self.truth = Truth()
        self.waits: Counter[str] = Counter()

    def missing(self) -> set[str]:
        seen = {*self.checker.functions, *self.waits}
        if self.truth.checked:
            seen.add("a holder")
        wanted = {"lock", "rlock", "condition", "a holder", "soaking"}
        if sys.version_info < (3, 11):
            wanted.remove("rlock")  # who waits in "with rlock:" is not seen there: docs/waits.md
        if not self.locks_only:
            wanted |= {"recurse", "nested", "chain", "short_threads"}
        return wanted - seen

    def done(self) -> bool:
        """Whether there are enough snapshots, and all kinds of work were seen. On a busy machine
        the latter may take a while longer."""
        enough = self.taken >= self.count and self.seconds >= self.for_seconds
        return enough and (not self.missing() or self.seconds > self.for_seconds + 60)

    def run(self) -> None:
        begin = time.monotonic()
        while not self.done() and not stop.is_set():
            since = self.truth.length()
            taken = snapshot(mode="nogil", facts=True)
            threads = json.loads(taken.render("json"))["threads"]
            self.truth.claim(since, threads)
            self.waits.update(t["waits_for"]["kind"] for t in threads if "waits_for" in t)
            self.taken += 1
            self.cut += taken.truncated
            for stack in taken.threads:
                self.checker.check(stack)
                self.stacks += 1
                self.unstable += stack.unstable
                self.truncated += stack.truncated
            self.seconds = time.monotonic() - begin
        self.truth.check()

    def report(self) -> str:
        return json.dumps(
            {
                "python": sys.version.split()[0],
                "debug": hasattr(sys, "gettotalrefcount"),
                "snapshots": self.taken,
                "seconds": round(self.seconds, 1),
                "stacks": self.stacks,
                "unstable": self.unstable,
                "truncated_stacks": self.truncated,
                "truncated_snapshots": self.cut,
                "holders_checked": self.truth.checked,
                "waits": self.waits,
            }
        )


def main() -> int:
    sys.setswitchinterval(1e-4)
    known.publish()
    beside = sys.argv[2] if len(sys.argv) > 2 else "python"
    soaking = Soak(sys.argv[1], beside == "locks")
    # Not more work: each further thread makes the snapshots wait for the GIL.
    steps = soaking.truth.steps
    if beside == "locks":
        soak(soaking.run, [steps] * 3, steps)
    else:
        main_work = train() if beside == "torch" else generators
        soak(soaking.run, [mixed, short_threads, *[steps] * 3], main_work)
    print(*failures, sep="\n", file=sys.stderr)
    if failures:
        return 1
    print(soaking.report())
    if soaking.missing():
        print("never seen:", *soaking.missing(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
