/* A program that gets SQLite as a plugin, and unloads it while walferry is at work: unload EXT DB [close]
 *
 * Nothing is linked to SQLite: with the last dlclose() its code is gone, unless somebody keeps it.
 */
#include <dlfcn.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#define LIBRARY "libsqlite3.so.0"

static void fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why ? why : "");
    exit(1);
}

int main(int count, char **args) {
    if (count < 3) fail("usage", "unload EXT DB [close]");
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) fail("dlopen", dlerror());
    int (*open)(const char *, sqlite3 **) = dlsym(library, "sqlite3_open");
    int (*config)(sqlite3 *, int, ...) = dlsym(library, "sqlite3_db_config");
    int (*load)(sqlite3 *, const char *, const char *, char **) = dlsym(library, "sqlite3_load_extension");
    int (*exec)(sqlite3 *, const char *, void *, void *, char **) = dlsym(library, "sqlite3_exec");
    int (*close)(sqlite3 *) = dlsym(library, "sqlite3_close");
    sqlite3 *memory, *db;
    char *why = NULL;
    open(":memory:", &memory);
    config(memory, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, NULL);
    if (load(memory, args[1], NULL, &why)) fail("load", why);
    close(memory);
    if (open(args[2], &db)) fail("open", args[2]);
    const char *sql = "CREATE TABLE t (id INTEGER PRIMARY KEY, x); INSERT INTO t (x) VALUES ('end')";
    if (exec(db, sql, NULL, NULL, &why)) fail(sql, why);
    if (count > 3) close(db);
    dlclose(library);
    puts("unloaded");
    return 0;
}
