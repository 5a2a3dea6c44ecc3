"""The engine's Python side: peers go in, and come out in batches."""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.unicode cimport PyUnicode_DecodeLatin1
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcpy

import os
import socket


cdef extern from "dial.h" nogil:
    bint dial_unix(dial_address *to, const char *path, size_t size) noexcept
    bint dial_inet(
        dial_address *to, int family, const char *host, int port, unsigned scope
    ) noexcept

cdef enum:
    BATCH = 128            # peers that Python gets at one time
    MAX_NAMES = 512        # names of fields that are kept
    MAX_HEADS = 512        # heads that are kept
    LARGE_HEAD = 1024      # bytes: larger ones are not kept

#: In the order of How (peer.pxd).
HOWS = ("answered", "unnamed", "unreached", "shut", "cut", "late", "stopped", "strange")
#: In the order of Stage.
STAGES = ("queued", "naming", "paused", "connecting", "asking", "ended")

#: Names of fields as they came -> in lower case.
cdef dict _names = {}
#: Heads -> what they say. Heads of many workers are equal.
cdef dict _heads = {}


@cython.final
@cython.freelist(128)
cdef class Talk:
    """How one peer ended. *how* is one of HOWS. *stage*: in which it was until then. *at*: the
    question that has no answer; the answers before it are in *answers*, as (status, reason, fields,
    body, received). *received*: bytes, *partial*: those of an answer that is not whole; *missing*:
    how much of its body had not come, -1 if its head had not. *error*: an errno, 0 if the address's
    time was over. *until*: the deadline, in seconds of time.monotonic(). *kept*: the connection is
    open, for Fan.more()."""

    cdef readonly object number
    cdef readonly str how
    cdef readonly str stage
    cdef readonly int at
    cdef readonly list answers
    cdef readonly Py_ssize_t received
    cdef readonly Py_ssize_t partial
    cdef readonly Py_ssize_t missing
    cdef readonly int error
    cdef readonly int pid
    cdef readonly double until
    cdef readonly bint kept


