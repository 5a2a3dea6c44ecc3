"""The native I/O thread: plain C data and functions, and nothing of CPython.

What other modules use, and the structs. What only the parts of the module use has no declaration.
"""

include "recognise.pxd"
include "rules.pxd"
include "relay.pxd"
include "torch_policy.pxd"
include "stage.pxd"
include "connection.pxd"
include "hub.pxd"
include "io.pxd"
