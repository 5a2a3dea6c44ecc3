from typing import Any, Final, NamedTuple, final

MAX_DEPTH: Final[int]
MAX_THREADS: Final[int]
MAX_FRAMES: Final[int]

class Frame(NamedTuple):
    file: str
    line: int | None
    function: str
    qualname: str | None

class ThreadStack(NamedTuple):
    ident: int
    native_id: int | None
    name: str | None
    daemon: bool | None
    current: bool
    truncated: bool
    frames: tuple[Frame, ...]

@final
class Snapshot:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def pid(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def current(self) -> int: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def threads(self) -> tuple[ThreadStack, ...]: ...
    def text(self) -> str: ...
    def stack_text(self, index: int) -> str: ...

def snapshot(
    *, max_depth: int = ..., max_threads: int = ..., max_frames: int = ...
) -> Snapshot: ...
def kernel_state(tid: int) -> tuple[str | None, str | None]: ...
def snapshots_taken() -> int: ...