@cython.final
cdef class Fan:
    """Asks many peers, at most *most* at one time, and at most *working* that began within
    *patience* seconds. If nothing of the first answer comes for *stall* seconds, a second
    connection is tried beside the first. After an answer, or on a kept connection, a peer that
    sends nothing for as long is STRANGE. *max_head* bytes and *max_fields* bound the head of an
    answer. *key* and *token*: the key of a token, and its name, for peers that have to prove it.

    :meth:`add` queues a peer; :meth:`turn` goes on, and returns those that have ended. The
    descriptor is readable when a turn has something to do. :meth:`more` puts more questions to a
    peer whose connection was kept. Kept connections are among the *most*, and give way to peers
    that begin. One thread uses a Fan.
    """

    cdef Loop loop
    cdef dict _unnamed          # number -> the Peer's address, while its name is looked up
    cdef dict _kept             # number -> the Peer's address, while its connection is kept
    cdef bint _open
    cdef bint _has_key

    def __cinit__(self):
        self.loop.poller = self.loop.timer = -1

    def __init__(
        self,
        int working,
        int most,
        double patience,
        double stall,
        Py_ssize_t max_head,
        int max_fields,
        bytes key=None,
        bytes token=b"",
    ):
        if self._open:
            raise RuntimeError("this Fan is open")
        self._unnamed = {}
        self._kept = {}
        self.bound(working, most)
        self.loop.patience_ns = <int64_t>(patience * 1e9)
        self.loop.stall_ns = <int64_t>(stall * 1e9)
        self.loop.max_head = <size_t>max_head
        self.loop.max_fields = max_fields
        self.loop.uid = os.geteuid()
        self._has_key = key is not None
        if key is not None:
            if len(key) != WS_KEY or len(token) > WS_GUEST_TOKEN:
                raise ValueError(f"key: {WS_KEY} bytes; token: at most {WS_GUEST_TOKEN} bytes")
            memcpy(self.loop.key, PyBytes_AS_STRING(key), WS_KEY)
            memcpy(self.loop.token, PyBytes_AS_STRING(token), <size_t>len(token))
            self.loop.token_size = <size_t>len(token)
        self._open = True
        if not loop_open(&self.loop):
            loop_close(&self.loop)
            self._open = False
            raise OSError(errno, os.strerror(errno))

    def __dealloc__(self):
        self.close()

    def fileno(self):
        """Readable when there is something to do."""
        return self.loop.poller

    @property
    def queued(self):
        """Peers that have not begun."""
        return self.loop.queued.size

    @property
    def active(self):
        """Peers that have begun and have not ended."""
        return self.loop.begun_count

    @property
    def kept(self):
        """Connections that are kept."""
        return self.loop.kept_count

    def bound(self, int working, int most):
        """Change *working* and *most*."""
        self.loop.working = max(working, 1)
        self.loop.most = max(most, 1)

    def add(
        self,
        object number,
        bytes request not None,
        tuple limits not None,
        double seconds,
        *,
        bytes path=None,
        tuple addresses=(),
        int port=0,
        bint trusting=False,
        bint keeps=False,
        tuple proven=None,
        int64_t rank=-1,
    ):
        """Queue a peer. It is sent *request*, which holds a question for each of *limits*, the
        largest body of each answer in bytes. *seconds*: its time, from when it begins.

        It is a Unix socket's *path*, or some IP *addresses* with a *port*; or neither, then its
        *number* is returned by :meth:`turn` when it begins, and :meth:`name` or :meth:`unnamed` has
        to follow. *trusting*: nothing is sent but to a Unix socket of this user or of root.
        *keeps*: the connection stays open if all answers have come. *proven*: the token is proven.
        *request* then begins with a greeting, and these are the places where the greeting and each
        question begin, each with the place where its Authorization belongs. *rank*: the one that
        the peer has to prove, -1 for any. ValueError if an address can't be used.
        """
        cdef Peer *peer
        if not self._open:
            raise RuntimeError("this Fan is closed")
        peer = <Peer *>calloc(1, sizeof(Peer))
        if peer is NULL:
            raise MemoryError
        peer.fd = -1
        try:
            bound_answers(peer, limits)
            if path is not None or addresses:
                locate(peer, path, addresses, port)
            if proven is not None:
                if not self._has_key:
                    raise ValueError("proven: this Fan has no key")
                prove(peer, request, proven, rank)
        except BaseException:
            free_peer(peer)
            raise
        Py_INCREF(number)
        peer.number = <void *>number
        peer.owns = True
        peer.trusting = trusting
        peer.keeps = keeps
        self._queue(peer, request, seconds)

    cdef _queue(self, Peer *peer, bytes request, double seconds):
        Py_INCREF(request)
        peer.request = <void *>request
        peer.out = PyBytes_AS_STRING(request)
        peer.out_size = <size_t>PyBytes_GET_SIZE(request)
        peer.seconds_ns = <int64_t>(seconds * 1e9)
        put(&self.loop.queued, peer)

    def more(
        self,
        object number,
        bytes request not None,
        tuple limits not None,
        double seconds,
        *,
        tuple proven=None,
    ):
        """Queue the peer of this *number* again, with more questions on the connection that was
        kept. False if that is gone. The parameters are those of :meth:`add`, but there is no
        greeting: the proofs go on with the count of the connection."""
        cdef object place
        cdef Peer *peer
        if not self._open:
            raise RuntimeError("this Fan is closed")
        place = self._kept.pop(number, None)
        if place is None:
            return False
        peer = <Peer *><size_t>place
        if peer.fd < 0:
            self._free(peer)
            return False
        try:
            bound_answers(peer, limits)
            if (proven is not None) != (peer.proving is not NULL):
                raise ValueError("proven: as when the peer was added")
            if proven is not None:
                prove(peer, request, proven, peer.proving.rank)
        except BaseException:
            self._free(peer)
            raise
        unlist(&self.loop, peer)
        peer.stage = QUEUED
        peer.resumed = True
        self._queue(peer, request, seconds)
        return True

    def drop(self, object number):
        """End the connection that was kept of the peer of this *number*."""
        cdef object place = self._kept.pop(number, None)
        if place is not None:
            self._free(<Peer *><size_t>place)

    cdef void _free(self, Peer *peer) noexcept:
        """Free a peer, and what is kept of it."""
        give_up(&self.loop, peer)
        free_peer(peer)

    def name(self, object number, tuple addresses not None, int port):
        """The *addresses* of a peer that waits for them. ValueError if one can't be used."""
        cdef Peer *peer = self._named(number)
        if peer is not NULL:
            locate(peer, None, addresses, port)
            self.loop.now = monotonic_ns()
            dial(&self.loop, peer)

    def unnamed(self, object number):
        """A peer that waits for its addresses has none."""
        cdef Peer *peer = self._named(number)
        if peer is not NULL:
            end(&self.loop, peer, UNNAMED)

    cdef Peer *_named(self, object number) except? NULL:
        """The peer that waits for its name, or NULL if it has ended."""
        cdef object place = self._unnamed.pop(number, None)
        return NULL if place is None else <Peer *><size_t>place

    def turn(self):
        """Go on with all peers, without the GIL. Returns the Talks that have ended, and the numbers
        of peers that wait for their names."""
        if not self._open:
            raise RuntimeError("this Fan is closed")
        with nogil:
            turn(&self.loop, BATCH)
        return self._ended(), self._wanted()

    def stop(self):
        """End all peers that have begun, and drop the others. Returns as :meth:`turn`."""
        self.loop.stopped = True
        while self.loop.begun is not NULL:
            end(&self.loop, self.loop.begun, STOPPED)
        return self._ended(), self._wanted()

    def close(self):
        """End everything. May be called twice."""
        if not self._open:
            return
        self._open = False
        while self.loop.begun is not NULL:
            end(&self.loop, self.loop.begun, STOPPED)
        self._drop(&self.loop.ended)
        self._drop(&self.loop.dropped)
        self._drop(&self.loop.queued)
        for place in self._kept.values():
            self._free(<Peer *><size_t>place)
        self._kept = {}
        loop_close(&self.loop)

    cdef void _drop(self, Line *line) noexcept:
        cdef Peer *peer = take(line)
        while peer is not NULL:
            if peer.stage == ENDED or peer.resumed:
                self._free(peer)
            else:
                free_peer(peer)
            peer = take(line)

    cdef list _ended(self):
        cdef list found = []
        cdef Peer *peer = take(&self.loop.ended)
        self._drop(&self.loop.dropped)
        try:
            while peer is not NULL:
                if peer.was == NAMING:
                    self._unnamed.pop(<object>peer.number, None)
                found.append(talk_of(peer))
                if peer.fd >= 0:
                    self._kept[<object>peer.number] = <size_t>peer
                    rest(peer)
                else:
                    self._free(peer)
                peer = take(&self.loop.ended)
        except BaseException:
            self._free(peer)
            raise
        return found

    cdef list _wanted(self):
        cdef list found = []
        cdef Peer *peer
        cdef Peer *after
        if not self.loop.naming_came:
            return found
        self.loop.naming_came = False
        peer = self.loop.begun
        while peer is not NULL:
            after = peer.after
            if peer.stage == NAMING and not peer.told:
                peer.told = True
                number = <object>peer.number
                self._unnamed[number] = <size_t>peer
                found.append(number)
            peer = after
        return found


