/* A program that uses SQLite at random, and the means to look at what is left. See docs/torture.md.
**
**   host setup DB JOURNAL [NAME=VALUE...]   makes the tables
**   host run   DB JOURNAL [NAME=VALUE...]   works for some seconds
**   host last  DB JOURNAL [NAME=VALUE...]   one more transaction, then walferry_sync(); tells on stdout
**   host check FILE...                      what a restored database is: a line of JSON each
**   host log   DB                           the commits that the database knows of: "number digest"
**   host image DB OUT                       the pages as a new reader sees them
**
** Every transaction adds 1 to state.n, and triggers keep state.digest: the sum over all rows of `data`.
** So each database says by itself whether it is a state that was committed, and which.
**
** Lines of the journal, each written by one write(), so that SIGKILL loses none:
**   i N DIGEST       the transaction N is about to be committed
**   c N DIGEST       COMMIT has returned
**   a TXID OWN SEEN HEAD   walferry_sync() has returned TXID; before it this connection had committed OWN
**                    and read SEEN; when it returned, HEAD was the newest TXID in the replica's folder
**   e WHAT CODE TEXT an error of SQLite's
**   x TEXT           what must never be: the live database contradicts itself
**   f n m l z        a fork, a limit on descriptors, another journal mode, an exclusive session, the end
*/
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3.h>

#define MASK 0xffffffffffffULL
#define POOL 3
#define THREADS 8
#define ERRORS 300

typedef sqlite3_int64 i64;
typedef struct { uint64_t state; } Rng;

/* What a thread does, and how often in relation to the others. */
enum { TX, SPILL, READ, CKPT, CLOSE, SYNC, VACUUM, MODE, EXCL, SLEEP, PAUSE, DDL, KINDS };
static const char *const NAMES[KINDS] = {"tx", "spill", "read", "ckpt", "close", "sync", "vacuum",
                                         "mode", "excl", "sleep", "pause", "ddl"};

typedef struct {
    int number;
    Rng rng;
    sqlite3 *pool[POOL];
    i64 own; /* the last transaction that this thread committed */
} Worker;

static struct {
    const char *db, *journal, *extension, *end;
    uint64_t seed;
    double seconds, fork_every, emfile_every;
    int writer, threads, late, lazy, hot, wait, rows, page_size, auto_vacuum, wal;
    int weights[KINDS];
} opt = {.end = "close", .seconds = 1, .threads = 1, .rows = 150, .wal = 1};

static int journal_fd = -1, errors_left = ERRORS, loaded;
static double deadline;
/* A thread at work reads; who must have the process to itself writes. */
static pthread_rwlock_t work;
static volatile int ending, hurry_reopen; /* no descriptor is free: open and close more than else */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void pause_ms(double ms) {
    struct timespec t = {(time_t)(ms / 1000), (long)(ms * 1e6) % 1000000000L};
    while (nanosleep(&t, &t) && errno == EINTR) {
    }
}

