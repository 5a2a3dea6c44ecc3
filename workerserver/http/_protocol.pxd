"""What other modules use of the protocol."""

include "state.pxd"
include "reply.pxd"
include "session.pxd"
