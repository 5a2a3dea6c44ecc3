from typing import Any, Final, Literal, NamedTuple, final

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
    unstable: bool
    frames: tuple[Frame, ...]

@final
class Snapshot:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def mode(self) -> Literal["gil", "nogil", "kernel"]: ...
    @property
    def pid(self) -> int: ...
    @property
    def time(self) -> float: ...
    @property
    def holder(self) -> int | None: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def threads(self) -> tuple[ThreadStack, ...]: ...
    def render(self, format: Literal["text", "json", "digest"]) -> bytes: ...
    def text(self) -> str: ...
    def stack_text(self, index: int) -> str: ...
    def headers(self) -> tuple[tuple[str, str], ...]: ...

# By name: the C functions of _stacks.pxd.
__pyx_capi__: Final[dict[str, object]]

def snapshot(
    *,
    mode: Literal["gil", "nogil", "kernel"] = ...,
    max_depth: int = ...,
    max_threads: int = ...,
    max_frames: int = ...,
) -> Snapshot: ...
def kernel_state(tid: int) -> tuple[str | None, str | None]: ...
def snapshots_taken() -> int: ...
def prepare() -> str | None: ...