static uint64_t draw(Rng *rng) { /* splitmix64 */
    uint64_t z = rng->state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

static int below(Rng *rng, int n) { return (int)(draw(rng) % (uint64_t)n); }
static int one_in(Rng *rng, int n) { return below(rng, n) == 0; }
static double part(Rng *rng) { return (draw(rng) >> 11) / 9007199254740992.0; }

static void note(const char *format, ...) {
    char line[400];
    va_list list;
    va_start(list, format);
    int size = vsnprintf(line, sizeof line - 1, format, list);
    va_end(list);
    if (size > (int)sizeof line - 2) size = sizeof line - 2;
    for (int i = 0; i < size; i++)
        if (line[i] == '\n') line[i] = ' ';
    line[size] = '\n';
    if (journal_fd >= 0 && write(journal_fd, line, size + 1) != size + 1) abort();
}

static void failed(const char *what, sqlite3 *db, int rc) {
    if (__sync_fetch_and_sub(&errors_left, 1) > 0)
        note("e %s %d %.200s", what, db ? sqlite3_extended_errcode(db) : rc, db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
}

static void die(const char *what, sqlite3 *db) {
    fprintf(stderr, "%s: %s\n", what, db ? sqlite3_errmsg(db) : strerror(errno));
    exit(3);
}

/* ---- functions of SQL ------------------------------------------------------------------------ */

static void rowhash(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
    (void)argc;
    uint64_t h = 0xcbf29ce484222325ULL ^ (uint64_t)sqlite3_value_int64(argv[0]);
    const unsigned char *p = sqlite3_value_blob(argv[1]);
    int n = sqlite3_value_bytes(argv[1]);
    h = (h ^ (uint64_t)n) * 0x9e3779b97f4a7c15ULL;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        h = (h ^ word) * 0xbf58476d1ce4e5b9ULL;
        h ^= h >> 29;
    }
    for (; n > 0; n--, p++) h = (h ^ *p) * 0x100000001b3ULL;
    h ^= h >> 32;
    sqlite3_result_int64(ctx, (i64)(h & MASK));
}

/* body(N): N bytes, by this thread's random numbers. */
static void body(sqlite3_context *ctx, int argc, sqlite3_value **argv) {
    (void)argc;
    Rng *rng = sqlite3_user_data(ctx);
    int n = sqlite3_value_int(argv[0]);
    unsigned char *p = sqlite3_malloc(n + 8);
    if (!p) {
        sqlite3_result_error_nomem(ctx);
        return;
    }
    for (int i = 0; i < n; i += 8) {
        uint64_t word = draw(rng);
        memcpy(p + i, &word, 8);
    }
    sqlite3_result_blob(ctx, p, n, sqlite3_free);
}

/* ---- connections ----------------------------------------------------------------------------- */

static int run(sqlite3 *db, const char *what, const char *format, ...) {
    va_list list;
    va_start(list, format);
    char *sql = sqlite3_vmprintf(format, list);
    va_end(list);
    int rc = sqlite3_exec(db, sql, 0, 0, 0);
    if (rc != SQLITE_OK && what) failed(what, db, rc);
    sqlite3_free(sql);
    return rc;
}

/* The first column, and the second, of the first row. */
static int numbers(sqlite3 *db, const char *sql, i64 *first, i64 *second) {
    sqlite3_stmt *stmt = 0;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, 0);
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW) {
            if (first) *first = sqlite3_column_int64(stmt, 0);
            if (second) *second = sqlite3_column_int64(stmt, 1);
        }
        int end = sqlite3_finalize(stmt);
        rc = rc == SQLITE_ROW ? end : rc == SQLITE_DONE ? SQLITE_EMPTY : rc;
    }
    return rc;
}

static int text(sqlite3 *db, const char *sql, char *out, size_t size) {
    sqlite3_stmt *stmt = 0;
    int rc = sqlite3_prepare_v2(db, sql, -1, &stmt, 0);
    out[0] = 0;
    if (rc == SQLITE_OK) {
        rc = sqlite3_step(stmt);
        if (rc == SQLITE_ROW) snprintf(out, size, "%s", (const char *)sqlite3_column_text(stmt, 0));
        int end = sqlite3_finalize(stmt);
        rc = rc == SQLITE_ROW ? end : rc == SQLITE_DONE ? SQLITE_EMPTY : rc;
    }
    return rc;
}

static void functions(sqlite3 *db, Rng *rng) {
    sqlite3_create_function(db, "rowhash", 2, SQLITE_UTF8 | SQLITE_DETERMINISTIC | SQLITE_INNOCUOUS, 0, rowhash, 0, 0);
    sqlite3_create_function(db, "body", 1, SQLITE_UTF8, rng, body, 0, 0);
}

static sqlite3 *plain_open(Rng *rng) {
    sqlite3 *db = 0;
    int rc = sqlite3_open_v2(opt.db, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 0);
    if (rc != SQLITE_OK) {
        failed("open", db, rc);
        sqlite3_close(db);
        return 0;
    }
    functions(db, rng);
    run(db, "pragma", "PRAGMA recursive_triggers=ON"); /* else REPLACE tells no trigger what it removes */
    return db;
}

static sqlite3 *open_one(Rng *rng) {
    static const int TIMEOUTS[] = {0, 5, 50, 400}, CACHES[] = {2000, 2000, 100, 10, 5},
                     CHECKPOINTS[] = {1, 5, 10, 20, 100, 1000, 0};
    static const char *const SYNC_MODES[] = {"OFF", "NORMAL", "NORMAL", "FULL"};
    sqlite3 *db = plain_open(rng);
    if (!db) return 0;
    sqlite3_busy_timeout(db, TIMEOUTS[below(rng, 4)]);
    run(db, "pragma", "PRAGMA synchronous=%s", SYNC_MODES[below(rng, 4)]);
    run(db, "pragma", "PRAGMA cache_size=%d", CACHES[below(rng, 5)]);
    run(db, "pragma", "PRAGMA wal_autocheckpoint=%d", CHECKPOINTS[opt.lazy ? 5 + below(rng, 2) : below(rng, opt.hot ? 3 : 7)]);
    if (one_in(rng, 6)) run(db, "pragma", "PRAGMA journal_size_limit=%d", below(rng, 3) * 20000);
    if (one_in(rng, 8)) run(db, "pragma", "PRAGMA mmap_size=%d", 1 << 20);
    if (opt.wal && one_in(rng, 2)) run(db, "wal", "PRAGMA journal_mode=WAL");
    return db;
}

