"""The stage of a connection: who owns it, and which thread may make which transition.

Two threads share each connection: the I/O thread, which needs no GIL, and the loop's thread, which
holds it. The stage says which of them *owns* the connection. All code changes the stage through
``move()``, under the hub's lock. Three rules follow from ownership:

* Only the owner starts a reply. So the replies of the two threads never mix, and a request that
  the loop claimed is never answered by the I/O thread too.
* Only the I/O thread closes a descriptor, and only if the loop does not own the connection or has
  nothing to send any more. So the loop may send() without the lock: the descriptor can't be closed,
  and its number can't be given to another file, meanwhile.
* Only the I/O thread frees a struct: when it is DEAD and no transport refers to it.

The life of a connection::

    NEW --> IO ----------> QUEUED <---- WAIT
             |   whole or    |           ^
             |   unknown     | claim     | want_bytes(), inside a message
             |   request     v           |
             |<------------ LOOP --------'
             | want_bytes(), at a boundary

NEW        The I/O thread has accepted the connection. No list has it yet.
IO         The I/O thread reads, and answers what it recognises. The deadline is that of an idle
           connection, of a head that is not complete, or of a reply that nobody reads. A request
           that must wait for a snapshot: ANSWERING. All other requests: QUEUED.
WAIT       The protocol is inside a message, and the loop has nothing to do until bytes come. The
           protocol has its own time limits. Any byte, or the client's end: QUEUED.
QUEUED     In the hub's queue. The loop claims the connection in its turn (turn_next), or the I/O
           thread takes the first request back (late.pyx): after gil_deadline if the request can be
           answered without the loop, else after gil_timeout with 503. Both happen under the lock,
           so one of the two comes first. If the protocol writes by itself, that is a claim too.
LOOP       The protocol has the bytes. New bytes are appended, and the connection goes into the
           queue again. The I/O thread only sends what the loop has left in ``out``. The stage ends
           with want_bytes() (IO, WAIT, or QUEUED if bytes are there already) or with close(). The
           I/O thread ends it only after close(), when all is sent, or when the hub itself ends.
ANSWERING  Exactly one list of the hub refers to the connection: ``dumps``, ``dumping``,
           ``scrapes``, ``scraping`` or a slot of ``relays``. So the connection must not die for a
           reason of its own: errors and closes only leave a mark (``error``, ``closing``,
           ``doomed``), which counts when the answer is ready. If a relay's client reads nothing,
           it may die, and its slot forgets it.
DRAIN      The last reply is written. The I/O thread sends the rest, ends our side, and reads until
           the client ends its side or the time is over.
CLOSING    The loop has given the connection up (close(), abort(), the server's end), and it is in
           the ``reap`` list. The loop can't close it: an epoll event for it may be in the batch
           that the I/O thread works on.
DEAD       The descriptor is closed, and all memory but the struct is freed. A transport hears of
           this through the queue, and lets go.

A table below has all transitions, in debug builds the law. The letter says who makes one: ``i`` the
I/O thread, ``l`` the loop's thread. When hub_run() is over, the loop's thread calls it once more to
free the rest, and plays the I/O thread meanwhile. In a forked child every connection becomes DEAD.
"""

from libc.stdio cimport FILE, fflush, fprintf

from workerserver.native.system cimport pthread_equal, pthread_self


cdef extern from * nogil:
    """
    /* setup.py defines it as 1 for debug and sanitizer builds. Elsewhere the compiler drops all
     * that stands behind it. */
    #ifndef WS_DEBUG
    #define WS_DEBUG 0
    #endif
    static __thread int ws_side;   /* a Side */
    static __thread int ws_locks;  /* hubs that this thread has locked */
    """
    const bint WS_DEBUG
    int ws_side
    int ws_locks


cdef enum Side:
    SIDE_LOOP  # every thread that is nothing else
    SIDE_IO
    SIDE_CHILD  # of a fork, where one thread is left

cdef enum:
    STAGES = 9


cdef inline void move(Connection *connection, Stage old, Stage new) noexcept nogil:
    """Give the connection, which is in stage *old*, the stage *new*."""
    if WS_DEBUG:
        _check_move(connection, old, new)
    connection.stage = new


cdef const char *stage_name(int stage) noexcept nogil:
    cdef const char **names = [
        b"NEW", b"IO", b"WAIT", b"QUEUED", b"LOOP", b"ANSWERING", b"DRAIN", b"CLOSING", b"DEAD"
    ]
    if 0 <= stage < STAGES:
        return names[stage]
    return b"none"


cdef char _maker(Stage old, Stage new) noexcept nogil:
    """Who may make the transition: ``i``, ``l``, or ``-`` for nobody."""
    cdef const char *table = (
        #  to:
        #  N I W Q L A D C D
        #  e O a u o n r l e
        #  w   i e o s a o a
        #      t u p w i s d
        b"- i - - - - - - - "  # from NEW
        b"- - - i l i i l i "  # IO
        b"- - - i l - - l i "  # WAIT
        b"- i - - l i i l i "  # QUEUED
        b"- l l l - - - l i "  # LOOP
        b"- i - - - - i - i "  # ANSWERING
        b"- - - - - - - l i "  # DRAIN
        b"- - - - - - - - i "  # CLOSING
        b"- - - - - - - - - "  # DEAD
    )
    return table[2 * (STAGES * <int>old + <int>new)]


cdef void _check_move(Connection *connection, Stage old, Stage new) noexcept nogil:
    cdef Hub *hub = connection.hub
    cdef const char *wrong = NULL
    cdef FILE *out
    if connection.stage != old:
        wrong = b"the connection is in another stage than its mover thinks"
    elif ws_side == SIDE_CHILD:
        if new != STAGE_DEAD:
            wrong = b"a forked child may only bury connections"
    elif ws_locks == 0:
        wrong = b"a connection is moved without the hub's lock"
    elif _maker(old, new) == c"-":
        wrong = b"there is no such transition"
    elif _maker(old, new) != (c"i" if ws_side == SIDE_IO else c"l"):
        wrong = b"the transition is for the other thread to make"
    elif (
        ws_side == SIDE_LOOP and hub.witness.loop != 0
        and not pthread_equal(hub.witness.loop, pthread_self())
    ):
        wrong = b"a thread that is not the loop's moves a connection"
    if wrong != NULL:
        out = debug_output()
        fprintf(
            out, b"workerserver: from %s to %s, on %s:\n", stage_name(old), stage_name(new),
            b"the I/O thread" if ws_side == SIDE_IO else b"another thread",
        )
        fflush(out)
        violated(wrong, hub, connection)


cdef void enter_side(Side side) noexcept nogil:
    """Debug builds: what this thread is from now on."""
    global ws_side, ws_locks
    ws_side = side
    if side == SIDE_CHILD:
        ws_locks = 0
