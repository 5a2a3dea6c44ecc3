"""The native I/O thread: plain C data and functions, and nothing of CPython.

One part a noun; each has the declarations of its .pyx of the same name.
"""

include "recognise.pxd"
include "rules.pxd"
include "relay.pxd"
include "torch_policy.pxd"
include "connection.pxd"
include "answer.pxd"
include "dispatch.pxd"
include "hub.pxd"
include "io.pxd"
