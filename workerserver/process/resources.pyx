"""What the process takes of its machine: memory, descriptors, and since when it runs."""

from posix.resource cimport RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, rlimit

cdef extern from *:
    """
    #include <dirent.h>
    #include <sys/resource.h>

    typedef struct {
        int64_t resident, address_space, open, most; /* -1: the kernel doesn't tell */
        int64_t started;                             /* ns since the epoch; -1 */
    } ws_process;

    static int64_t ws_process_started; /* 0: not looked up yet */

    static int64_t ws_when_started(void)
    {
    #if defined(CLOCK_BOOTTIME)
        char text[1024];
        ws_read_proc("/proc/self/stat", text, sizeof text);
        const char *at = strrchr(text, ')'); /* the name may hold anything */
        for (int field = 2; at != NULL && field < 22; field++)
            at = strchr(at + 1, ' ');
        long ticks = sysconf(_SC_CLK_TCK);
        if (at == NULL || ticks <= 0)
            return -1;
        int64_t after_boot = (int64_t)(strtod(at, NULL) * (1e9 / (double)ticks));
        return ws_clock_ns(CLOCK_REALTIME) - ws_clock_ns(CLOCK_BOOTTIME) + after_boot;
    #else
        return -1;
    #endif
    }

    static void ws_process_read(ws_process *out)
    {
        struct rlimit limit;
        ws_memory(&out->resident, &out->address_space);
        out->open = out->most = -1;
        DIR *folder = opendir("/proc/self/fd");
        if (folder != NULL) {
            out->open = -3; /* ".", ".." and the folder's own descriptor */
            while (readdir(folder) != NULL)
                out->open++;
            closedir(folder);
        }
        if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
            out->most = (int64_t)limit.rlim_cur;
        if (ws_get(&ws_process_started) == 0)
            ws_set(&ws_process_started, ws_when_started());
        out->started = ws_get(&ws_process_started);
    }

    /* The lowest number that no descriptor of the process has; -1 if there is none. */
    static int64_t ws_lowest_free(void)
    {
        int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (fd >= 0)
            close(fd);
        return fd;
    }
    """
    ctypedef struct ws_process:
        int64_t resident
        int64_t address_space
        int64_t open
        int64_t most
        int64_t started
    int64_t ws_process_started
    void ws_process_read(ws_process *out) noexcept nogil
    int64_t ws_lowest_free() noexcept nogil


cdef enum:
    SPARED = 64  # descriptors that are left to training at least


cdef long descriptor_line() noexcept nogil:
    cdef rlimit limit
    if getrlimit(RLIMIT_NOFILE, &limit) != 0 or limit.rlim_cur == RLIM_INFINITY:
        return 0x7fffffff
    return <long>limit.rlim_cur - max(<long>SPARED, <long>limit.rlim_cur // 4)
