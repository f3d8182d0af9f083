/*
 * One writer, one-row transactions, as many as asked for; prints what it took as JSON.
 *
 *     commits DATABASE COUNT SYNCHRONOUS [EXTENSION|-]
 *
 * With - it says "ready" before the loop and waits for a line, so that a sidecar can be started.
 *
 * The database is opened by its plain name; with an extension the environment says where its
 * replica is. Only the loop of commits is timed: opening, the first image and the final sync are
 * not part of what a commit costs.
 */
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

static void check(int code, sqlite3 *db, const char *what) {
    if (code == SQLITE_OK || code == SQLITE_ROW || code == SQLITE_DONE) return;
    fprintf(stderr, "%s: %s\n", what, db ? sqlite3_errmsg(db) : sqlite3_errstr(code));
    exit(1);
}

static void run(sqlite3 *db, const char *sql) { check(sqlite3_exec(db, sql, 0, 0, 0), db, sql); }

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: commits DATABASE COUNT SYNCHRONOUS [EXTENSION]\n");
        return 2;
    }
    const long count = atol(argv[2]);
    const int waits = argc > 4 && strcmp(argv[4], "-") == 0;
    const char *extension = argc > 4 && !waits ? argv[4] : 0;
    sqlite3 *loader, *db;
    char sql[200], wal[4096], row[101], *error = 0;

    check(sqlite3_open(":memory:", &loader), loader, "open");
    sqlite3_db_config(loader, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int *)0);
    if (extension && sqlite3_load_extension(loader, extension, 0, &error) != SQLITE_OK) {
        fprintf(stderr, "load: %s\n", error);
        return 1;
    }
    check(sqlite3_open(argv[1], &db), db, argv[1]);
    run(db, "PRAGMA journal_mode=WAL");
    snprintf(sql, sizeof sql, "PRAGMA synchronous=%s", argv[3]);
    run(db, sql);
    run(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, body TEXT)");
    if (extension) run(db, "SELECT walferry_sync(60000)");
    if (waits) {
        puts("ready");
        fflush(stdout);
        if (getchar() == EOF) return 1;
    }

    sqlite3_stmt *insert;
    check(sqlite3_prepare_v2(db, "INSERT INTO t (body) VALUES (?)", -1, &insert, 0), db, "prepare");
    snprintf(wal, sizeof wal, "%s-wal", argv[1]);
    unsigned random = 1;
    long long high_water = 0;
    double longest = 0, before = 0;
    const double wall = now(CLOCK_MONOTONIC), thread = now(CLOCK_THREAD_CPUTIME_ID),
                 process = now(CLOCK_PROCESS_CPUTIME_ID);
    for (long n = 0; n < count; n++) {
        for (int i = 0; i < 100; i++) {
            random = random * 1664525u + 1013904223u;
            row[i] = (char)('!' + (random >> 24) % 90);
        }
        sqlite3_bind_text(insert, 1, row, 100, SQLITE_STATIC);
        check(sqlite3_step(insert), db, "commit");
        check(sqlite3_reset(insert), db, "commit");
        const double after = now(CLOCK_MONOTONIC);
        if (n && after - before > longest) longest = after - before;
        before = after;
        struct stat found;
        if (n % 64 == 0 && stat(wal, &found) == 0 && found.st_size > high_water)
            high_water = found.st_size;
    }
    const double took = now(CLOCK_MONOTONIC) - wall;
    const double on_thread = now(CLOCK_THREAD_CPUTIME_ID) - thread;
    const double on_process = now(CLOCK_PROCESS_CPUTIME_ID) - process;
    sqlite3_finalize(insert);
    if (extension) run(db, "SELECT walferry_sync(60000)");
    check(sqlite3_close(db), db, "close");
    sqlite3_close(loader);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"seconds\": %.6f, \"commits_per_second\": %.1f, \"thread_cpu\": %.6f, "
           "\"process_cpu\": %.6f, \"wal_high_water\": %lld, \"longest_ms\": %.3f, "
           "\"max_rss_kib\": %ld}\n",
           took, (double)count / took, on_thread, on_process, high_water, longest * 1e3,
           usage.ru_maxrss);
    return 0;
}
