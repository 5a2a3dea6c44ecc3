"""Whether this process may start more threads."""

from libc.stdlib cimport free, realloc


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_attr_t:
        pass
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_mutexattr_t:
        pass
    int pthread_create(
        pthread_t* thread, const pthread_attr_t* attributes,
        void* (*start)(void*) noexcept nogil, void* argument
    )
    int pthread_join(pthread_t thread, void** value)
    int pthread_mutex_init(pthread_mutex_t* mutex, const pthread_mutexattr_t* attributes)
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)


cdef void* _wait_turn(void* gate) noexcept nogil:
    pthread_mutex_lock(<pthread_mutex_t*>gate)
    pthread_mutex_unlock(<pthread_mutex_t*>gate)
    return NULL


cdef size_t _start_threads(pthread_t* threads, size_t count) noexcept nogil:
    """Start up to *count* threads that live at the same time, and end them. Returns how many did
    start."""
    cdef pthread_mutex_t gate
    cdef size_t started = 0, at
    if pthread_mutex_init(&gate, NULL) != 0:
        return 0
    pthread_mutex_lock(&gate)
    while started < count:
        if pthread_create(&threads[started], NULL, _wait_turn, &gate) != 0:
            break
        started += 1
    pthread_mutex_unlock(&gate)
    for at in range(started):
        pthread_join(threads[at], NULL)
    pthread_mutex_destroy(&gate)
    return started


def threads_can_start(Py_ssize_t count):
    """Whether *count* more threads can start in this process now. Starts them, and ends them.

    The user, the container and the address space each have a limit, and none of the limits can be
    read reliably. Releases the GIL.
    """
    cdef pthread_t* threads
    cdef size_t wanted, started
    if count < 0 or count > 65536:
        return False
    wanted = <size_t>count
    threads = <pthread_t*>realloc(NULL, (wanted + 1) * sizeof(pthread_t))
    if threads == NULL:
        return False
    with nogil:
        started = _start_threads(threads, wanted)
    free(threads)
    return started == wanted