static void close_one(sqlite3 **db) {
    int rc = sqlite3_close(*db);
    if (rc != SQLITE_OK) failed("close", *db, rc);
    *db = 0;
}

static void close_all(Worker *w) {
    for (int i = 0; i < POOL; i++)
        if (w->pool[i]) close_one(&w->pool[i]);
}

static void load(void) {
    char *message = 0;
    sqlite3 *db = 0;
    if (!opt.extension || loaded) return;
    loaded = 1;
    sqlite3_open(":memory:", &db);
    sqlite3_enable_load_extension(db, 1);
    if (sqlite3_load_extension(db, opt.extension, 0, &message) != SQLITE_OK) {
        fprintf(stderr, "load: %s\n", message);
        exit(3);
    }
    sqlite3_close(db);
}

/* ---- what a thread does ---------------------------------------------------------------------- */

static void change_rows(Worker *w, sqlite3 *db, int *rc) {
    static const int SIZES[] = {10, 60, 300, 900, 3000, 9000};
    Rng *rng = &w->rng;
    int size = SIZES[below(rng, one_in(rng, 4) ? 6 : 4)], at = below(rng, opt.rows) + 1;
    if (*rc != SQLITE_OK) return;
    switch (below(rng, 8)) {
    case 0: case 1: case 2: /* one row */
        *rc = run(db, "dml", "UPDATE data SET body=body(%d) WHERE k=%d", size, at);
        break;
    case 3: /* some beside each other */
        *rc = run(db, "dml", "UPDATE data SET body=body(%d) WHERE k BETWEEN %d AND %d", size, at, at + below(rng, 12));
        break;
    case 4: case 5:
        *rc = run(db, "dml", "INSERT OR REPLACE INTO data VALUES(%d, body(%d))", at, size);
        break;
    case 6:
        *rc = run(db, "dml", "DELETE FROM data WHERE k BETWEEN %d AND %d", at, at + below(rng, 4));
        break;
    default: /* some of everywhere */
        *rc = run(db, "dml", "UPDATE data SET body=body(length(body)) WHERE k%%%d=%d", 10 + below(rng, 30), below(rng, 10));
    }
}

/* More than the cache holds, savepoints, and what they take back. */
static void change_many(Worker *w, sqlite3 *db, int *rc) {
    Rng *rng = &w->rng;
    int open = 0;
    if (one_in(rng, 3)) {
        /* Frames that are written twice and then taken back, but not the first of them: before 3.50.2 the
        ** frames in their place get no salt, and a crash loses them and what follows. */
        *rc = run(db, "dml", "UPDATE data SET body=body(length(body)) WHERE k%%3=0; SAVEPOINT twice;"
                  " UPDATE data SET body=body(length(body)) WHERE k<%d", opt.rows / 2);
        for (int i = 2 + below(rng, 2); i > 0 && *rc == SQLITE_OK; i--)
            *rc = run(db, "dml", "UPDATE data SET body=body(length(body)) WHERE k>%d", opt.rows / 2);
        if (*rc == SQLITE_OK) *rc = run(db, "dml", "ROLLBACK TO twice; RELEASE twice");
        return;
    }
    for (int i = 3 + below(rng, 8); i > 0 && *rc == SQLITE_OK; i--) {
        switch (below(rng, 6)) {
        case 0:
            *rc = run(db, "dml", "SAVEPOINT s%d", open++);
            break;
        case 1: case 2:
            if (open > 0) {
                int to = below(rng, open);
                *rc = run(db, "dml", one_in(rng, 4) ? "RELEASE s%d" : "ROLLBACK TO s%d; RELEASE s%d", to, to);
                open = to;
                break;
            } /* fall through */
        default:
            *rc = run(db, "dml", "UPDATE data SET body=body(length(body)) WHERE k%%%d<=%d", 4, below(rng, 4));
        }
    }
    change_rows(w, db, rc);
}

