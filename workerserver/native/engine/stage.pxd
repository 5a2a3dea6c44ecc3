"""The stages of a connection. stage.pyx says who owns the connection in each of them."""


cdef enum Stage:
    STAGE_NEW  # not in the hub yet
    STAGE_IO  # I/O thread: at a message boundary, no whole request has come yet
    STAGE_WAIT  # I/O thread: inside a message, the next bytes are the protocol's
    STAGE_QUEUED  # I/O thread: bytes wait for the loop, and may be taken back
    STAGE_LOOP  # loop: it has claimed the bytes and has not asked for more
    STAGE_ANSWERING  # I/O thread: a snapshot or a relay is under way for a request
    STAGE_DRAIN  # I/O thread: the last reply goes out, what comes is thrown away
    STAGE_CLOSING  # I/O thread: the loop wants the descriptor closed
    STAGE_DEAD  # closed; freed when the transport has let go
