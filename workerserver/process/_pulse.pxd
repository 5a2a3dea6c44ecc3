"""What other modules use of the pulse, without the GIL."""

include "heartbeat.pxd"
include "meter.pxd"
include "share.pxd"
