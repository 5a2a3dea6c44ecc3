"""What the server knows of its process.

``heartbeat`` records training's steps, and makes ``/healthz`` of them. ``steps`` reads the last
ones, and says how long a step takes. ``thread_limit`` says how many threads may still start.
``forked`` keeps alive what a forked child must not destroy. ``inode`` tells which file a descriptor
is. ``share`` bounds what the loop's thread takes of the processor. ``meter`` counts what a server
answers, ``resources`` has what the process takes, ``published`` what only Python can know, and
``exposition`` writes all of it for ``/metrics``.
"""

include "meter.pyx"
include "heartbeat.pyx"
include "steps.pyx"
include "thread_limit.pyx"
include "forked.pyx"
include "inode.pyx"
include "share.pyx"
include "resources.pyx"
include "published.pyx"
include "exposition.pyx"