static void transaction(Worker *w, sqlite3 *db, int spill) {
    Rng *rng = &w->rng;
    i64 n = 0, digest = 0;
    const char *begin = one_in(rng, 4) ? "BEGIN" : "BEGIN IMMEDIATE";
    int rc = run(db, "begin", "%s", begin);
    if (rc != SQLITE_OK) return;
    if (spill) {
        run(db, "pragma", "PRAGMA cache_size=%d", 5 + below(rng, 6));
        change_many(w, db, &rc);
    } else {
        for (int i = 1 + below(rng, 4); i > 0; i--) change_rows(w, db, &rc);
    }
    if (rc == SQLITE_OK && one_in(rng, 25)) {
        run(db, "rollback", "ROLLBACK");
        return;
    }
    if (rc == SQLITE_OK) rc = run(db, "dml", "UPDATE state SET n=n+1");
    if (rc == SQLITE_OK) {
        rc = numbers(db, "SELECT n, digest FROM state", &n, &digest);
        if (rc != SQLITE_OK) failed("dml", db, rc);
    }
    if (rc == SQLITE_OK) rc = run(db, "dml", "INSERT INTO log VALUES(%lld, %d, %lld)", n, opt.writer, digest);
    if (rc == SQLITE_OK) {
        note("i %lld %lld", n, digest);
        for (int tries = 0; tries < 20; tries++) {
            rc = run(db, "commit", "COMMIT");
            if ((rc & 0xff) != SQLITE_BUSY) break;
            pause_ms(5);
        }
        if (rc == SQLITE_OK) {
            note("c %lld %lld", n, digest);
            w->own = n;
        }
    }
    if (!sqlite3_get_autocommit(db)) run(db, "rollback", "ROLLBACK");
}

static void look(Worker *w, sqlite3 *db) {
    Rng *rng = &w->rng;
    i64 n = 0, digest = 0, sum = 0;
    if (run(db, "read", "BEGIN") != SQLITE_OK) return;
    int rc = numbers(db, "SELECT n, digest FROM state", &n, &digest);
    if (rc == SQLITE_OK && one_in(rng, 2)) pause_ms(part(rng) * 60);
    if (rc == SQLITE_OK) rc = numbers(db, "SELECT sum(rowhash(k, body)) FROM data", &sum, 0);
    if (rc != SQLITE_OK)
        failed("read", db, rc);
    else if ((i64)(sum & MASK) != digest)
        note("x state %lld has the digest %lld, not %lld", n, (i64)(sum & MASK), digest);
    run(db, "read", "COMMIT");
}

/* The newest TXID in the replica's folder: ltx/LEVEL/FIRST-LAST.ltx */
static unsigned long long head(void) {
    unsigned long long newest = 0, first, last;
    const char *url = getenv("WALFERRY_REPLICA");
    char path[4200];
    for (int level = 0; level < 10; level++) {
        snprintf(path, sizeof path, "%s/ltx/%d", url ? url + strlen("file://") : ".", level);
        DIR *folder = opendir(path);
        if (!folder && errno != ENOENT) return 0; /* no descriptor is free */
        for (struct dirent *entry; folder && (entry = readdir(folder));)
            if (sscanf(entry->d_name, "%16llx-%16llx.ltx", &first, &last) == 2 && last > newest &&
                strlen(entry->d_name) == 37)
                newest = last;
        if (folder) closedir(folder);
    }
    return newest;
}

static void sync_now(Worker *w, sqlite3 *db) {
    char sql[80], txid[40];
    i64 seen = 0;
    if (!loaded) return;
    if (numbers(db, "SELECT n FROM state", &seen, 0) != SQLITE_OK) return;
    snprintf(sql, sizeof sql, "SELECT walferry_%s(%d)", one_in(&w->rng, 4) ? "wait" : "sync", opt.wait);
    int rc = text(db, sql, txid, sizeof txid);
    if (rc != SQLITE_OK)
        failed("sync", db, rc);
    else
        note("a %s %lld %lld %llx", txid, w->own, seen, head());
}

/* SQLite 3.35.4 locks a wal-index that it could not open, and dies of it; later ones look first. */
static int checkpoint(sqlite3 *db, int mode) {
    if (sqlite3_libversion_number() < 3040000) {
        int rc = numbers(db, "SELECT n FROM state", 0, 0);
        if (rc != SQLITE_OK) return rc;
    }
    return sqlite3_wal_checkpoint_v2(db, 0, mode, 0, 0);
}

/* Another journal mode and back, and what can be done only there. The caller has the process to
** itself. */
static void modes(Worker *w) {
    Rng *rng = &w->rng;
    char mode[20];
    sqlite3 *db = open_one(rng);
    if (!db) return;
    sqlite3_busy_timeout(db, 200);
    int rc = text(db, one_in(rng, 4) ? "PRAGMA journal_mode=TRUNCATE" : "PRAGMA journal_mode=DELETE", mode, sizeof mode);
    if (rc != SQLITE_OK) failed("mode", db, rc);
    if (rc == SQLITE_OK && strcmp(mode, "wal")) {
        note("m %s", mode);
        for (int i = below(rng, 4); i > 0; i--) transaction(w, db, 0);
        if (one_in(rng, 3)) {
            run(db, "mode", "PRAGMA page_size=%d", 512 << below(rng, 5));
            run(db, "vacuum", "VACUUM");
        }
        if (one_in(rng, 3)) {
            close_one(&db);
            db = open_one(rng);
        }
        if (db && !one_in(rng, 4)) run(db, "wal", "PRAGMA journal_mode=WAL");
        if (db)
            for (int i = below(rng, 3); i > 0; i--) transaction(w, db, 0);
    }
    if (db) close_one(&db);
}

