"""What ``/metrics`` shows and only Python can know: who the process is, its process groups, and at
a collector what the watchdogs of its host have reported."""

from libc.string cimport memcpy

from workerserver.process.clock cimport monotonic_ns

cdef extern from *:
    """
    /* What Python publishes. Text n lies in slot n % 4: it stays whole while the next three are
     * written, and no reader takes so long. One writer at a time: the thread that holds the GIL. */
    enum { WS_BOARDS = 4, WS_INFO_BYTES = 2048, WS_GROUPS = 64, WS_GROUP_BYTES = 96,
           WS_WATCHDOGS = 8 };
    typedef struct {
        int64_t size;
        int64_t status;
        int64_t stalls;
        int64_t gone;
        int64_t looked; /* ns of the monotonic clock */
        char labels[WS_GROUP_BYTES];
    } ws_watchdog;
    typedef struct {
        int64_t size;
        int64_t issued;
        int64_t retired;
        char labels[WS_GROUP_BYTES];
    } ws_group;
    typedef struct {
        int64_t info_size;
        int64_t groups_at; /* ns; 0: nothing was published */
        int64_t group_count;
        char info[WS_INFO_BYTES];
        ws_group groups[WS_GROUPS];
        int64_t watchdog_count;
        ws_watchdog watchdogs[WS_WATCHDOGS];
    } ws_board;
    static struct {
        int64_t count;
        ws_board slots[WS_BOARDS];
    } ws_boards;

    static inline ws_board *ws_board_next(void)
    {
        int64_t count = __atomic_load_n(&ws_boards.count, __ATOMIC_RELAXED);
        ws_board *fresh = &ws_boards.slots[(count + 1) % WS_BOARDS];
        memcpy(fresh, &ws_boards.slots[count % WS_BOARDS], sizeof *fresh);
        return fresh;
    }

    static inline void ws_board_turn(void)
    {
        __atomic_store_n(&ws_boards.count,
                         __atomic_load_n(&ws_boards.count, __ATOMIC_RELAXED) + 1,
                         __ATOMIC_RELEASE);
    }

    static void ws_board_read(ws_board *out)
    {
        int tries = 100;
        for (;;) {
            int64_t count = __atomic_load_n(&ws_boards.count, __ATOMIC_ACQUIRE);
            memcpy(out, &ws_boards.slots[count % WS_BOARDS], sizeof *out);
            if (__atomic_load_n(&ws_boards.count, __ATOMIC_ACQUIRE) < count + WS_BOARDS - 1)
                return;
            if (--tries == 0) {
                memset(out, 0, sizeof *out);
                return;
            }
        }
    }
    """
    enum:
        WS_INFO_BYTES
        WS_GROUPS
        WS_GROUP_BYTES
        WS_WATCHDOGS
    ctypedef struct ws_watchdog:
        int64_t size
        int64_t status
        int64_t stalls
        int64_t gone
        int64_t looked
        char *labels
    ctypedef struct ws_group:
        int64_t size
        int64_t issued
        int64_t retired
        char *labels
    ctypedef struct ws_board:
        int64_t info_size
        int64_t groups_at
        int64_t group_count
        char *info
        ws_group *groups
        int64_t watchdog_count
        ws_watchdog *watchdogs
    ws_board *ws_board_next() noexcept nogil
    void ws_board_turn() noexcept nogil
    void ws_board_read(ws_board *out) noexcept nogil


def set_info(bytes labels not None):
    """Who the process is, as the labels of ``workerserver_info``. ValueError above 2,048 bytes."""
    cdef ws_board *board
    if len(labels) > WS_INFO_BYTES:
        raise ValueError(f"labels of {len(labels)} bytes")
    board = ws_board_next()
    memcpy(board.info, <const char *>labels, len(labels))
    board.info_size = len(labels)
    ws_board_turn()


def set_groups(groups):
    """torch's process groups: pairs of labels (at most 96 bytes) and of the numbers of operations
    that were issued and that have ended. The first 64 are shown."""
    cdef ws_board *board
    cdef ws_group *group
    groups = [(bytes(labels), int(issued), int(retired)) for labels, issued, retired in groups]
    board = ws_board_next()
    board.group_count = 0
    for labels, issued, retired in groups[:WS_GROUPS]:
        if len(labels) > WS_GROUP_BYTES:
            continue
        group = &board.groups[board.group_count]
        group.size = len(labels)
        group.issued = issued
        group.retired = retired
        memcpy(group.labels, <const char *>labels, len(labels))
        board.group_count += 1
    board.groups_at = monotonic_ns()
    ws_board_turn()


def set_watchdogs(watchdogs):
    """What watchdogs tell, each a tuple: labels (at most 96 bytes), the status of the open
    incident's verdict (0: no incident is open), how many stalls and how many ends of ranks were
    reported, and when the watchdog last looked, in seconds of the monotonic clock. The first 8 are
    shown."""
    cdef ws_board *board
    cdef ws_watchdog *fresh
    told = [
        (bytes(labels), int(status), int(stalls), int(gone), int(looked * 1e9))
        for labels, status, stalls, gone, looked in watchdogs
    ]
    board = ws_board_next()
    board.watchdog_count = 0
    for labels, status, stalls, gone, looked in told[:WS_WATCHDOGS]:
        if len(labels) > WS_GROUP_BYTES:
            continue
        fresh = &board.watchdogs[board.watchdog_count]
        fresh.size = len(labels)
        fresh.status = status
        fresh.stalls = stalls
        fresh.gone = gone
        fresh.looked = looked
        memcpy(fresh.labels, <const char *>labels, len(labels))
        board.watchdog_count += 1
    ws_board_turn()


cdef void forget_published() noexcept:
    """In a forked child, which is another process."""
    cdef ws_board *board = ws_board_next()
    board.info_size = board.groups_at = board.group_count = board.watchdog_count = 0
    ws_board_turn()
    ws_set(&ws_process_started, 0)
