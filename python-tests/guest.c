/* Programs that treat SQLite in ways of their own, each with walferry loaded:
 *
 *   guest single EXT              SQLITE_CONFIG_SINGLETHREAD before all else; prints what loading says
 *   guest above EXT DB            a VFS above walferry's, which calls it with names of its own
 *   guest codec EXT DB            a VFS above walferry's that changes every byte
 *   guest sums EXT DB             a VFS above walferry's, for connections that name it, with a sum in each page
 *   guest below EXT DB            walferry above a VFS that changes every byte
 *   guest loads EXT DB            walferry is loaded by a connection through such a VFS, which is not the default
 *   guest named EXT DB [alone]    the same by the name of SQLite's own; with the database to itself
 *   guest dotfile EXT DB          SQLite's own VFS without shared memory as the default; the journal mode
 *   guest read DB                 the rows of such a database, through that VFS and without walferry
 *   guest memory EXT DB           loads walferry again and again, each time with another allocation that fails
 *   guest shutdown EXT DB STORE LOG [reads]  shuts SQLite down while a full image is due; or is read
 *   guest waits EXT DB            SQLite's own VFS, which waits for the read slots where they are asked for
 *
 * Each prints one line, and ends with 0.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <glob.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ROWS 200

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

/* ---- work ------------------------------------------------------------------------------------ */

static void run(sqlite3 *db, const char *sql) {
    char *why = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK) fail(sql, why ? why : "");
}

