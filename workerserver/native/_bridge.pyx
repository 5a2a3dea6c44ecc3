"""The loop's side of the native I/O thread: all of it that uses Python, in one extension module.

``table`` says what may be answered without the GIL. ``transport`` is asyncio's view of a
connection. ``loop_side`` has the hub and its listeners. ``box`` opens the black box. ``faces`` are
for tests.
"""

include "bridge/table.pyx"
include "bridge/transport.pyx"
include "bridge/loop_side.pyx"
include "bridge/box.pyx"
include "bridge/faces.pyx"
