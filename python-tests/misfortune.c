/* Misfortunes that need no privilege: preloaded into a host, it makes chosen system calls fail.
 *
 * The folder named by MISFORTUNE says what goes wrong at the moment:
 *     dns     if it exists, no name is resolved; if it says "hang", no answer comes until it is gone
 *     clock   seconds by which the wall clock is wrong
 *     full    paths, one a line: whatever would take room at or below one fails with ENOSPC
 *     threads the name of a thread; it can start no other
 *     folders the number of the error with which folders are not synced
 *     kept    paths, one a line: no file at or below one can be removed
 *     behind  paths, one a line: nothing is written behind the first 4,096 bytes of such a file
 *     shut    paths, one a line: no such file is opened for reading alone (EMFILE)
 *     torn    paths, one a line: nothing is read of a file at or below one (EIO)
 *     slow    paths with a slash behind, one a line: each write to such a file takes 200 ms
 * CLOCK_MONOTONIC is left alone, as it is when somebody sets a clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__)) dlsym(RTLD_NEXT, name))

/* Reads a control file by system calls of its own: -1 if it is not there. */
static long control(const char *name, char *text, size_t size) {
    char path[PATH_MAX];
    const char *folder = getenv("MISFORTUNE");
    int saved = errno;
    long got = -1;
    if (folder && snprintf(path, sizeof path, "%s/%s", folder, name) < (int) sizeof path) {
        int fd = (int) syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            got = syscall(SYS_read, fd, text, size - 1);
            syscall(SYS_close, fd);
        }
    }
    if (got >= 0)
        text[got] = 0;
    errno = saved;
    return got;
}

static int is_listed(const char *name, const char *path, int error) {
    char list[8 * PATH_MAX], *rest = list, *line;
    if (!path || control(name, list, sizeof list) < 0)
        return 0;
    while ((line = strsep(&rest, "\n"))) {
        size_t len = strlen(line);
        if (len && !strncmp(path, line, len) && strchr("/-", path[len]) != NULL) {
            errno = error;
            return 1;
        }
    }
    return 0;
}

static int is_full(const char *path) {
    return is_listed("full", path, ENOSPC);
}

/* The path of a name in an open folder, as one of the lists may have it. */
static const char *at(int folder, const char *name, char path[2 * PATH_MAX]) {
    char link[64];
    int saved = errno;
    ssize_t len;
    if (folder == AT_FDCWD || !name || name[0] == '/')
        return name;
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    len = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (len < 0)
        return name;
    snprintf(path + len, PATH_MAX, "/%s", name);
    return path;
}

int unlink(const char *path) {
    return is_listed("kept", path, EACCES) ? -1 : REAL(int, "unlink", const char *)(path);
}

int unlinkat(int folder, const char *name, int flags) {
    char path[2 * PATH_MAX];
    if (is_listed("kept", at(folder, name, path), EACCES))
        return -1;
    return REAL(int, "unlinkat", int, const char *, int)(folder, name, flags);
}

int fsync(int fd) {
    struct stat found;
    char text[16];
    if (fstat(fd, &found) == 0 && S_ISDIR(found.st_mode) && control("folders", text, sizeof text) > 0) {
        errno = atoi(text);
        return -1;
    }
    return REAL(int, "fsync", int)(fd);
}

static int fd_is_full(int fd) {
    char link[64], path[PATH_MAX];
    ssize_t len;
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (len < 0 || path[0] != '/')
        return 0;
    path[len] = 0;
    return is_full(path);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    return fd_is_full(fd) ? -1 : REAL(ssize_t, "write", int, const void *, size_t)(fd, bytes, count);
}

static int is_behind(int fd, off64_t at) {
    char link[32], path[PATH_MAX];
    ssize_t len;
    if (at < 4096)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    if (len < 0)
        return 0;
    path[len] = 0;
    return is_listed("behind", path, EIO);
}

