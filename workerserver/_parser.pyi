from collections.abc import Callable, Iterable
from typing import Any, Final, final

from workerserver.types import Request

MAX_HEAD: Final[int]
MAX_HEADERS: Final[int]
MAX_BODY: Final[int]
MAX_CHUNKS: Final[int]
MAX_EXTENSIONS: Final[int]
MAX_PARAMETERS: Final[int]

def unquote(raw: bytes, plus: bool = ...) -> str: ...
def parse_query(raw: bytes) -> list[tuple[str, str]]: ...

@final
class QueryValidator:
    names: tuple[str, ...]
    request_name: str | None
    asks_nothing: bool
    def __init__(
        self,
        specs: Iterable[tuple[str, Any, Any]],
        *,
        request_name: str | None = ...,
        extra: bool = ...,
        extra_name: str | None = ...,
        bound: Iterable[str] = ...,
        unknown_text: str | None = ...,
    ) -> None: ...
    @classmethod
    def from_callable(
        cls, function: Callable[..., Any], *, unknown_text: str | None = ...
    ) -> QueryValidator: ...
    def validate(
        self, query: Iterable[tuple[str, str]], form: Iterable[tuple[str, str]] = ...
    ) -> dict[str, Any]: ...

@final
class ParsedRequest:
    method: bytes
    target: bytes
    path: bytes
    query: bytes
    host: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes
    http_version: str
    keep_alive: bool
    cross_site: bool
    authorization: bytes | None
    session: Any  # _protocol.Session | None
    whole: bool
    def parameters(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]: ...
    def to_request(self, path: str, peer: str | None) -> Request: ...

@final
class RequestParser:
    session: Any  # _protocol.Session | None
    def __init__(
        self,
        *,
        max_head: int = ...,
        max_headers: int = ...,
        max_body: int = ...,
        max_chunks: int = ...,
        judge: Any = ...,  # Callable[[ParsedRequest], object] | None
    ) -> None: ...
    def receive_data(self, data: bytes) -> None: ...
    def next_request(self) -> ParsedRequest | None: ...
    def take_continue(self) -> bool: ...
    @property
    def buffered(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def at_boundary(self) -> bool: ...
    @property
    def in_body(self) -> bool: ...
    @property
    def closed(self) -> bool: ...
