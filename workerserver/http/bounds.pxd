"""How long the end of a connection may take, and what is spent on it, on either transport."""

cdef enum:
    DRAIN_SECONDS = 2  # for the client to end its side after the last reply
    STALL_SECONDS = 30  # a client that takes no byte of its reply for so long is gone
    MAX_DRAINED_BYTES = 4 * 1024 * 1024  # bytes thrown away after the last reply
    # Connections beyond the limit that are told so; each holds a descriptor until its client goes.
    MAX_REFUSED = 64