cdef bound_answers(Peer *peer, tuple limits):
    """Note how large each answer may be. ValueError if there are too many, or none."""
    cdef int i
    if not 0 < len(limits) <= MAX_QUESTIONS:
        raise ValueError(f"limits: 1 to {MAX_QUESTIONS} questions")
    for i in range(len(limits)):
        peer.limits[i] = <size_t><Py_ssize_t>limits[i]
    peer.question_count = <int>len(limits)


cdef prove(Peer *peer, bytes request, tuple proven, int64_t rank):
    """Note where the proofs of *peer* belong. A peer that has proven itself is not greeted."""
    cdef Proving *proving = peer.proving
    cdef Py_ssize_t start, insert, end = len(request)
    cdef int i, first = 1 if peer.met else 0
    if len(proven) != peer.question_count + 1 - first:
        raise ValueError("proven: one for the greeting and for each question")
    if proving is NULL:
        peer.proving = proving = <Proving *>calloc(1, sizeof(Proving))
    if proving is NULL:
        raise MemoryError
    for i in range(peer.question_count, first - 1, -1):
        start, insert = proven[i - first]
        if not 0 <= start < insert < end or request[start:insert].count(b" ") < 2:
            raise ValueError("proven: no place in the request")
        proving.starts[i] = <size_t>start
        proving.inserts[i] = <size_t>insert
        end = start
    proving.starts[peer.question_count + 1] = proving.size = <size_t>len(request)
    proving.request = PyBytes_AS_STRING(request)
    proving.rank = rank


