/*
 * Preloaded into a process under test: kills it with SIGKILL at a named point.
 *
 *     CRASH_AT=CALL:PATH:COUNT:WHEN
 *
 * CALL is rename, unlink, write, pwrite, ftruncate or fdatasync (fsync counts as that); PATH is a
 * part of the file's path (of the new name, for rename); COUNT says at which such call; WHEN is
 * before or after it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char call_name[16], path_part[128];
static int at_count, after;
static atomic_int seen;

__attribute__((constructor)) static void read_setting(void) {
    const char *text = getenv("CRASH_AT");
    char when[8] = "";
    if (text && sscanf(text, "%15[^:]:%127[^:]:%d:%7s", call_name, path_part, &at_count, when) == 4)
        after = strcmp(when, "after") == 0;
    else
        call_name[0] = 0;
}

/* Whether this is the call; a call before the point is counted and not it. */
static int is_point(const char *call, const char *path) {
    if (strcmp(call, call_name) || !path || !strstr(path, path_part)) return 0;
    if (atomic_fetch_add(&seen, 1) + 1 != at_count) return 0;
    if (!after) kill(getpid(), SIGKILL);
    return 1;
}

static int is_point_of(const char *call, int fd) {
    char link[64], path[PATH_MAX];
    if (strcmp(call, call_name)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return is_point(call, path);
}

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) real = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

#define END(point) do { if (point) kill(getpid(), SIGKILL); return got; } while (0)

int rename(const char *from, const char *to) {
    REAL(int, rename, const char *, const char *);
    const int point = is_point("rename", to), got = real(from, to);
    END(point);
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    const int point = is_point("unlink", path), got = real(path);
    END(point);
}

int unlinkat(int folder, const char *name, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char link[64], path[2 * PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    const ssize_t len = folder < 0 ? 0 : readlink(link, path, PATH_MAX - 1);
    snprintf(path + (len < 0 ? 0 : len), PATH_MAX, "/%s", name);
    const int point = is_point("unlink", path), got = real(folder, name, flags);
    END(point);
}

ssize_t write(int fd, const void *from, size_t len) {
    REAL(ssize_t, write, int, const void *, size_t);
    const int point = is_point_of("write", fd);
    const ssize_t got = real(fd, from, len);
    END(point);
}

ssize_t pwrite(int fd, const void *from, size_t len, off_t at) {
    REAL(ssize_t, pwrite, int, const void *, size_t, off_t);
    const int point = is_point_of("pwrite", fd);
    const ssize_t got = real(fd, from, len, at);
    END(point);
}

ssize_t pwrite64(int fd, const void *from, size_t len, off64_t at) {
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    const int point = is_point_of("pwrite", fd);
    const ssize_t got = real(fd, from, len, at);
    END(point);
}

int ftruncate(int fd, off_t len) {
    REAL(int, ftruncate, int, off_t);
    const int point = is_point_of("ftruncate", fd), got = real(fd, len);
    END(point);
}

int ftruncate64(int fd, off64_t len) {
    REAL(int, ftruncate64, int, off64_t);
    const int point = is_point_of("ftruncate", fd), got = real(fd, len);
    END(point);
}

int fdatasync(int fd) {
    REAL(int, fdatasync, int);
    const int point = is_point_of("fdatasync", fd), got = real(fd);
    END(point);
}

int fsync(int fd) {
    REAL(int, fsync, int);
    const int point = is_point_of("fdatasync", fd), got = real(fd);
    END(point);
}
