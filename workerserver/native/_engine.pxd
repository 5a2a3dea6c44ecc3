"""The native I/O thread: plain C data and functions, and nothing of CPython.

What other modules use, and the structs. What only the parts of the module use has no declaration.
"""

include "requests/recognise.pxd"
include "requests/rules.pxd"
include "torch/relay.pxd"
include "torch/policy.pxd"
include "engine/stage.pxd"
include "engine/connection.pxd"
include "engine/hub.pxd"
include "engine/io.pxd"
include "box/sampler.pxd"