static void alone(Worker *w) {
    Rng *rng = &w->rng;
    sqlite3 *db = open_one(rng);
    if (!db) return;
    i64 n = 0;
    sqlite3_busy_timeout(db, 100);
    if (one_in(rng, 2)) numbers(db, "SELECT n FROM state", &n, 0);
    run(db, "excl", "PRAGMA locking_mode=EXCLUSIVE");
    i64 before = w->own;
    for (int i = 1 + below(rng, 6); i > 0; i--) {
        transaction(w, db, one_in(rng, 5));
        if (one_in(rng, 3)) checkpoint(db, below(rng, 4));
        if (one_in(rng, 6)) pause_ms(part(rng) * 20);
    }
    if (w->own != before) note("l");
    if (one_in(rng, 2)) {
        run(db, "excl", "PRAGMA locking_mode=NORMAL");
        transaction(w, db, 0);
    }
    close_one(&db);
}

static int pick(Rng *rng) {
    int total = 0, kind = 0;
    for (int i = 0; i < KINDS; i++) total += opt.weights[i];
    for (int at = below(rng, total); at >= opt.weights[kind]; kind++) at -= opt.weights[kind];
    return kind;
}

static void step(Worker *w) {
    Rng *rng = &w->rng;
    int kind = hurry_reopen && one_in(rng, 2) ? CLOSE : pick(rng), whole = kind == MODE;
    if (whole)
        pthread_rwlock_wrlock(&work);
    else
        pthread_rwlock_rdlock(&work);
    sqlite3 **slot = &w->pool[one_in(rng, 3) ? below(rng, POOL) : 0];
    if (!*slot && kind != CLOSE && kind != SLEEP && kind != PAUSE && kind != MODE) *slot = open_one(rng);
    sqlite3 *db = *slot;
    int rc = SQLITE_OK;
    switch (kind) {
    case SLEEP: case PAUSE:
        break;
    case CLOSE:
        if (one_in(rng, 2))
            close_all(w);
        else if (*slot)
            close_one(slot);
        break;
    case MODE:
        close_all(w);
        modes(w);
        break;
    case EXCL:
        close_all(w);
        alone(w);
        break;
    case TX: case SPILL:
        if (db) transaction(w, db, kind == SPILL);
        break;
    case READ:
        if (db) look(w, db);
        break;
    case CKPT:
        if (db) rc = checkpoint(db, below(rng, 4));
        if (rc != SQLITE_OK) failed("checkpoint", db, rc);
        break;
    case SYNC:
        if (db) sync_now(w, db);
        break;
    case VACUUM:
        if (db) run(db, "vacuum", "VACUUM");
        break;
    case DDL:
        if (db) run(db, "ddl", one_in(rng, 2) ? "CREATE INDEX IF NOT EXISTS more ON data(substr(body, 1, 9))" : "DROP INDEX IF EXISTS more");
        break;
    }
    /* The end of a program that closes nothing, beside threads that are at work. */
    if (!strcmp(opt.end, "exit") && now() > deadline && !__sync_lock_test_and_set(&ending, 1)) {
        note("z");
        exit(0);
    }
    pthread_rwlock_unlock(&work);
    if (kind == SLEEP) pause_ms(part(rng) * part(rng) * 40);
    if (kind == PAUSE) pause_ms(part(rng) * 500);
}

static void *work_on(void *worker) {
    Worker *w = worker;
    while (now() < deadline) step(w);
    pthread_rwlock_rdlock(&work);
    if (strcmp(opt.end, "leave")) close_all(w);
    pthread_rwlock_unlock(&work);
    return 0;
}

/* ---- the process ----------------------------------------------------------------------------- */

static Worker workers[THREADS];
static pthread_t threads[THREADS];

static void open_journal(const char *path) {
    journal_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (journal_fd < 0) die(path, 0);
    /* Out of the way of the numbers that the limit on descriptors is about. */
    int high = fcntl(journal_fd, F_DUPFD_CLOEXEC, 100);
    if (high >= 0) {
        close(journal_fd);
        journal_fd = high;
    }
}

