from collections.abc import Iterable
from typing import Literal

__pyx_capi__: dict[str, object]

def read_reply(
    pieces: Iterable[bytes], *, head_only: bool = False, closed: bool = False
) -> tuple[Literal["done", "malformed", "more"], int, bool, int, int]: ...
