from collections.abc import Iterable
from typing import Literal, NamedTuple, final

@final
class Histogram:
    def __init__(self) -> None: ...
    def record(self, ns: int, times: int = 1) -> None: ...
    @property
    def count(self) -> int: ...
    @property
    def min(self) -> int: ...
    @property
    def max(self) -> int: ...
    @property
    def mean(self) -> float: ...
    def percentile(self, percentile: float) -> int: ...
    def above(self, ns: int) -> int: ...
    def merge(self, other: Histogram) -> None: ...
    def copy(self) -> Histogram: ...
    def corrected(self, expected_interval_ns: int) -> Histogram: ...
    def points(self, ticks: int = 10) -> list[tuple[float, int]]: ...

__pyx_capi__: dict[str, object]

def read_reply(
    pieces: Iterable[bytes], *, head_only: bool = False, closed: bool = False
) -> tuple[Literal["done", "malformed", "more"], int, bool, int, int]: ...

NAMES: tuple[str, ...]

class Result(NamedTuple):
    sent: int
    answered: int
    failed: dict[str, int]
    statuses: dict[int, int]
    seconds: float
    received: int
    service: Histogram
    response: Histogram
    late: Histogram

@final
class Load:
    def __init__(
        self,
        address: str | tuple[str, int],
        request: bytes,
        *,
        connections: int = 1,
        requests: int = 0,
        seconds: float = 0.0,
        rate: float = 0.0,
        fresh: bool = False,
        timeout: float = 10.0,
        per_connection: int = 0,
    ) -> None: ...
    @property
    def result(self) -> Result | None: ...
    def run(self) -> Result: ...
    def stop(self) -> None: ...
