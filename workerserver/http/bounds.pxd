"""What a client may take of a server at a connection's end, on either transport."""

cdef enum:
    DRAIN_SECONDS = 2  # for the client to end its side after the last reply
    STALL_SECONDS = 30  # a client that takes no byte of its reply for so long is gone
    DRAIN_LIMIT = 4 * 1024 * 1024  # bytes thrown away after the last reply
    # Connections past the limit that may be told so; each holds a descriptor until its client goes.
    REFUSED_LIMIT = 64
