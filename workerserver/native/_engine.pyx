# cython: cdivision=True
"""The native I/O thread: one extension module, and no line of it may use anything of CPython.

tools/check_cython.py reads the generated C of every function. The parts, each with the one noun
that its name says:

* requests: ``recognise`` (the bytes), ``rules`` (who may ask for what), ``dispatch`` (answered at
  once, or handed to the loop), ``late`` (not claimed in time), ``dumps`` (snapshots),
  ``scrapes`` (metrics);
* torch's own server: ``policy`` (what it may be asked), ``relay`` (a client), ``slots``
  (requests to it);
* a connection: ``places`` (which may stay), ``stage`` (who owns it), ``connection`` (the loop's
  calls), ``answer`` (replies), ``outgoing`` (unsent bytes), ``polling`` (what epoll is asked for),
  ``ending``;
* the black box: ``sampler`` (what goes into it, and when; the file itself is box/box.c);
* both threads: ``lock``, ``queue``, ``hub`` (their life), ``io`` (the loop of the I/O thread),
  ``invariants`` (what debug builds check).
"""

include "requests/recognise.pyx"
include "requests/rules.pyx"
include "torch/relay.pyx"
include "torch/policy.pyx"
include "engine/stage.pyx"
include "engine/lock.pyx"
include "engine/queue.pyx"
include "engine/polling.pyx"
include "engine/outgoing.pyx"
include "engine/places.pyx"
include "engine/connection.pyx"
include "engine/answer.pyx"
include "engine/ending.pyx"
include "requests/dispatch.pyx"
include "requests/late.pyx"
include "requests/dumps.pyx"
include "requests/scrapes.pyx"
include "torch/slots.pyx"
include "box/sampler.pyx"
include "engine/hub.pyx"
include "engine/io.pyx"
include "engine/invariants.pyx"
