"""What the I/O thread uses of the rules: plain C data and functions that need no GIL."""

from libc.stdint cimport uint32_t

from workerserver.http._protocol cimport WS_TOKENS, ws_session


cdef enum QueryRule:
    QUERY_ANY  # parameters are ignored
    QUERY_NONE
    QUERY_HEALTHZ  # nothing, or max_step_age=SECONDS
    QUERY_DUMP  # nothing, or format=, mode= and native=, in any order
    QUERY_OPAQUE  # somebody else's: passed on as it is


cdef enum DumpFormat:
    DUMP_TEXT
    DUMP_JSON
    DUMP_DIGEST
    DUMP_NATIVE_TEXT
    DUMP_NATIVE_JSON


cdef enum DumpMode:
    DUMP_AUTO
    DUMP_GIL
    DUMP_NOGIL


cdef struct Parameters:
    bint permitted  # every rule passes
    double max_step_age  # seconds; negative: not given
    DumpFormat format
    DumpMode mode


cdef struct Text:
    const char* data  # not NUL-terminated
    int length


cdef struct Route:
    Text path
    Method method
    QueryRule rule
    int action  # the owner's own number


cdef enum RuleKind:
    RULE_WEB_PAGE  # kept by recognise() itself
    RULE_HOST
    RULE_TOKEN
    RULE_PEER  # of connections; passes every request


cdef enum Judgement:
    JUDGED_PASSED  # the rule's check() is sure to pass
    JUDGED_REFUSED  # ... is sure to refuse
    JUDGED_OPEN  # nobody knows without asking check()


cdef struct Rule:  # an access.NativeForm
    RuleKind kind
    const Text* names  # RULE_HOST: lower case; one that begins with "." ends further names
    int name_count
    Text tokens[WS_TOKENS]  # RULE_TOKEN; those of no length are none
    const unsigned char *keys[WS_TOKENS]  # ... of WS_KEY bytes, for proofs; NULL: there is none
    uint32_t uid  # RULE_PEER
    bint refuses  # there is an answer for a request that the rule refuses: ...
    Route refusal  # ... this route; only its action counts


cdef struct TableData:
    # Who may ask, and for what. Never changes; lives as long as its Table.
    const Route* routes
    int route_count
    const Rule* rules
    int rule_count
    int max_head
    int max_fields
    int max_parameters


# Whether each rule about connections admits the process at the other end of *fd*.
cdef bint admitted(const TableData* table, int fd) noexcept nogil

# What the rules say, all of them in order; *refusing* is then the rule that refuses, else NULL.
# JUDGED_OPEN also where the server's limits don't hold: the parser says so. *session* is the
# connection's, and keeps what the request proves; NULL leaves proofs open.
cdef Judgement permitted(
    const TableData* table, const char* data, const Recognised* request, ws_session* session,
    const Rule** refusing,
) noexcept nogil

# What is asked for, whoever asks: the route, with *parameters* filled, or NULL.
cdef const Route* find(
    const TableData* table, const char* data, const Recognised* request, Parameters* parameters
) noexcept nogil

# The route by which a request is answered: that of a rule's refusal, or what is asked for if every
# rule passes. NULL: forward. Requests are answered by nothing but this. *refusing* as above.
cdef const Route* judge(
    const TableData* table, const char* data, const Recognised* request, ws_session* session,
    Parameters* parameters, const Rule** refusing,
) noexcept nogil

# *c*, of a host name, in lower case; 0 for any other character.
cdef unsigned char name_byte(unsigned char c) noexcept nogil