cdef locate(Peer *peer, bytes path, tuple addresses, int port):
    """Fill in the addresses of *peer*."""
    cdef dial_address *to
    cdef bytes name
    cdef int count = 1 if path is not None else <int>len(addresses)
    to = <dial_address *>calloc(<size_t>count, sizeof(dial_address))
    if to is NULL:
        raise MemoryError
    free(peer.addresses)
    peer.addresses = to
    peer.address_count = count
    if path is not None:
        if not dial_unix(to, path, <size_t>len(path)):
            raise ValueError("path: it is empty or too long for a socket")
        return
    for i, address in enumerate(addresses):
        host, _, scope = address.partition("%")
        name = host.encode("ascii")
        family = socket.AF_INET6 if b":" in name else socket.AF_INET
        number = 0
        if scope:
            number = int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
        if not dial_inet(&to[<int>i], family, name, port, number):
            raise ValueError(f"addresses: {address!r} is no IP address")


cdef void rest(Peer *peer) noexcept:
    """Make a peer small whose connection is kept, and ready for more questions."""
    Py_DECREF(<object>peer.request)
    peer.request = NULL
    free(peer.data)
    peer.data = NULL
    peer.size = peer.capacity = peer.start = peer.scanned = peer.head_size = peer.sent = 0
    peer.at = 0


cdef void free_peer(Peer *peer) noexcept:
    """Free a peer that is in no list."""
    if peer is NULL:
        return
    hang_up(peer)
    if peer.owns:
        Py_DECREF(<object>peer.number)
        if peer.request is not NULL:
            Py_DECREF(<object>peer.request)
    free_proving(peer.proving)
    free(peer.addresses)
    free(peer.data)
    free(peer)


cdef Talk talk_of(const Peer *peer):
    """What Python learns of a peer that has ended."""
    cdef Talk talk = Talk.__new__(Talk)
    cdef int i
    talk.number = <object>peer.number
    talk.how = HOWS[<int>peer.how]
    talk.stage = STAGES[<int>peer.was]
    talk.at = peer.at
    # A proof is in one head only.
    talk.answers = [
        answer_of(peer.data, &peer.answers[i], peer.proving is NULL) for i in range(peer.at)
    ]
    talk.received = <Py_ssize_t>peer.size
    talk.partial = <Py_ssize_t>(peer.size - peer.start)
    talk.missing = -1
    if peer.proving is not NULL and not peer.met:
        talk.partial = 0  # of the first question's answer nothing has come
    elif peer.head_size:
        talk.missing = <Py_ssize_t>(peer.reply.length + peer.head_size) - talk.partial
    talk.error = peer.error
    talk.pid = peer.pid
    talk.until = <double>peer.deadline * 1e-9
    talk.kept = peer.fd >= 0
    return talk


cdef tuple answer_of(const char *data, const Answered *found, bint common):
    """(status, reason, fields, body, received). *common*: other answers may have this head."""
    cdef Py_ssize_t size = <Py_ssize_t>(found.body - found.begin)
    cdef bytes head
    cdef tuple said = None
    if common and size <= LARGE_HEAD:
        head = PyBytes_FromStringAndSize(data + found.begin, size)
        said = <tuple>_heads.get(head)
        if said is None:
            said = head_of(data, found)
            if len(_heads) >= MAX_HEADS:
                _heads.clear()
            _heads[head] = said
    else:
        said = head_of(data, found)
    return (
        found.status,
        said[0],
        said[1],
        PyBytes_FromStringAndSize(data + found.body, <Py_ssize_t>(found.end - found.body)),
        <Py_ssize_t>(found.end - found.begin),
    )


cdef tuple head_of(const char *data, const Answered *found):
    """(reason, fields)."""
    cdef size_t at = found.fields
    cdef size_t name, value, line
    cdef const char *end
    cdef dict fields = {}
    while at < found.head_end:
        end = <const char *>memchr(data + at, c"\r", found.body - at)
        line = <size_t>(end - data)
        end = <const char *>memchr(data + at, c":", line - at)
        name = <size_t>(end - data)
        value = name + 1
        while value < line and (data[value] == c" " or data[value] == c"\t"):
            value += 1
        fields[name_of(data + at, name - at)] = text_of(data + value, line - value)
        at = line + 2
    return text_of(data + found.reason, found.fields - 2 - found.reason), fields


cdef inline str text_of(const char *data, size_t size):
    return PyUnicode_DecodeLatin1(data, <Py_ssize_t>size, NULL)


cdef str name_of(const char *data, size_t size):
    """A field's name in lower case. Workers send the same few names."""
    cdef bytes raw = PyBytes_FromStringAndSize(data, <Py_ssize_t>size)
    found = _names.get(raw)
    if found is None:
        found = raw.decode("latin-1").lower()
        if len(_names) < MAX_NAMES:
            _names[raw] = found
    return found
