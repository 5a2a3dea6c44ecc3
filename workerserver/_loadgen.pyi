from typing import NamedTuple, final

from workerserver._histogram import Histogram

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
