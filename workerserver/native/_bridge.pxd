"""The loop's side of the I/O thread."""

include "bridge/table.pxd"
include "bridge/transport.pxd"
