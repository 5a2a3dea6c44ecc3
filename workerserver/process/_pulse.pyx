"""The process as its server sees it: how far it is, and what it can bear.

``heartbeat`` is training's own call and the health made of it, ``thread_limit`` how many threads
may still start, ``forked`` what a child of fork() must neither use nor destroy.
"""

include "heartbeat.pyx"
include "thread_limit.pyx"
include "forked.pyx"