static void start(void) {
    for (int i = 0; i < opt.threads; i++) {
        memset(&workers[i], 0, sizeof workers[i]);
        workers[i].number = i;
        workers[i].rng.state = opt.seed * 1000003 + (uint64_t)i;
        if (pthread_create(&threads[i], 0, work_on, &workers[i])) die("pthread_create", 0);
    }
}

static void join(void) {
    for (int i = 0; i < opt.threads; i++) pthread_join(threads[i], 0);
}

/* A child that opens connections of its own. While it lives, its parent keeps one open that was open
** at the fork: the child has inherited SQLite's notes of locks that only the parent has, so without
** them another process would take itself for the last one. That is so without walferry, too. */
static pid_t begin_child(Rng *rng, int number, sqlite3 **anchor) {
    char path[4000];
    i64 n;
    pthread_rwlock_wrlock(&work);
    if (one_in(rng, 3) && !*anchor) { /* nothing is open at the fork */
        for (int i = 0; i < opt.threads; i++) close_all(&workers[i]);
    } else if (!*anchor) {
        *anchor = open_one(rng);
        if (*anchor && numbers(*anchor, "SELECT n FROM state", &n, 0) != SQLITE_OK) close_one(anchor);
        if (!*anchor) {
            for (int i = 0; i < opt.threads; i++) close_all(&workers[i]);
        }
    }
    uint64_t seed = draw(rng);
    pid_t pid = fork();
    if (pid) {
        if (pid > 0) note("f %d", (int)pid);
        pthread_rwlock_unlock(&work);
        return pid;
    }
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    pthread_rwlock_init(&work, 0);
    snprintf(path, sizeof path, "%s.%d", opt.journal, number);
    open_journal(path);
    opt.journal = strdup(path);
    opt.seed = seed;
    opt.writer += 100 * (number + 1);
    opt.threads = 1 + (int)(seed % 2);
    opt.end = seed % 5 == 0 ? "leave" : "close";
    deadline = now() + (seed % 2 ? 0.02 : 0.2) + (seed % 1000) / (seed % 2 ? 10000.0 : 1000.0);
    start();
    join();
    if (seed % 3 == 0) _exit(0);
    exit(0);
}

/* No descriptor is free, or few, for a moment. */
static void starve(Rng *rng) {
    struct rlimit limit, low;
    int free_one = fcntl(0, F_DUPFD_CLOEXEC, 0);
    if (free_one < 0 || getrlimit(RLIMIT_NOFILE, &limit)) return;
    close(free_one);
    low = limit;
    low.rlim_cur = (rlim_t)(free_one + (one_in(rng, 2) ? 0 : below(rng, 5)));
    note("n %d", (int)low.rlim_cur);
    hurry_reopen = one_in(rng, 2);
    setrlimit(RLIMIT_NOFILE, &low);
    pause_ms(5 + part(rng) * 300);
    setrlimit(RLIMIT_NOFILE, &limit);
    hurry_reopen = 0;
    note("n %d", (int)limit.rlim_cur);
}

static void run_host(void) {
    Rng rng = {opt.seed ^ 0x5bd1e995};
    sqlite3 *anchor = 0;
    pid_t child = 0;
    int children = 0;
    if (opt.late) {
        anchor = plain_open(&rng);
        if (anchor) run(anchor, "read", "SELECT count(*) FROM sqlite_master");
    }
    load();
    if (anchor) close_one(&anchor);
    start();
    double fork_at = now() + opt.fork_every * part(&rng), starve_at = now() + opt.emfile_every * part(&rng);
    while (now() < deadline) {
        pause_ms(3);
        if (child && waitpid(child, 0, WNOHANG) == child) child = 0;
        if (!child && anchor) {
            pthread_rwlock_rdlock(&work);
            close_one(&anchor);
            pthread_rwlock_unlock(&work);
        }
        if (opt.fork_every > 0 && now() > fork_at && !child) {
            child = begin_child(&rng, children++, &anchor);
            if (child < 0) child = 0;
            fork_at = now() + opt.fork_every * part(&rng);
        }
        if (opt.emfile_every > 0 && now() > starve_at) {
            starve(&rng);
            starve_at = now() + opt.emfile_every * part(&rng);
        }
    }
    join();
    for (int i = 0; child && i < 1500; i++) {
        if (waitpid(child, 0, WNOHANG) == child) {
            child = 0;
            break;
        }
        pause_ms(10);
    }
    if (child) {
        note("x the child %d does not end", (int)child);
        kill(child, SIGABRT);
        waitpid(child, 0, 0);
    }
    if (anchor) close_one(&anchor);
    note("z");
    if (!strcmp(opt.end, "_exit")) _exit(0);
}

