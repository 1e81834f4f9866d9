/* A disk that fails, for the tests: preloaded (LD_PRELOAD), it counts every write below a folder, and from the n-th on
 * has no space left, or kills the process in its middle. A write is a call that makes a name, puts bytes in a file,
 * flushes or renames it. The n-th call that puts bytes puts half of them, as a disk does whose last block is taken.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 0, FULL = 1, ONCE = 2, KILL = 3 };

static char folder[PATH_MAX];
static int mode, trace = -1;
static long chosen;
static long *count; /* shared with the parent process, which reads it when this one is dead */

static ssize_t (*real_write)(int, const void *, size_t);

__attribute__((constructor)) static void begin(void) {
    count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    real_write = dlsym(RTLD_NEXT, "write");
}

/* From now on: writes below `path` are counted; `at` is the first that fails (mode 1: and all after it), 2 alone, 3
 * killed. traced: a file descriptor for one line a write, or -1. */
void failing_disk_arm(const char *path, int how, long at, int traced) {
    strncpy(folder, path, sizeof folder - 1);
    mode = how, chosen = at, trace = traced;
    __atomic_store_n(count, 0, __ATOMIC_SEQ_CST);
}

long failing_disk_count(void) { return __atomic_load_n(count, __ATOMIC_SEQ_CST); }

static int below(const char *path) {
    size_t n = strlen(folder);
    return n && path && !strncmp(path, folder, n) && (path[n] == '\0' || path[n] == '/' || path[n] == '.');
}

/* Whether this write fails: 0 no, 1 yes, 2 it is the chosen one and may put half of its bytes first. */
static int fails(const char *what, const char *path) {
    if (!below(path)) return 0;
    long n = __atomic_add_fetch(count, 1, __ATOMIC_SEQ_CST);
    if (trace >= 0) {
        char line[PATH_MAX + 32];
        int length = snprintf(line, sizeof line, "%s %s\n", what, path + strlen(folder));
        if (real_write(trace, line, length) < 0) abort();
    }
    if (mode == COUNT || n < chosen) return 0;
    if (n == chosen) return 2;
    return mode == FULL;
}

static int fails_of(const char *what, int fd) {
    char link[64], path[PATH_MAX];
    if (!*folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = '\0';
    return fails(what, path);
}

static int refuse(void) {
    if (mode == KILL) kill(getpid(), SIGKILL);
    errno = ENOSPC;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *data, size_t size) {
    int failed = fails_of("write", fd);
    if (!failed) return real_write(fd, data, size);
    if (failed == 2 && size > 1) {
        ssize_t put = real_write(fd, data, size / 2);
        if (mode == FULL) return put;
    }
    return refuse();
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) {
    int failed = fails_of("write", fd);
    if (!failed) return REAL(pwrite)(fd, data, size, offset);
    if (failed == 2 && size > 1) {
        ssize_t put = REAL(pwrite)(fd, data, size / 2, offset);
        if (mode == FULL) return put;
    }
    return refuse();
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) { return pwrite(fd, data, size, offset); }

ssize_t writev(int fd, const struct iovec *parts, int n) {
    return fails_of("write", fd) ? refuse() : REAL(writev)(fd, parts, n);
}

size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    int failed = fails_of("write", fileno(file));
    if (!failed) return REAL(fwrite)(data, size, n, file);
    size_t put = failed == 2 ? REAL(fwrite)(data, size, n / 2, file) : 0;
    fflush(file);
    refuse();
    return put;
}

int fsync(int fd) { return fails_of("flush", fd) ? refuse() : REAL(fsync)(fd); }
int fdatasync(int fd) { return fails_of("flush", fd) ? refuse() : REAL(fdatasync)(fd); }
int ftruncate(int fd, off_t size) { return fails_of("size", fd) ? refuse() : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

static int makes(const char *path, int flags) {
    return (flags & O_CREAT) && access(path, F_OK) != 0 && fails("make", path);
}

#define OPEN(name)                                   \
    int name(const char *path, int flags, ...) {     \
        va_list rest;                                \
        va_start(rest, flags);                       \
        mode_t mask = va_arg(rest, mode_t);          \
        va_end(rest);                                \
        if (makes(path, flags)) return refuse();     \
        return REAL(name)(path, flags, mask);        \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                          \
    int name(int at, const char *path, int flags, ...) {      \
        va_list rest;                                         \
        va_start(rest, flags);                                \
        mode_t mask = va_arg(rest, mode_t);                   \
        va_end(rest);                                         \
        if (makes(path, flags)) return refuse();              \
        return REAL(name)(at, path, flags, mask);             \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                          \
    FILE *name(const char *path, const char *how) {                          \
        if (makes(path, *how == 'r' ? 0 : O_CREAT)) return refuse(), NULL;   \
        return REAL(name)(path, how);                                        \
    }
FOPEN(fopen)
FOPEN(fopen64)

int mkdir(const char *path, mode_t mask) {
    return access(path, F_OK) != 0 && fails("folder", path) ? refuse() : REAL(mkdir)(path, mask);
}

int rename(const char *from, const char *to) { return fails("rename", to) ? refuse() : REAL(rename)(from, to); }
