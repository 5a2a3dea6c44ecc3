"""The loop's side of the native I/O thread: all of it that uses Python, in one extension module.

``table`` says what may be answered without the GIL. ``transport`` is asyncio's view of a
connection. ``loop_side`` has the hub and its listeners. ``faces`` are for tests.
"""

include "table.pyx"
include "transport.pyx"
include "loop_side.pyx"
include "faces.pyx"
