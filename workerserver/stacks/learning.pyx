"""What waits are read with, as Python functions for known.py and proof.py. All with the GIL."""

from cpython.unicode cimport PyUnicode_AsUTF8
from libc.stdint cimport uintptr_t
from workerserver.stacks.snapshot cimport (
    WS_WAIT_BARRIER, WS_WAIT_CONDITION, WS_WAIT_EVENT, WS_WAIT_FUTURE, WS_WAIT_IMPORT_LOCK,
    WS_WAIT_LOCK, WS_WAIT_NONE, WS_WAIT_OPERATION, WS_WAIT_PROCESS, WS_WAIT_QUEUE,
    WS_WAIT_RENDEZVOUS, WS_WAIT_SEMAPHORE, WS_WAIT_STORE, WS_WAIT_THREAD,
)

# What a known function waits for. "pass": it only calls other known functions.
cdef dict WAITS = {
    "pass": WS_WAIT_NONE, "lock": WS_WAIT_LOCK, "condition": WS_WAIT_CONDITION,
    "event": WS_WAIT_EVENT, "semaphore": WS_WAIT_SEMAPHORE, "barrier": WS_WAIT_BARRIER,
    "thread": WS_WAIT_THREAD, "process": WS_WAIT_PROCESS, "queue": WS_WAIT_QUEUE,
    "future": WS_WAIT_FUTURE, "import_lock": WS_WAIT_IMPORT_LOCK, "store": WS_WAIT_STORE,
    "operation": WS_WAIT_OPERATION, "rendezvous": WS_WAIT_RENDEZVOUS,
}
# In the order of WS_ROLE_*.
ROLES = ("self", "peer", "group_peer", "group", "tag", "key", "other_key")

cdef list _kept = []  # strings whose text the table points at


def learn_function(code, str kind, str op, str attribute, dict places):
    """Add a function to the table, for ever. *op* and *attribute* may be None.

    *places* maps a role to the place of a local variable. Returns False if the function is known,
    or if the table is full.
    """
    cdef int by_role[7]
    cdef const char *text = NULL
    cdef PyObject *key = NULL
    for i, role in enumerate(ROLES):
        by_role[i] = places.get(role, -1)
    if op is not None:
        _kept.append(op)
        text = PyUnicode_AsUTF8(op)
    if attribute is not None:
        attribute = sys.intern(attribute)
        key = <PyObject *>attribute
    return ws_learn_function(<PyObject *>code, WAITS[kind], text, key, by_role)


def learn_groups(dict names, dict ranks, dict words, world):
    """The dicts of names and of members by process group, one of descriptions by the very names
    in *names*, and the object that has the default group."""
    ws_learn_groups(<PyObject *>names, <PyObject *>ranks, <PyObject *>words, <PyObject *>world)


def learn_locks(lock, rlock, condition, size_t lock_locked, size_t rlock_owner):
    """Types, and where a lock keeps its state and an RLock its owner; 0: not known."""
    ws_learn_locks(
        <PyObject *>lock, <PyObject *>rlock, <PyObject *>condition, lock_locked, rlock_owner
    )


def learn_instructions(int before_with, int with_except_start, int load_special):
    """Numbers of instructions; 0 where this CPython has none of that name."""
    if not ws_learn_keys():
        raise MemoryError
    ws_learn_instructions(before_with, with_except_start, load_special)


def learn_proven(bint locals, bint withs):
    """Which facts may be read from now on."""
    ws_learn_proven(locals, withs)


def memory_of(o):
    """The bytes of an object that has no variable part, as they are now."""
    return (<const char *><PyObject *>o)[:type(o).__basicsize__]


def probe_withs():
    """``(managers, entering)`` as the reader finds them for the calling function: addresses of the
    managers of its with blocks, innermost first; the manager in whose ``__enter__`` it is, or 0."""
    cdef uintptr_t managers[32]
    cdef uintptr_t entering = 0
    cdef size_t i, count = ws_probe_withs(managers, 32, &entering)
    return [managers[i] for i in range(count)], entering


def probe_locals(int count):
    """Addresses of the first *count* locals of the calling function, as the reader finds them."""
    return [ws_probe_local(i) for i in range(count)]


def probe_value(uintptr_t address):
    """An int or a short ASCII str, as the reader finds it; None: neither."""
    cdef long long number
    cdef char text[64]
    if ws_probe_int(address, &number):
        return number
    if ws_probe_text(address, text, sizeof(text)):
        return text.decode("ascii", "replace")
    return None


def probe_lock(uintptr_t address):
    """The address of the lock that an object stands for; 0: none."""
    return ws_probe_lock(address)


def probe_attribute(uintptr_t address, str name):
    """The address of an instance's attribute; 0: none."""
    return ws_probe_attribute(address, <PyObject *>name)


@cython.final
cdef class Gate:
    """A context manager of C, whose ``__enter__`` looks at the function that enters it."""

    cdef readonly object found

    def __enter__(self):
        self.found = probe_withs()
        return self

    def __exit__(self, *error):
        return False