static const char SCHEMA[] =
    "CREATE TABLE state(id INTEGER PRIMARY KEY, n INTEGER, digest INTEGER);"
    "CREATE TABLE log(n INTEGER PRIMARY KEY, writer INTEGER, digest INTEGER);"
    "CREATE TABLE data(k INTEGER PRIMARY KEY, body BLOB);"
    "CREATE INDEX data_length ON data(length(body));"
    "INSERT INTO state VALUES(1, 0, 0);"
    "CREATE TRIGGER data_i AFTER INSERT ON data BEGIN"
    "  UPDATE state SET digest=(digest + rowhash(new.k, new.body)) & 0xffffffffffff; END;"
    "CREATE TRIGGER data_d AFTER DELETE ON data BEGIN"
    "  UPDATE state SET digest=(digest - rowhash(old.k, old.body)) & 0xffffffffffff; END;"
    "CREATE TRIGGER data_u AFTER UPDATE ON data BEGIN"
    "  UPDATE state SET digest=(digest - rowhash(old.k, old.body) + rowhash(new.k, new.body)) & 0xffffffffffff; END;";

static void setup(void) {
    Rng rng = {opt.seed};
    i64 digest = 0;
    load();
    sqlite3 *db = plain_open(&rng);
    if (!db) die("setup", 0);
    sqlite3_busy_timeout(db, 10000);
    if (opt.page_size) run(db, "setup", "PRAGMA page_size=%d", opt.page_size);
    run(db, "setup", "PRAGMA auto_vacuum=%d", opt.auto_vacuum);
    if (opt.wal) run(db, "setup", "PRAGMA journal_mode=WAL");
    if (run(db, 0, "BEGIN IMMEDIATE; %s", SCHEMA) ||
        run(db, 0, "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM s WHERE i<%d)"
                   " INSERT INTO data SELECT i, body(%d) FROM s", opt.rows, 100 + below(&rng, 900)) ||
        run(db, 0, "UPDATE state SET n=1; INSERT INTO log SELECT 1, 0, digest FROM state") ||
        numbers(db, "SELECT digest FROM state", &digest, 0))
        die("setup", db);
    note("i 1 %lld", digest);
    if (run(db, 0, "COMMIT")) die("setup", db);
    note("c 1 %lld", digest);
    close_one(&db);
}

static void last(void) {
    Worker w = {.rng = {opt.seed}};
    static char status[65536];
    char txid[40], sql[80];
    load();
    sqlite3 *db = plain_open(&w.rng);
    if (!db) die("open", 0);
    sqlite3_busy_timeout(db, 20000);
    if (run(db, 0, "PRAGMA journal_mode=WAL")) die("journal_mode", db);
    transaction(&w, db, 0);
    while (!w.own && errors_left == ERRORS) transaction(&w, db, 0); /* it may have been rolled back */
    if (!w.own) die("the last transaction", db);
    snprintf(sql, sizeof sql, "SELECT walferry_sync(%d)", opt.wait);
    int rc = text(db, sql, txid, sizeof txid);
    if (rc != SQLITE_OK) fprintf(stderr, "walferry_sync: %s\n", sqlite3_errmsg(db));
    if (rc == SQLITE_OK) note("a %s %lld %lld %llx", txid, w.own, w.own, head());
    text(db, "SELECT walferry_status()", status, sizeof status);
    printf("%s\n%s\n", rc == SQLITE_OK ? txid : "", status);
    close_one(&db);
    exit(rc == SQLITE_OK ? 0 : 4);
}

/* ---- looking at a database ------------------------------------------------------------------- */

static void check(const char *path) {
    sqlite3 *db = 0;
    Rng rng = {1};
    char *uri = sqlite3_mprintf("file:%s?immutable=1", path), verdict[200];
    i64 n = 0, digest = 0, sum = 0, commits = 0, newest = 0, tables = 0;
    int rc = sqlite3_open_v2(uri, &db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, 0);
    functions(db, &rng);
    if (rc == SQLITE_OK) rc = text(db, "PRAGMA integrity_check(1)", verdict, sizeof verdict);
    if (rc != SQLITE_OK) snprintf(verdict, sizeof verdict, "%s", sqlite3_errmsg(db));
    for (char *p = verdict; *p; p++)
        if (*p == '"' || *p == '\\' || (unsigned char)*p < 32) *p = ' ';
    if (rc == SQLITE_OK) rc = numbers(db, "SELECT count(*) FROM sqlite_master WHERE name='state'", &tables, 0);
    if (rc == SQLITE_OK && tables) {
        rc = numbers(db, "SELECT n, digest FROM state", &n, &digest);
        if (rc == SQLITE_OK) rc = numbers(db, "SELECT sum(rowhash(k, body)) FROM data", &sum, 0);
        if (rc == SQLITE_OK) rc = numbers(db, "SELECT count(*), max(n) FROM log", &commits, &newest);
    }
    printf("{\"code\": %d, \"integrity\": \"%s\", \"tables\": %lld, \"n\": %lld, \"digest\": %lld, \"actual\": %lld, "
           "\"commits\": %lld, \"newest\": %lld}\n",
           rc, verdict, tables, n, digest, (i64)(sum & MASK), commits, newest);
    sqlite3_free(uri);
    sqlite3_close(db);
}

