# cython: cdivision=True
"""The native I/O thread: one extension module, and no line of it may use anything of CPython.

``recognise`` knows the requests that may be answered here, ``rules`` who may ask and for what,
``relay`` and ``torch_policy`` torch's own server. ``connection`` has the memory that both threads
share, ``answer`` what is written, ``dispatch`` what becomes of requests, ``hub`` the life of it
all, ``io`` the loop. tools/check_cython.py reads the generated C of every function.
"""

include "recognise.pyx"
include "rules.pyx"
include "relay.pyx"
include "torch_policy.pyx"
include "connection.pyx"
include "answer.pyx"
include "dispatch.pyx"
include "hub.pyx"
include "io.pyx"
