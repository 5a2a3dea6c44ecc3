from collections.abc import Iterable
from typing import Literal, NamedTuple, final

class Look(NamedTuple):
    length: int
    method: str
    path: bytes
    query: bytes
    host: bytes
    authorization: bytes | None
    fields: int
    keep_alive: bool
    allowed: bool
    action: int | None
    max_step_age: float | None
    format: str
    mode: str

@final
class Table:
    def __new__(
        cls,
        routes: Iterable[
            tuple[
                Literal["GET", "POST"],
                str,
                Literal["any", "none", "healthz", "dump", "opaque"],
                int,
            ]
        ],
        *,
        check_host: bool = ...,
        names: Iterable[str] = ...,
        prefix: str | None = ...,
        token: bytes | None = ...,
        max_head: int = ...,
        max_headers: int = ...,
    ) -> Table: ...
    def look(self, data: bytes) -> Look | Literal["incomplete", "forward"]: ...