static void load(const char *extension) {
    sqlite3 *db;
    char *why = NULL;
    if (sqlite3_open(":memory:", &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    if (sqlite3_load_extension(db, extension, NULL, &why) != SQLITE_OK) fail("load", why);
    sqlite3_close(db);
}

static const char *one(sqlite3 *db, const char *sql) {
    static char answer[4000];
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK) fail(sql, sqlite3_errmsg(db));
    if (sqlite3_step(statement) != SQLITE_ROW) fail(sql, sqlite3_errmsg(db));
    snprintf(answer, sizeof answer, "%s", (const char *) sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
    return answer;
}

/* Rows, a journal, a spilled transaction with a temporary file, VACUUM, checkpoints. */
static void work(sqlite3 *db) {
    sqlite3_busy_timeout(db, 10000);
    run(db, "PRAGMA journal_mode=WAL");
    run(db, "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)");
    for (int n = 1; n <= ROWS; n++) run(db, "INSERT INTO t (x) VALUES (hex(randomblob(300)))");
    run(db, "PRAGMA temp_store=FILE; CREATE TEMP TABLE o AS SELECT x FROM t ORDER BY x");
    run(db, "PRAGMA wal_checkpoint(TRUNCATE)");
    run(db, "VACUUM");
    run(db, "PRAGMA wal_checkpoint(RESTART)");
    run(db, "UPDATE t SET x = 'end' WHERE id = 1");
}

/* ---- a VFS around another -------------------------------------------------------------------- */

typedef struct {
    sqlite3_file base;
    int changes; /* whether it changes what goes through */
    int sums;    /* whether the end of each page is a sum of the others */
} Around;

static sqlite3_vfs around;
static int above; /* whether it gives names of its own */
static enum { NOTHING, BYTES, SUMS } what_changes;

static sqlite3_vfs *under(void) { return around.pAppData; }
static sqlite3_file *inner(sqlite3_file *file) { return (sqlite3_file *) ((Around *) file + 1); }
#define REAL(file) inner(file)->pMethods

static void before_read(int n);
static int a_close(sqlite3_file *f) {
    before_read(0);
    return REAL(f)->xClose(inner(f));
}
static void turn(unsigned char *bytes, int n) {
    for (int at = 0; at < n; at++) bytes[at] ^= 0x5a;
}
static int is_page(int n) { return n >= 512 && (n & (n - 1)) == 0; }
static void sum(const unsigned char *page, int n, unsigned char *out) {
    sqlite3_uint64 all = 14695981039346656037u;
    for (int at = 0; at < n - (int) sizeof all; at++) all = (all ^ page[at]) * 1099511628211u;
    memcpy(out, &all, sizeof all);
}
static int a_read(sqlite3_file *f, void *to, int n, sqlite3_int64 at) {
    before_read(n);
    int rc = REAL(f)->xRead(inner(f), to, n, at);
    sqlite3_int64 size = 0;
    if (((Around *) f)->sums && rc == SQLITE_OK && is_page(n)) {
        unsigned char wanted[8];
        sum(to, n, wanted);
        if (memcmp(wanted, (char *) to + n - 8, 8)) return SQLITE_IOERR_DATA;
    }
    if (((Around *) f)->changes && (rc == SQLITE_OK || rc == SQLITE_IOERR_SHORT_READ)) {
        REAL(f)->xFileSize(inner(f), &size);
        turn(to, at + n <= size ? n : at < size ? (int) (size - at) : 0);
    }
    return rc;
}
static int a_write(sqlite3_file *f, const void *from, int n, sqlite3_int64 at) {
    Around *file = (Around *) f;
    if (!file->changes && !(file->sums && is_page(n))) return REAL(f)->xWrite(inner(f), from, n, at);
    unsigned char *copy = malloc(n);
    memcpy(copy, from, n);
    if (file->changes) turn(copy, n);
    else sum(copy, n, copy + n - 8);
    int rc = REAL(f)->xWrite(inner(f), copy, n, at);
    free(copy);
    return rc;
}
static int a_truncate(sqlite3_file *f, sqlite3_int64 n) { return REAL(f)->xTruncate(inner(f), n); }
static int a_sync(sqlite3_file *f, int flags) { return REAL(f)->xSync(inner(f), flags); }
static int a_size(sqlite3_file *f, sqlite3_int64 *n) { return REAL(f)->xFileSize(inner(f), n); }
static int a_lock(sqlite3_file *f, int level) { return REAL(f)->xLock(inner(f), level); }
static int a_unlock(sqlite3_file *f, int level) { return REAL(f)->xUnlock(inner(f), level); }
static int a_reserved(sqlite3_file *f, int *out) { return REAL(f)->xCheckReservedLock(inner(f), out); }
static int a_control(sqlite3_file *f, int op, void *with) { return REAL(f)->xFileControl(inner(f), op, with); }
static int a_sector(sqlite3_file *f) { return REAL(f)->xSectorSize(inner(f)); }
static int a_device(sqlite3_file *f) { return REAL(f)->xDeviceCharacteristics(inner(f)); }
static int a_map(sqlite3_file *f, int at, int n, int extend, void volatile **out) {
    return REAL(f)->xShmMap(inner(f), at, n, extend, out);
}
static void before_shm_lock(int at, int n, int flags);
static int a_shm_lock(sqlite3_file *f, int at, int n, int flags) {
    before_shm_lock(at, n, flags);
    return REAL(f)->xShmLock(inner(f), at, n, flags);
}
static void a_barrier(sqlite3_file *f) { REAL(f)->xShmBarrier(inner(f)); }
static int a_unmap(sqlite3_file *f, int gone) { return REAL(f)->xShmUnmap(inner(f), gone); }

static const sqlite3_io_methods METHODS = {
    2, a_close, a_read, a_write, a_truncate, a_sync, a_size, a_lock, a_unlock, a_reserved, a_control,
    a_sector, a_device, a_map, a_shm_lock, a_barrier, a_unmap, NULL, NULL};

/* A copy of a name with nothing before it: the page in front cannot be read. */
static const char *alone(const char *name, int flags) {
    /* SQLite's own VFS asks for the parameters of a database's name: that must stay SQLite's. */
    if (!name || !above || (flags & SQLITE_OPEN_MAIN_DB)) return name;
    size_t page = (size_t) sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 3 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(pages, page, PROT_NONE);
    strcpy(pages + page, name);
    return pages + page;
}

static int a_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out) {
    (void) vfs;
    Around *f = (Around *) file;
    memset(f, 0, around.szOsFile);
    int rc = under()->xOpen(under(), alone(name, flags), inner(file), flags, out);
    if (inner(file)->pMethods) {
        f->base.pMethods = &METHODS;
        int kept = (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL | SQLITE_OPEN_MAIN_JOURNAL)) != 0;
        f->changes = kept && what_changes == BYTES;
        f->sums = kept && what_changes == SUMS;
    }
    return rc;
}

