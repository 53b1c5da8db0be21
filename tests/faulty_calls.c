/* A process that dies, stops or finds the disk full at the n-th system call that changes a folder.
 *
 * Preloaded (LD_PRELOAD) in front of the C library, it counts the calls that make, fill, rename or remove anything
 * below the folder of `arm_faults`. At the n-th of them the process is killed before the call, or stopped, or from
 * there on nothing more finds room. A full disk first takes half of a write, as real ones do, and then none; it lets
 * files be renamed and removed. Calls that only read are passed on uncounted: a process that is killed before
 * them leaves what one leaves that is killed before the next change. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum fault { NONE, KILLED, FULL, STOPPED };

static char folder[PATH_MAX];  /* absolute, without links; "" while nothing is counted */
static long seen, fault_at;
static enum fault fault;

void arm_faults(const char *path, long at, int kind) {
    seen = 0;
    fault_at = at;
    fault = kind;
    snprintf(folder, sizeof folder, "%s", path);
}

long calls_seen(void) { return seen; }

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return length && !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int open_file_is_below(int file) {
    char link[64], path[PATH_MAX];
    if (!*folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path);
}

static int path_is_below(int at, const char *path) {
    char where[PATH_MAX];
    if (!*folder || !path) return 0;
    if (*path == '/') return is_below(path);
    if (at != AT_FDCWD) return open_file_is_below(at);
    return getcwd(where, sizeof where) && is_below(where);
}

/* Count a call; 1: this is the n-th one or a later one, and the disk is full. */
static int count(int counts) {
    if (!counts) return 0;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (number == fault_at && fault == KILLED) kill(getpid(), SIGKILL);
    if (number == fault_at && fault == STOPPED) kill(getpid(), SIGSTOP);
    return fault == FULL && number >= fault_at;
}

static int no_room(void) {
    errno = ENOSPC;
    return -1;
}

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)
#define CHANGES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)

static int needs_room(int at, const char *path, int flags) {
    return (flags & O_CREAT) && faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW) != 0;
}

#define OPEN(name)                                                                              \
    int name(const char *path, int flags, ...) {                                                \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                                           \
        int full = count((flags & CHANGES) && path_is_below(AT_FDCWD, path));                   \
        return full && needs_room(AT_FDCWD, path, flags) ? no_room() : REAL(name, path, flags, mode); \
    }
#define OPENAT(name)                                                                            \
    int name(int at, const char *path, int flags, ...) {                                        \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        mode_t mode = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                                           \
        int full = count((flags & CHANGES) && path_is_below(at, path));                         \
        return full && needs_room(at, path, flags) ? no_room() : REAL(name, at, path, flags, mode); \
    }
#define FOPEN(name)                                                                             \
    FILE *name(const char *path, const char *mode) {                                            \
        int full = count(strpbrk(mode, "wa+") && path_is_below(AT_FDCWD, path));                \
        if (full && *mode != 'r' && needs_room(AT_FDCWD, path, O_CREAT)) return no_room(), NULL; \
        return REAL(name, path, mode);                                                          \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* How much of a write a full disk takes: half of it at the n-th call, if that is something, and nothing later. */
static size_t taken(size_t size) { return __atomic_load_n(&seen, __ATOMIC_SEQ_CST) == fault_at ? size / 2 : 0; }

#define WRITE(name, REST, ...)                                                                  \
    ssize_t name(int file, const void *bytes, size_t size REST) {                               \
        if (count(open_file_is_below(file)) && size) {                                          \
            size = taken(size);                                                                 \
            if (!size) return no_room();                                                        \
        }                                                                                       \
        return REAL(name, file, bytes, size __VA_ARGS__);                                       \
    }
#define COMMA ,
WRITE(write, )
WRITE(pwrite, COMMA off_t place, , place)
WRITE(pwrite64, COMMA off64_t place, , place)

ssize_t writev(int file, const struct iovec *parts, int number) {
    return count(open_file_is_below(file)) ? no_room() : REAL(writev, file, parts, number);
}

#define FALLOCATE(name, ...)                                                                    \
    if (count(open_file_is_below(file))) return errno = ENOSPC, ENOSPC_AS;                      \
    return REAL(name, __VA_ARGS__);
#define ENOSPC_AS -1
int fallocate(int file, int mode, off_t from, off_t size) { FALLOCATE(fallocate, file, mode, from, size) }
int fallocate64(int file, int mode, off64_t from, off64_t size) { FALLOCATE(fallocate64, file, mode, from, size) }
#undef ENOSPC_AS
#define ENOSPC_AS ENOSPC /* these give the error itself */
int posix_fallocate(int file, off_t from, off_t size) { FALLOCATE(posix_fallocate, file, from, size) }
int posix_fallocate64(int file, off64_t from, off64_t size) { FALLOCATE(posix_fallocate64, file, from, size) }

int mkdir(const char *path, mode_t mode) {
    return count(path_is_below(AT_FDCWD, path)) && needs_room(AT_FDCWD, path, O_CREAT) ? no_room()
                                                                                       : REAL(mkdir, path, mode);
}
int mkdirat(int at, const char *path, mode_t mode) {
    return count(path_is_below(at, path)) && needs_room(at, path, O_CREAT) ? no_room() : REAL(mkdirat, at, path, mode);
}
int link(const char *from, const char *to) {
    return count(path_is_below(AT_FDCWD, to)) ? no_room() : REAL(link, from, to);
}
int symlink(const char *from, const char *to) {
    return count(path_is_below(AT_FDCWD, to)) ? no_room() : REAL(symlink, from, to);
}
ssize_t sendfile(int to, int from, off_t *place, size_t size) {
    return count(open_file_is_below(to)) ? no_room() : REAL(sendfile, to, from, place, size);
}
ssize_t sendfile64(int to, int from, off64_t *place, size_t size) {
    return count(open_file_is_below(to)) ? no_room() : REAL(sendfile64, to, from, place, size);
}
ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    return count(open_file_is_below(to)) ? no_room() : REAL(copy_file_range, from, a, to, b, size, flags);
}

/* What needs no room. */
#define PASSED(type, name, BELOW, PARAMETERS, ...)                                              \
    type name PARAMETERS {                                                                      \
        count(BELOW);                                                                           \
        return REAL(name, __VA_ARGS__);                                                         \
    }
PASSED(int, ftruncate, open_file_is_below(file), (int file, off_t size), file, size)
PASSED(int, ftruncate64, open_file_is_below(file), (int file, off64_t size), file, size)
PASSED(int, fsync, open_file_is_below(file), (int file), file)
PASSED(int, rename, path_is_below(AT_FDCWD, to), (const char *from, const char *to), from, to)
PASSED(int, renameat, path_is_below(b, to), (int a, const char *from, int b, const char *to), a, from, b, to)
PASSED(int, unlink, path_is_below(AT_FDCWD, path), (const char *path), path)
PASSED(int, unlinkat, path_is_below(at, path), (int at, const char *path, int flags), at, path, flags)
PASSED(int, rmdir, path_is_below(AT_FDCWD, path), (const char *path), path)
