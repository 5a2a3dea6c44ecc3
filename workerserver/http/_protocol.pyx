"""One HTTP connection on any transport: parse, dispatch, respond.

``state`` is what all connections of a server share, ``reply`` makes heads of replies, ``unsent`` is
what clients have not taken yet, ``session`` shows who knows the token, ``connection`` is the
asyncio protocol, ``jobs`` are the calls of handlers.
"""

include "state.pyx"
include "reply.pyx"
include "unsent.pyx"
include "session.pyx"
include "connection.pyx"
include "jobs.pyx"