static void around_default(const char *name, int is_above, int is_default) {
    sqlite3_vfs *base = sqlite3_vfs_find(NULL);
    above = is_above;
    around = *base;
    around.zName = name;
    around.pNext = NULL;
    around.pAppData = base;
    around.szOsFile = (int) sizeof(Around) + base->szOsFile;
    around.xOpen = a_open;
    if (sqlite3_vfs_register(&around, is_default) != SQLITE_OK) fail("vfs", name);
}

/* The other methods of the copied structure are those of the VFS underneath: they take what they are
** called with for their own, which is so for SQLite's and, as ours reads its data, not for walferry's. */
static int a_delete(sqlite3_vfs *v, const char *name, int sync) { (void) v; return under()->xDelete(under(), name, sync); }
static int a_access(sqlite3_vfs *v, const char *name, int flags, int *out) { (void) v; return under()->xAccess(under(), name, flags, out); }
static int a_full(sqlite3_vfs *v, const char *name, int n, char *out) { (void) v; return under()->xFullPathname(under(), name, n, out); }
static int a_random(sqlite3_vfs *v, int n, char *out) { (void) v; return under()->xRandomness(under(), n, out); }
static int a_sleep(sqlite3_vfs *v, int us) { (void) v; return under()->xSleep(under(), us); }
static int a_time(sqlite3_vfs *v, double *out) { (void) v; return under()->xCurrentTime(under(), out); }
static int a_time64(sqlite3_vfs *v, sqlite3_int64 *out) { (void) v; return under()->xCurrentTimeInt64(under(), out); }
static int a_error(sqlite3_vfs *v, int n, char *out) { (void) v; return under()->xGetLastError(under(), n, out); }

static void whole(void) {
    around.iVersion = 2;
    around.xDelete = a_delete;
    around.xAccess = a_access;
    around.xFullPathname = a_full;
    around.xRandomness = a_random;
    around.xSleep = a_sleep;
    around.xCurrentTime = a_time;
    around.xCurrentTimeInt64 = a_time64;
    around.xGetLastError = a_error;
}

/* ---- the programs ---------------------------------------------------------------------------- */

static int single(const char *extension) {
    sqlite3 *db;
    char *why = "loaded";
    sqlite3_config(SQLITE_CONFIG_SINGLETHREAD);
    sqlite3_open(":memory:", &db);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    sqlite3_load_extension(db, extension, NULL, &why);
    puts(why);
    return 0;
}

static int beside(const char *name, const char *extension, const char *path, int is_alone) {
    sqlite3 *db;
    int is_above = !strcmp(name, "above");
    if (is_above) load(extension);
    else what_changes = BYTES;
    around_default(name, is_above, 1);
    whole();
    if (!is_above) load(extension);
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    if (is_alone) run(db, "PRAGMA locking_mode=EXCLUSIVE");
    work(db);
    if (is_above) one(db, "SELECT walferry_sync(20000)");
    puts(one(db, "SELECT walferry_status()"));
    sqlite3_close(db);
    return 0;
}

