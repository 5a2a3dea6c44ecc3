"""Faces of the engine: a request to torch's own server, and what tests and a look by hand need."""

from libc.stdint cimport uint64_t
from libc.string cimport memset
from posix.time cimport nanosleep, timespec

from workerserver.native._engine cimport (
    RELAY_DONE, RELAY_FAILED, RELAY_MORE, VERDICT_RECOGNISED, Recognised, Recognition, Relay,
    Verdict, recognise, relay_close, relay_init, relay_listens, relay_needs_gil, relay_open,
    relay_read,
)
from workerserver.native.system cimport POLLIN, poll, pollfd
from workerserver.process.clock cimport monotonic

import os
from typing import NamedTuple


# --- recognition


def verdicts(bytes data not None):
    """The verdict on each beginning of *data*, the empty one first, as if it came byte by byte.

    One letter each: ``i``ncomplete, ``r``ecognised, ``f``orward. Ends behind the first request.
    """
    cdef Recognition state
    cdef Recognised request
    cdef Verdict verdict
    cdef const char* raw = data
    cdef Py_ssize_t size
    cdef list seen = []
    memset(&state, 0, sizeof(state))
    for size in range(len(data) + 1):
        verdict = recognise(raw, size, &state, &request)
        seen.append("irf"[<int>verdict])
        if verdict == VERDICT_RECOGNISED:
            break
    return "".join(seen)


# --- the relay


class Fetched(NamedTuple):
    """A reply, and when it was asked for and complete (CLOCK_MONOTONIC, seconds)."""

    status: int
    content_type: bytes
    body: bytes
    started: float
    ended: float


class RelayError(OSError):
    """The relay failed; ``errno`` is 0 where the peer is at fault."""


cdef int _run(Relay* relay) noexcept nogil:
    """Read until the reply is complete or the deadline has passed."""
    cdef pollfd wanted
    cdef double left
    cdef int state = RELAY_MORE
    wanted.fd = relay.fd
    wanted.events = <short>POLLIN
    while state == RELAY_MORE:
        left = relay.deadline - monotonic()
        if left <= 0:
            relay.reason = b"the reply didn't come in time"
            relay.error = 0
            return RELAY_FAILED
        if poll(&wanted, 1, <int>(left * 1000) + 1) > 0:
            state = relay_read(relay)
    return state


def listens(int listener, uint64_t inode):
    """relay_listens, for tests."""
    return bool(relay_listens(listener, inode))


def needs_gil(bytes name, bytes query):
    """relay_needs_gil, for tests."""
    return bool(relay_needs_gil(name, <size_t>len(name), query, <size_t>len(query)))


def fetch(bytes path, bytes target, double timeout = 10.0, double delay = 0.0):
    """What the peer at *path* answers to ``POST`` *target*, as a Fetched; RelayError if it fails.

    The GIL is given up for all of it: *delay* seconds of sleep first, then connecting, sending and
    reading, *timeout* seconds at most. For tests and for a look by hand; blocks its thread.
    """
    cdef Relay relay
    cdef const char* where = path
    cdef const char* what = target
    cdef size_t size = <size_t>len(target)
    cdef double started = 0.0, ended = 0.0
    cdef timespec pause
    cdef int state
    if b"\0" in path:
        raise ValueError("a socket path can't hold a NUL byte")
    pause.tv_sec = <long>delay
    pause.tv_nsec = <long>((delay - <double><long>delay) * 1e9)
    relay_init(&relay)
    try:
        with nogil:
            nanosleep(&pause, NULL)
            started = monotonic()
            relay.deadline = started + timeout
            state = relay_open(&relay, where, what, size)
            if state == 0:
                state = _run(&relay)
            ended = monotonic()
        if state != RELAY_DONE:
            reason = relay.reason.decode()
            if relay.error:
                reason = f"{reason}: {os.strerror(relay.error)}"
            raise RelayError(relay.error, reason)
        return Fetched(
            relay.status,
            relay.data[relay.type_start:relay.type_start + relay.type_size],
            relay.data[relay.body_start:relay.body_start + relay.body_size],
            started,
            ended,
        )
    finally:
        relay_close(&relay)
