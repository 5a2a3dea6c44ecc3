"""Three parts of extension modules that read what strangers send, as they are in the package."""

include "requests/recognise.pxd"
include "torch/relay.pxd"
include "reply.pxd"