/* A new database that nobody puts into WAL mode, through a VFS that was registered after walferry's. */
static int over(const char *name, int changes, const char *extension, const char *path) {
    sqlite3 *db;
    int reserved = 8;
    load(extension);
    what_changes = changes;
    around_default(name, 1, changes == BYTES);
    whole();
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, name) != SQLITE_OK)
        fail("open", sqlite3_errmsg(db));
    if (changes == SUMS) sqlite3_file_control(db, "main", SQLITE_FCNTL_RESERVE_BYTES, &reserved);
    sqlite3_busy_timeout(db, 10000);
    run(db, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)");
    for (int n = 1; n <= ROWS; n++) run(db, "INSERT INTO t (x) VALUES (hex(randomblob(300)))");
    sqlite3_close(db);
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE, name) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    run(db, "INSERT INTO t (x) VALUES ('end')");
    if (strcmp(one(db, "PRAGMA integrity_check"), "ok")) fail("integrity", one(db, "PRAGMA integrity_check"));
    puts(one(db, "SELECT walferry_status()"));
    sqlite3_close(db);
    return 0;
}

/* Walferry is loaded on the connection itself, which names a VFS that is not the default. */
static int on_its_own(const char *extension, const char *path) {
    sqlite3 *db;
    char *why = NULL;
    what_changes = BYTES;
    around_default("below", 0, 0);
    whole();
    if (sqlite3_open_v2(path, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, "below") != SQLITE_OK)
        fail("open", sqlite3_errmsg(db));
    work(db);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    if (sqlite3_load_extension(db, extension, NULL, &why) != SQLITE_OK) fail("load", why);
    run(db, "UPDATE t SET x = 'end' WHERE id = 2");
    puts(one(db, "SELECT walferry_status()"));
    sqlite3_close(db);
    return 0;
}

static int dotfile(const char *extension, const char *path) {
    sqlite3 *db;
    char mode[20];
    sqlite3_vfs_register(sqlite3_vfs_find("unix-dotfile"), 1);
    load(extension);
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    run(db, "CREATE TABLE t (x)");
    snprintf(mode, sizeof mode, "%s", one(db, "PRAGMA journal_mode=WAL"));
    run(db, "INSERT INTO t VALUES ('end')");
    printf("%s %s\n", mode, one(db, "SELECT x FROM t"));
    sqlite3_close(db);
    return 0;
}

static int read_back(const char *path) {
    sqlite3 *db;
    what_changes = BYTES;
    around_default("below", 0, 1);
    whole();
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    if (strcmp(one(db, "PRAGMA integrity_check"), "ok")) fail("integrity", one(db, "PRAGMA integrity_check"));
    puts(one(db, "SELECT count(*) FROM t"));
    sqlite3_close(db);
    return 0;
}

/* ---- memory that is not to be had ------------------------------------------------------------ */

static sqlite3_mem_methods sqlites;
static int until_failure = -1; /* allocations; below 0 none fails */
static int fails_on, failed;

static int is_denied(void) {
    if (until_failure < 0 || until_failure-- > 0) return 0;
    if (fails_on) until_failure = 0;
    failed = 1;
    return 1;
}
static void *some(int n) { return is_denied() ? NULL : sqlites.xMalloc(n); }
static void *more(void *old, int n) { return is_denied() ? NULL : sqlites.xRealloc(old, n); }

static int loaded;

static void *try_to_load(void *extension) {
    sqlite3 *db;
    int at = until_failure;
    until_failure = -1;
    sqlite3_open(":memory:", &db);
    sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    until_failure = at;
    loaded = sqlite3_load_extension(db, extension, NULL, NULL) == SQLITE_OK;
    until_failure = -1;
    sqlite3_close(db);
    return NULL;
}

/* One attempt, in a process of its own: 1 if no allocation had to fail. A library stays for as long as a
 * thread that has used it; so this one ends, and then the library is closed once more. */
