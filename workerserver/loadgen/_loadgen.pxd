"""The load generator's parts."""

include "histogram.pxd"
include "reply.pxd"
include "run.pxd"
