# cython: cdivision=True
"""The native I/O thread: one extension module, and no line of it may use anything of CPython.

tools/check_cython.py reads the generated C of every function. The parts, each with the one noun
that its name says:

* requests: ``recognise`` (the bytes), ``rules`` (who may ask for what), ``dispatch`` (answered at
  once, or handed to the loop), ``late`` (not claimed in time), ``dumps`` (snapshots);
* torch's own server: ``torch_policy``, ``relay`` (a client), ``torch_slots`` (requests to it);
* a connection: ``stage`` (who owns it), ``connection`` (the loop's calls), ``answer`` (replies),
  ``outgoing`` (unsent bytes), ``polling`` (what epoll is asked for), ``ending``;
* both threads: ``lock``, ``queue``, ``hub`` (their life), ``io`` (the loop of the I/O thread),
  ``invariants`` (what debug builds check).
"""

include "recognise.pyx"
include "rules.pyx"
include "relay.pyx"
include "torch_policy.pyx"
include "stage.pyx"
include "lock.pyx"
include "queue.pyx"
include "polling.pyx"
include "outgoing.pyx"
include "connection.pyx"
include "answer.pyx"
include "ending.pyx"
include "dispatch.pyx"
include "late.pyx"
include "dumps.pyx"
include "torch_slots.pyx"
include "hub.pyx"
include "io.pyx"
include "invariants.pyx"
