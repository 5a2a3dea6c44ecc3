"""The load generator behind ``workerserver bench``, in one extension module.

``histogram`` counts times. ``reply`` reads replies. ``slot`` is one connection, and ``run`` is the
loop over all of them; both run without the GIL. ``load`` is the Python side.
"""

include "histogram.pyx"
include "reply.pyx"
include "slot.pyx"
include "run.pyx"
include "load.pyx"
