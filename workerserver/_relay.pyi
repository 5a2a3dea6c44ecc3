from typing import Final, NamedTuple

__pyx_capi__: Final[dict[str, object]]

class Fetched(NamedTuple):
    status: int
    content_type: bytes
    body: bytes
    started: float
    ended: float

class RelayError(OSError): ...

def threads_can_start(count: int) -> bool: ...
def listens(listener: int, inode: int) -> bool: ...
def needs_gil(name: bytes, query: bytes) -> bool: ...
def fetch(path: bytes, target: bytes, timeout: float = ..., delay: float = ...) -> Fetched: ...
