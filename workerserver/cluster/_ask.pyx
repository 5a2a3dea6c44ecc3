"""Asks many workers at once: one epoll loop in C, without the GIL, over Unix sockets and TCP.

The engine knows only the plain way: the requests of one worker are sent in one go, and each answer
has a Content-Length. It counts an answer only if nothing about it is unusual. For everything else
the worker is STRANGE: the engine ends the connection, and the client of Python (client.py) asks
that worker, so one parser decides on what is unusual, with one set of texts.

``reply`` reads a head. ``proof`` proves the token. ``peer`` is one worker, from connecting to its
last answer. ``loop`` begins peers, waits, and ends those that are late. ``fan`` is the Python side.
``values`` reads what most answers for health look like. ``masked`` finds summaries that are equal
but for times.
"""

include "ask/engine/reply.pyx"
include "ask/engine/proof.pyx"
include "ask/engine/peer.pyx"
include "ask/engine/loop.pyx"
include "ask/engine/fan.pyx"
include "ask/engine/values.pyx"
include "ask/engine/masked.pyx"
