"""One HTTP connection on any transport: parse, dispatch, respond.

``state`` is what all connections of a server share, ``reply`` makes heads of replies,
``connection`` is the asyncio protocol.
"""

include "state.pyx"
include "reply.pyx"
include "connection.pyx"
