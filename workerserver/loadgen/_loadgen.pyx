"""The load generator behind ``workerserver bench``, in one extension module.

``histogram`` counts times, ``reply`` reads replies, ``run`` is the loop without the GIL, ``load``
is Python's side of it.
"""

include "histogram.pyx"
include "reply.pyx"
include "run.pyx"
include "load.pyx"