static void is_slow(int fd) {
    char link[32], path[PATH_MAX], text[2];
    ssize_t len;
    if (control("slow", text, sizeof text) < 0)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    if (len < 0)
        return;
    strcpy(path + len, "/");
    if (is_listed("slow", path, errno))
        usleep(200000);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    is_slow(fd);
    return fd_is_full(fd) || is_behind(fd, at) ? -1 : REAL(ssize_t, "pwrite", int, const void *, size_t, off_t)(fd, bytes, count, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    is_slow(fd);
    return fd_is_full(fd) || is_behind(fd, at) ? -1 : REAL(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(fd, bytes, count, at);
}

static int is_torn(int fd) {
    char link[32], path[PATH_MAX], text[2];
    ssize_t len;
    if (control("torn", text, sizeof text) < 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    len = readlink(link, path, sizeof path - 1);
    if (len < 0)
        return 0;
    path[len] = 0;
    return is_listed("torn", path, EIO);
}

ssize_t read(int fd, void *bytes, size_t count) {
    return is_torn(fd) ? -1 : REAL(ssize_t, "read", int, void *, size_t)(fd, bytes, count);
}

ssize_t pread(int fd, void *bytes, size_t count, off_t at) {
    return is_torn(fd) ? -1 : REAL(ssize_t, "pread", int, void *, size_t, off_t)(fd, bytes, count, at);
}

ssize_t pread64(int fd, void *bytes, size_t count, off64_t at) {
    return is_torn(fd) ? -1 : REAL(ssize_t, "pread64", int, void *, size_t, off64_t)(fd, bytes, count, at);
}

ssize_t copy_file_range(int in, off64_t *in_at, int out, off64_t *out_at, size_t count, unsigned flags) {
    return fd_is_full(out) || is_torn(in) ? -1 : REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned)(
        in, in_at, out, out_at, count, flags);
}

static int creates(int flags) {
    return (flags & O_CREAT) != 0;
}

/* Opening takes room only where it makes a file. */
#define OPEN(name)                                                                              \
    int name(const char *path, int flags, ...) {                                                \
        mode_t mode = 0;                                                                        \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        if (creates(flags))                                                                     \
            mode = va_arg(rest, mode_t);                                                        \
        va_end(rest);                                                                           \
        if (creates(flags) && faccessat(AT_FDCWD, path, F_OK, 0) != 0 && is_full(path))         \
            return -1;                                                                          \
        if ((flags & O_ACCMODE) == O_RDONLY && is_listed("shut", path, EMFILE))                 \
            return -1;                                                                          \
        return REAL(int, #name, const char *, int, ...)(path, flags, mode);                     \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                            \
    int name(int folder, const char *file, int flags, ...) {                                    \
        char path[2 * PATH_MAX];                                                                \
        mode_t mode = 0;                                                                        \
        va_list rest;                                                                           \
        va_start(rest, flags);                                                                  \
        if (creates(flags))                                                                     \
            mode = va_arg(rest, mode_t);                                                        \
        va_end(rest);                                                                           \
        if (creates(flags) && faccessat(folder, file, F_OK, 0) != 0 && is_full(at(folder, file, path))) \
            return -1;                                                                          \
        return REAL(int, #name, int, const char *, int, ...)(folder, file, flags, mode);        \
    }
OPENAT(openat)
OPENAT(openat64)

int mkdirat(int folder, const char *name, mode_t mode) {
    char path[2 * PATH_MAX];
    if (faccessat(folder, name, F_OK, 0) != 0 && is_full(at(folder, name, path)))
        return -1;
    return REAL(int, "mkdirat", int, const char *, mode_t)(folder, name, mode);
}

int fallocate64(int fd, int mode, off64_t from, off64_t len) {
    return fd_is_full(fd) ? -1 : REAL(int, "fallocate64", int, int, off64_t, off64_t)(fd, mode, from, len);
}

int mkdir(const char *path, mode_t mode) {
    return is_full(path) ? -1 : REAL(int, "mkdir", const char *, mode_t)(path, mode);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    char text[8];
    const struct timespec moment = {0, 5000000};
    if (node && control("dns", text, sizeof text) >= 0) {
        while (!strncmp(text, "hang", 4) && control("dns", text, sizeof text) >= 0)
            nanosleep(&moment, NULL);
        return EAI_AGAIN;
    }
    return REAL(int, "getaddrinfo", const char *, const char *, const struct addrinfo *,
                struct addrinfo **)(node, service, hints, found);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*body)(void *), void *with) {
    char name[17] = "", who[32];
    long len = control("threads", who, sizeof who);
    if (len > 0 && prctl(PR_GET_NAME, name) == 0 && !strcmp(name, who))
        return EAGAIN;
    return REAL(int, "pthread_create", pthread_t *, const pthread_attr_t *, void *(*)(void *), void *)(
        thread, how, body, with);
}

static long wrong_by(void) {
    char text[32];
    return control("clock", text, sizeof text) > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int failed = REAL(int, "clock_gettime", clockid_t, struct timespec *)(which, now);
    if (!failed && which == CLOCK_REALTIME)
        now->tv_sec += wrong_by();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int failed = REAL(int, "gettimeofday", struct timeval *, void *)(now, zone);
    if (!failed)
        now->tv_sec += wrong_by();
    return failed;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out)
        *out = now.tv_sec;
    return now.tv_sec;
}