static int with_failure(const char *extension, const char *path, int at, int on) {
    sqlite3 *db;
    pthread_t thread;
    char name[4000];
    until_failure = at, fails_on = on;
    pthread_create(&thread, NULL, try_to_load, (void *) extension);
    pthread_join(thread, NULL);
    dlclose(dlopen(extension, RTLD_NOW));
    if (loaded && !failed) return 1;
    if (!loaded && sqlite3_vfs_find("walferry")) fail("load", "an error, and the VFS is left");
    snprintf(name, sizeof name, "%s.%d.%d", path, at, on);
    if (sqlite3_open(name, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    run(db, "PRAGMA journal_mode=WAL; CREATE TABLE t (x)");
    sqlite3_close(db);
    load(extension);
    if (sqlite3_open(name, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    run(db, "INSERT INTO t VALUES ('end')");
    if (at % 10 == 0) run(db, "SELECT walferry_sync(60000)");
    sqlite3_close(db);
    return 0;
}

static int memory(const char *extension, const char *path) {
    sqlite3_mem_methods ours;
    sqlite3_config(SQLITE_CONFIG_GETMALLOC, &sqlites);
    ours = sqlites, ours.xMalloc = some, ours.xRealloc = more;
    sqlite3_config(SQLITE_CONFIG_MALLOC, &ours);
    for (int on = 0; on < 2; on++) {
        int at = 0, status = 0;
        do {
            pid_t child = fork();
            if (child == 0) _exit(with_failure(extension, path, at, on) ? 77 : 0);
            waitpid(child, &status, 0);
            if (status && status != 77 << 8) {
                fprintf(stderr, "allocation %d: status %x\n", at, status);
                return 1;
            }
            at++;
        } while (status == 0);
        if (at < 10) fail("memory", "no allocations");
    }
    puts("end");
    return 0;
}

/* ---- sqlite3_shutdown() ---------------------------------------------------------------------- */

static int exists(const char *pattern) {
    glob_t found;
    int rc = glob(pattern, 0, NULL, &found);
    globfree(&found);
    return rc == 0;
}

static int says(const char *path, const char *words) {
    char line[4000];
    int said = 0;
    FILE *file = fopen(path, "r");
    while (file && !said && fgets(line, sizeof line, file)) said = strstr(line, words) != NULL;
    if (file) fclose(file);
    return said;
}

static pthread_mutex_t walk_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t walk_news = PTHREAD_COND_INITIALIZER;
static enum { FREE, HELD_BACK, READS, DOWN } walk;
static int called; /* by a thread of walferry's, after the shutdown */

static void walks_on(int from, int to) {
    pthread_mutex_lock(&walk_lock);
    while ((int) walk < from) pthread_cond_wait(&walk_news, &walk_lock);
    walk = to;
    pthread_cond_broadcast(&walk_news);
    pthread_mutex_unlock(&walk_lock);
}

static void before_read(int n) {
    char name[16] = "";
    pthread_getname_np(pthread_self(), name, sizeof name);
    if (strncmp(name, "walferry", 8)) return;
    pthread_mutex_lock(&walk_lock);
    if (walk == DOWN) called++;
    /* One that begins reads no more than a page at once. */
    if (walk == HELD_BACK && n >= 1 << 16) {
        walk = READS;
        pthread_cond_broadcast(&walk_news);
        while (walk == READS) pthread_cond_wait(&walk_news, &walk_lock);
    }
    pthread_mutex_unlock(&walk_lock);
}

/* A file is where the store's folder should be, for as long as SQLite is not shut down; or as long as the
 * database is open, and the shutdown comes while walferry reads it. */
static int shut_down(const char *extension, const char *path, const char *store, const char *log, int reads) {
    sqlite3 *db;
    char image[4000];
    snprintf(image, sizeof image, "%s/ltx/9/*.ltx", store);
    if (reads) {
        around_default("unix", 0, 1);
        whole();
        walk = HELD_BACK;
    }
    load(extension);
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    if (reads) one(db, "SELECT count(*) FROM t");
    else work(db);
    sqlite3_close(db);
    if (reads) {
        if (unlink(store)) fail("unlink", store);
        walks_on(READS, READS);
    }
    if (sqlite3_shutdown() != SQLITE_OK) fail("shutdown", "refused");
    if (reads) walks_on(READS, DOWN);
    else if (unlink(store)) fail("unlink", store);
    for (int waited = 0; !exists(image) && !says(log, "has shut SQLite down"); waited++) {
        if (waited > 6000) fail("shutdown", "nothing happens");
        usleep(10000);
    }
    printf("%s, %d calls\n", sqlite3_config(SQLITE_CONFIG_URI, 0) == SQLITE_OK ? "shut down" : "initialized", called);
    walks_on(FREE, FREE);
    if (reads) {
        /* The default is SQLite's own again. */
        sqlite3_initialize();
        sqlite3_vfs_register(&around, 1);
    }
    load(extension);
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    run(db, "SELECT walferry_sync(60000)");
    sqlite3_close(db);
    return 0;
}

/* ---- a lock that is waited for --------------------------------------------------------------- */

static pthread_mutex_t slots_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static enum { NEVER, WANTED, ASKED, DONE, LATE } slots;

/* As SQLite's own does, built with SQLITE_ENABLE_SETLK_TIMEOUT, while a reader of another process has one. */
static void before_shm_lock(int at, int n, int flags) {
    struct timespec end;
    pthread_mutex_lock(&slots_lock);
    if (slots == WANTED && at == 4 && n == 4 && flags == (SQLITE_SHM_LOCK | SQLITE_SHM_EXCLUSIVE)) {
        slots = ASKED;
        pthread_cond_broadcast(&news);
        clock_gettime(CLOCK_REALTIME, &end);
        end.tv_sec += 20;
        while (slots == ASKED)
            if (pthread_cond_timedwait(&news, &slots_lock, &end)) slots = LATE;
    }
    pthread_mutex_unlock(&slots_lock);
}

static void *begins_anew(void *db) {
    run(db, "PRAGMA wal_checkpoint(RESTART)");
    return NULL;
}

static int waits(const char *extension, const char *path) {
    sqlite3 *db, *other;
    pthread_t thread;
    around_default("unix", 0, 1);
    whole();
    load(extension);
    if (sqlite3_open(path, &db) != SQLITE_OK) fail("open", sqlite3_errmsg(db));
    work(db);
    run(db, "SELECT walferry_sync(60000)");
    slots = WANTED;
    pthread_create(&thread, NULL, begins_anew, db);
    pthread_mutex_lock(&slots_lock);
    while (slots == WANTED) pthread_cond_wait(&news, &slots_lock);
    pthread_mutex_unlock(&slots_lock);
    if (sqlite3_open(path, &other) != SQLITE_OK) fail("open", sqlite3_errmsg(other));
    one(other, "SELECT count(*) FROM t");
    sqlite3_close(other);
    pthread_mutex_lock(&slots_lock);
    puts(slots == ASKED ? "in time" : "late");
    slots = DONE;
    pthread_cond_broadcast(&news);
    pthread_mutex_unlock(&slots_lock);
    pthread_join(thread, NULL);
    run(db, "INSERT INTO t (x) VALUES ('end'); SELECT walferry_sync(60000)");
    sqlite3_close(db);
    return 0;
}

int main(int count, char **args) {
    const char *what = count > 2 ? args[1] : "";
    if (!strcmp(what, "single")) return single(args[2]);
    if (!strcmp(what, "above") && count > 3) return beside("above", args[2], args[3], 0);
    if (!strcmp(what, "codec") && count > 3) return over("codec", BYTES, args[2], args[3]);
    if (!strcmp(what, "sums") && count > 3) return over("sums", SUMS, args[2], args[3]);
    if (!strcmp(what, "dotfile") && count > 3) return dotfile(args[2], args[3]);
    if (!strcmp(what, "below") && count > 3) return beside("below", args[2], args[3], 0);
    if (!strcmp(what, "loads") && count > 3) return on_its_own(args[2], args[3]);
    if (!strcmp(what, "named") && count > 3) return beside("unix", args[2], args[3], count > 4);
    if (!strcmp(what, "memory") && count > 3) return memory(args[2], args[3]);
    if (!strcmp(what, "shutdown") && count > 5) return shut_down(args[2], args[3], args[4], args[5], count > 6);
    if (!strcmp(what, "waits") && count > 3) return waits(args[2], args[3]);
    if (!strcmp(what, "read")) return read_back(args[2]);
    fail("usage", "see the top of guest.c");
}
