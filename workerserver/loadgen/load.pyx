"""An HTTP load generator: one thread, one native loop, no GIL while it runs.

Closed loop: each connection has one request in flight. Open loop: request *i* is due *i* / rate
after the start, whatever happened to the requests before it, and its latency counts from that
moment. So if the server stalls, every request that could not be sent meanwhile has a long latency
(Gil Tene's "coordinated omission"). Replies are read whole and thrown away.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport INT64_MAX, int64_t, uint64_t
from libc.string cimport memset


import math
import os
import resource
import socket
from typing import NamedTuple

cdef extern from "loadgen.h" nogil:
    long wl_slack() noexcept
    void wl_set_slack(long ns) noexcept
    bint dial_unix(dial_address *to, const char *path, size_t size) noexcept
    bint dial_inet(
        dial_address *to, int family, const char *host, int port, unsigned scope
    ) noexcept

#: In the order of Reason (run.pxd).
NAMES = (
    "refused", "reset", "closed early", "timeout", "malformed", "not sent", "no such socket"
)


class Result(NamedTuple):
    """The result of a run. ``sent`` is ``answered`` plus all that ``failed``.

    ``answered`` counts the whole replies with a status of 2xx; the histograms hold only those.
    ``failed`` counts by reason; other statuses are among them (``status 503``). See :class:`Load`.
    """

    sent: int
    answered: int
    failed: dict[str, int]
    statuses: dict[int, int]
    seconds: float
    received: int
    service: Histogram
    response: Histogram
    late: Histogram


@cython.final
cdef class Load:
    """Requests to one server over at most *connections*, until *requests* or *seconds* are over.

    Without a *rate*, each connection sends its next request when the last one is answered. With a
    *rate* (requests per second), requests are sent on a fixed schedule, and connections are added
    when they are needed. *fresh* makes a new connection for every request. Otherwise a connection
    is replaced after *per_connection* requests (0: only if the server closes it), and connecting
    isn't timed. *timeout* (seconds) is for each request, from its sending. An open loop ends that
    long after its last request was due, even if there is more to send.

    The result's histograms are in nanoseconds. ``service`` is the time from the sending of a
    request (*fresh*: from connecting) to the last byte of its reply. ``response`` counts from the
    moment at which the request was due; in a closed loop the two are equal. ``late`` is the time
    from that moment to the sending, if a connection was free. This is the client's own delay, and
    zero in a good measurement. ``received`` counts bytes, heads included.

    A Load can run any number of times, one run at a time. *address* is a socket's path or
    ``(host, port)``; names are looked up here. ValueError says which argument is wrong; OSError
    says that a name can't be looked up.
    """

    cdef Run plan
    cdef bytes _request
    cdef bint _running
    cdef bint _stopping
    cdef readonly object result  # the last run's Result, also if it was interrupted; None before

    def __init__(
        self,
        address,
        bytes request not None,
        *,
        int64_t connections=1,
        int64_t requests=0,
        double seconds=0.0,
        double rate=0.0,
        bint fresh=False,
        double timeout=10.0,
        int64_t per_connection=0,
    ):
        if b"\r\n\r\n" not in request:
            raise ValueError("request: no empty line ends its head")
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections: {connections} is not one of 1 to {MAX_CONNECTIONS}")
        if not 0 <= requests <= 10**12:
            raise ValueError(f"requests: {requests} is not one of 0 to 10**12")
        if not 0 <= seconds <= 1e6:
            raise ValueError(f"seconds: {seconds:g} is not one of 0 to 1e6")
        if not (rate == 0 or 1e-3 <= rate <= 1e7):
            raise ValueError(f"rate: {rate:g} is neither 0 nor one of 0.001 to 1e7 per second")
        if not 1e-4 <= timeout <= 1e6:
            raise ValueError(f"timeout: {timeout:g} is not one of 0.0001 to 1e6 seconds")
        if per_connection < 0:
            raise ValueError(f"per_connection: {per_connection} is negative")
        if not requests and not seconds:
            raise ValueError("requests, seconds: one of them has to end the run")
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if 0 <= most <= connections:
            raise ValueError(f"connections: this process may open {most} files (ulimit -n)")
        if fresh and per_connection > 1:
            raise ValueError("per_connection: a fresh connection carries one request")
        memset(&self.plan, 0, sizeof(Run))
        self._resolve(address)
        self._request = request
        self.plan.request = self._request
        self.plan.request_size = len(request)
        self.plan.head_only = request.startswith(b"HEAD ")
        self.plan.connections = connections
        self.plan.fresh = fresh
        self.plan.timeout = <int64_t>(timeout * 1e9)
        self.plan.per_connection = per_connection
        self.plan.total = requests or <uint64_t>1 << 62
        self.plan.duration = <int64_t>(seconds * 1e9) if seconds else INT64_MAX
        if rate:
            self.plan.interval = 1e9 / rate
            if seconds:
                scheduled = max(1, math.floor(seconds * rate))
                self.plan.total = min(requests or scheduled, scheduled)
            if self.plan.total / rate > 1e6:
                raise ValueError(f"requests: {requests} take more than 1e6 seconds at this rate")

    cdef _resolve(self, address):
        """Fill in the addresses to try, in the resolver's order."""
        cdef dial_address *to
        if isinstance(address, str):
            path = os.fsencode(address)
            if not dial_unix(&self.plan.addresses[0], path, len(path)):
                raise ValueError(f"address: {address!r} is empty or too long for a socket's path")
            self.plan.address_count = 1
            return
        try:
            host, port = address
            port = int(port)
        except (TypeError, ValueError):
            raise ValueError(f"address: {address!r} is neither a path nor (host, port)") from None
        if not 1 <= port <= 65535:
            raise ValueError(f"address: {port} is no port")
        for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            if self.plan.address_count < MAX_ADDRESSES:
                to = &self.plan.addresses[self.plan.address_count]
                where = found[4]
                name = where[0].partition("%")[0].encode()
                if dial_inet(to, found[0], name, port, where[3] if len(where) > 3 else 0):
                    self.plan.address_count += 1
        if not self.plan.address_count:
            raise ValueError(f"address: {host!r} has no address that can be used")

    def run(self):
        """Run, without the GIL, and return the :class:`Result`.

        KeyboardInterrupt, or any exception of a signal handler, ends the run. ``result`` then has
        what was measured until there, without the requests in flight. RuntimeError if this Load is
        already running.
        """
        if self._running:
            raise RuntimeError("this Load is running")
        self._running = True
        self._stopping = False
        cdef Run run = self.plan
        cdef Histogram service = Histogram(), response = Histogram(), late = Histogram()
        cdef bint ended = False
        cdef long slack = wl_slack()
        run.service = &service.buckets
        run.response = &response.buckets
        run.late = &late.buckets
        try:
            if not run_open(&run):
                raise MemoryError
            wl_set_slack(1)
            while not ended and not self._stopping:
                with nogil:
                    ended = run_on(&run)
                PyErr_CheckSignals()
        finally:
            wl_set_slack(slack)
            run_close(&run)
            self._running = False
            if not open_loop(&run):
                response = service.copy()
            self.result = found_in(&run, service, response, late)
        return self.result

    def stop(self):
        """End the current run, from another thread, within 0.3 s. It ends as if by a signal."""
        self._stopping = True


cdef found_in(const Run *run, Histogram service, Histogram response, Histogram late):
    """The Result of a run."""
    cdef int i
    statuses = {status: run.statuses[status] for status in range(1000) if run.statuses[status]}
    failures = {}
    for i in range(<int>REASONS):
        if run.reasons[i]:
            failures[NAMES[i]] = run.reasons[i]
    for i in range(MAX_ERRORS):
        if run.errors[i]:
            failures[os.strerror(i) if i else "unknown error"] = run.errors[i]
    for status, times in statuses.items():
        if not 200 <= status < 300:
            failures[f"status {status}"] = times
    return Result(
        run.sent,
        run.answered,
        failures,
        statuses,
        max(run.last - run.start, 0) / 1e9 if run.start else 0.0,
        run.received,
        service,
        response,
        late,
    )
