"""What other compiled modules see of the parser: calls without a detour through Python."""


cdef class QueryValidator:
    cdef readonly tuple names
    cdef readonly str request_name
    cdef readonly bint asks_nothing  # a request without parameters can't be wrong
    cdef dict _params  # str -> _Param
    cdef bint _extra
    cdef str _extra_name
    cdef frozenset _bound  # names that no parameter may give: self, the request's
    cdef str _unknown_text

    cpdef dict validate(self, query, form=*)


cdef class ParsedRequest:
    cdef readonly bytes method
    cdef readonly bytes target
    cdef readonly bytes path  # of the target, still encoded
    cdef readonly bytes query  # without the "?"
    cdef readonly bytes host  # the target's authority if it has one, else the Host field
    cdef readonly list headers  # of (lower-case name, value)
    cdef readonly bytes body
    cdef readonly str http_version  # "1.0" or "1.1"
    cdef readonly bint keep_alive
    cdef readonly bint cross_site  # carries Origin, or Sec-Fetch-Site: cross-site
    cdef readonly bytes authorization  # or None
    cdef public object session  # proof.Session of the connection, or None
    cdef readonly bint whole  # the body is there
    cdef bytes content_type  # or None

    cpdef tuple parameters(self)


cdef enum Phase:
    PHASE_LINE  # at a message boundary, or inside the request line
    PHASE_HEAD
    PHASE_LENGTH  # a body of _body_left bytes
    PHASE_CHUNKED
    PHASE_CLOSED  # the last request that this connection may carry is out


cdef enum ChunkPart:
    CHUNK_SIZE  # hexadecimal digits
    CHUNK_EXTENSION  # up to the line's end
    CHUNK_SIZE_END  # the line's end behind a size without an extension
    CHUNK_DATA  # with the CRLF after it
    CHUNK_LINES  # the last chunk, trailers, and what isn't a chunk: line by line


cdef class RequestParser:
    cdef Py_ssize_t _max_head
    cdef int _max_headers
    cdef Py_ssize_t _max_body
    cdef Py_ssize_t _max_chunks
    cdef object _judge  # callable with a ParsedRequest, or None
    cdef public object session  # what each request gets as its session
    cdef object _http  # httptools.HttpRequestParser
    cdef object _buffer  # bytes or bytearray
    cdef Py_ssize_t _start
    cdef Py_ssize_t _scan  # no end of the head lies before this offset
    cdef Py_ssize_t _skipped  # bytes of empty lines before the request line
    cdef Phase _phase
    cdef object _error  # ProtocolError | None
    cdef bytes _memo  # the last request's bytes, if they came alone and had no body; else None
    cdef ParsedRequest _memo_request
    # --- the message being read
    cdef ParsedRequest _request
    cdef list _headers
    cdef object _body  # bytes | bytearray | None
    cdef Py_ssize_t _body_size
    cdef Py_ssize_t _body_left
    cdef Py_ssize_t _framing  # bytes consumed in PHASE_CHUNKED
    cdef ChunkPart _chunk_part
    cdef Py_ssize_t _chunk_left  # CHUNK_SIZE: as far as read; CHUNK_DATA: bytes still to come
    cdef Py_ssize_t _chunk_count
    cdef Py_ssize_t _chunk_digits  # CHUNK_SIZE: as far as read
    cdef Py_ssize_t _announced  # bytes of body in the chunks so far
    cdef Py_ssize_t _extensions  # bytes of chunk extensions so far
    cdef bytes _coding  # a Transfer-Encoding other than chunked, or None
    cdef Py_ssize_t _trailer_line  # bytes of the current line behind the last chunk
    cdef int _header_count
    cdef int _hosts
    cdef bint _chunked
    cdef bint _closes  # HTTP/1.0 with Connection: close
    cdef bint _expects
    cdef bint _complete  # httptools saw the end of the message
    cdef bint _upgrade
    cdef bint _alone  # the head came in one piece with nothing around it

    cdef inline bint reading_body(self) noexcept:
        return self._phase == PHASE_LENGTH or self._phase == PHASE_CHUNKED

    cdef inline bint between_messages(self) noexcept:
        return self._phase == PHASE_LINE and self._start >= len(self._buffer)

    cpdef bint take_continue(self)
    cpdef receive_data(self, bytes data)
    cpdef ParsedRequest next_request(self)
    cdef int _reset_message(self) except -1
    cdef const unsigned char* _bytes(self, Py_ssize_t* size) except NULL
    cdef bint _read_line(self) except -1
    cdef int _judge_line(self, const unsigned char* data, Py_ssize_t i, Py_ssize_t end) except -1
    cdef int _split_target(self, ParsedRequest request, bytes target) except -1
    cdef bint _read_head(self) except -1
    cdef int _check_head(self) except -1
    cdef bint _read_length(self) except -1
    cdef bint _read_chunked(self) except -1
    cdef Py_ssize_t _chunked_end(self) noexcept
    cdef int _feed(self, data) except -1
    cdef int _on_host(self, bytes value) except -1
    cdef int _refuse(self, error) except -1
