"""``GET /metrics``. On the I/O thread, under the hub's lock.

What is in the hub is read under the lock. Then the text is written without the lock: the kernel
takes a while to list the process's descriptors.
"""

from libc.stdlib cimport free, malloc

from workerserver.http._protocol cimport WS_KEY, WS_PROVEN, proof_hash
from workerserver.process.clock cimport monotonic
from workerserver.process._pulse cimport (
    WS_OPENMETRICS_TYPE, WS_TEXT_TYPE, Readings, metrics_body, metrics_capacity,
)


cdef void _await_metrics(Connection *connection, bint openmetrics) noexcept nogil:
    move(connection, connection.stage, STAGE_ANSWERING)
    connection.deadline = 0.0
    connection.format = openmetrics
    connection.dump_next = connection.hub.scrapes
    connection.hub.scrapes = connection


cdef void answer_scrapes(Hub *hub) noexcept nogil:
    """Answer every connection in ``hub.scrapes``. Those that ask again wait for the next call:
    others come first."""
    cdef Connection *connection
    cdef ws_meter *meter
    cdef Readings readings
    cdef char *body
    cdef const char *content_type
    cdef size_t capacity
    cdef Py_ssize_t size = -1
    cdef unsigned char hashed[WS_KEY]
    cdef bint proven
    hub.scraping = hub.scrapes
    hub.scrapes = NULL
    while hub.scraping != NULL:
        connection = hub.scraping
        meter = connection.listener.meter  # lives as long as the connection
        proven = connection.session.verdict == WS_PROVEN
        read_hub(hub, connection.listener, &readings)
        hub_unlock(hub)
        capacity = metrics_capacity(meter)
        body = <char *>malloc(capacity)
        if body != NULL:
            size = metrics_body(body, capacity, meter, &readings, connection.format)
            if proven and size >= 0:
                proof_hash(body, <size_t>size, hashed)  # not under the lock: it may be long
        hub_lock(hub)
        hub.now = monotonic()
        hub.scraping = connection.dump_next
        connection.dump_next = NULL
        if hub_gone(hub):
            free(body)
            continue
        if body == NULL or size < 0:
            send_reply(
                connection, connection.route, 503, b"text/plain", 10, NULL, 0,
                b"no memory for the metrics", 25, connection.keep_alive, NULL,
            )
        else:
            content_type = WS_OPENMETRICS_TYPE if connection.format else WS_TEXT_TYPE
            send_reply(
                connection, connection.route, 200, content_type, strlen(content_type), NULL, 0,
                body, <size_t>size, connection.keep_alive, hashed if proven else NULL,
            )
        free(body)
        ask_turn(hub)  # the loop publishes what only Python knows, for the next scrape
        _answered(connection)
        give_way(hub)