static void list_log(const char *path) {
    sqlite3 *db = 0;
    sqlite3_stmt *stmt = 0;
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, 0)) die(path, db);
    sqlite3_busy_timeout(db, 20000);
    if (sqlite3_prepare_v2(db, "SELECT n, digest FROM log ORDER BY n", -1, &stmt, 0)) die(path, db);
    int rc;
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW)
        printf("%lld %lld\n", sqlite3_column_int64(stmt, 0), sqlite3_column_int64(stmt, 1));
    if (rc != SQLITE_DONE) die(path, db);
    sqlite3_finalize(stmt);
    sqlite3_close(db);
}

static void image(const char *path, const char *out) {
    sqlite3 *db = 0;
    i64 size = 0;
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, 0)) die(path, db);
    sqlite3_busy_timeout(db, 20000);
    if (run(db, 0, "BEGIN; SELECT count(*) FROM sqlite_master")) die(path, db);
    unsigned char *bytes = sqlite3_serialize(db, "main", &size, 0);
    FILE *file = fopen(out, "wb");
    if (!bytes || !file || fwrite(bytes, 1, (size_t)size, file) != (size_t)size || fclose(file)) die(out, db);
    sqlite3_free(bytes);
    sqlite3_close(db);
}

static void set(const char *name, const char *value) {
    if (!strcmp(name, "seed")) opt.seed = strtoull(value, 0, 10);
    else if (!strcmp(name, "seconds")) opt.seconds = atof(value);
    else if (!strcmp(name, "threads")) opt.threads = atoi(value);
    else if (!strcmp(name, "writer")) opt.writer = atoi(value);
    else if (!strcmp(name, "extension")) opt.extension = value;
    else if (!strcmp(name, "lazy")) opt.lazy = atoi(value); /* the WAL grows */
    else if (!strcmp(name, "hot")) opt.hot = atoi(value); /* the WAL begins anew all the time */
    else if (!strcmp(name, "late")) opt.late = atoi(value);
    else if (!strcmp(name, "fork")) opt.fork_every = atof(value);
    else if (!strcmp(name, "emfile")) opt.emfile_every = atof(value);
    else if (!strcmp(name, "wait")) opt.wait = atoi(value);
    else if (!strcmp(name, "rows")) opt.rows = atoi(value);
    else if (!strcmp(name, "page_size")) opt.page_size = atoi(value);
    else if (!strcmp(name, "auto_vacuum")) opt.auto_vacuum = atoi(value);
    else if (!strcmp(name, "wal")) opt.wal = atoi(value);
    else if (!strcmp(name, "end")) opt.end = value;
    else {
        for (int i = 0; i < KINDS; i++)
            if (!strcmp(name, NAMES[i])) {
                opt.weights[i] = atoi(value);
                return;
            }
        fprintf(stderr, "unknown: %s\n", name);
        exit(2);
    }
}

int main(int argc, char **argv) {
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "version")) {
        puts(sqlite3_libversion());
        return 0;
    }
    if (!strcmp(what, "check")) {
        for (int i = 2; i < argc; i++) check(argv[i]);
        return 0;
    }
    if (argc == 3 && !strcmp(what, "log")) {
        list_log(argv[2]);
        return 0;
    }
    if (argc == 4 && !strcmp(what, "image")) {
        image(argv[2], argv[3]);
        return 0;
    }
    if (argc < 4) {
        fprintf(stderr, "see the head of host.c\n");
        return 2;
    }
    opt.db = argv[2];
    opt.journal = argv[3];
    opt.wait = 1500;
    for (int i = 4; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value) return 2;
        *value = 0;
        set(argv[i], value + 1);
    }
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&work, &attr);
    if (opt.threads > THREADS) opt.threads = THREADS;
    open_journal(opt.journal);
    deadline = now() + opt.seconds;
    if (!strcmp(what, "setup")) setup();
    else if (!strcmp(what, "run")) run_host();
    else if (!strcmp(what, "last")) last();
    else return 2;
    return 0;
}
