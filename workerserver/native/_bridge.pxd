"""The loop's side of the I/O thread."""

include "table.pxd"
include "transport.pxd"
