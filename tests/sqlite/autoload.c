/* Linked into SQLite's test program: loads the extension each time SQLite is initialized.
**
** tests/scripts/sqlite-tests.sh builds SQLite with SQLITE_EXTRA_INIT=sqlite_tests_init, so
** sqlite3_initialize() calls sqlite_tests_init() at its end: at the start of the process, and again
** after each sqlite3_shutdown(), which has made "unix" the default VFS.
**
** The environment decides, so that both sides of a comparison are the same program:
**
**   SQLITE_TESTS_EXTENSION=path   load this extension (without: SQLite alone)
**   SQLITE_TESTS_WAL=1            put each database into WAL mode when a script opens it
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include "sqlite3.h"

/* True in a thread of walferry, which opens connections of its own. */
static int is_walferrys(void){
  char name[16] = "";
  return prctl(PR_GET_NAME, name)==0 && strncmp(name, "walferry", 8)==0;
}

/* The automatic extension that puts a database into WAL mode, unless walferry opens it: the script may
** have chosen another mode since. An error stays without consequence: sqlite3_open() would return the
** error that the connection saw last, and sqlite3_exec() clears it. */
static int into_wal_mode(sqlite3 *db, char **message, const void *api){
  (void)message;
  (void)api;
  if( is_walferrys() ) return SQLITE_OK;
  sqlite3_exec(db, "PRAGMA main.journal_mode=WAL", 0, 0, 0);
  sqlite3_exec(db, "", 0, 0, 0);
  return SQLITE_OK;
}

/* Loads the extension as a host does: by a connection that is closed again. */
static int load(const char *extension){
  sqlite3 *db = 0;
  char *why = 0;
  int rc = sqlite3_open_v2(":memory:", &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 0);
  if( rc==SQLITE_OK ) rc = sqlite3_db_config(db, SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1, (int*)0);
  if( rc==SQLITE_OK ) rc = sqlite3_load_extension(db, extension, 0, &why);
  if( rc!=SQLITE_OK ){
    fprintf(stderr, "\nautoload: the extension was not loaded: %s\n", why ? why : sqlite3_errstr(rc));
  }
  sqlite3_free(why);
  sqlite3_close(db);
  return rc;
}

int sqlite_tests_init(const char *unused){
  const char *extension = getenv("SQLITE_TESTS_EXTENSION");
  const char *wal = getenv("SQLITE_TESTS_WAL");
  int rc = SQLITE_OK;
  (void)unused;
  if( extension && extension[0] ) rc = load(extension);
  if( rc==SQLITE_OK && wal && wal[0] ) rc = sqlite3_auto_extension((void(*)(void))into_wal_mode);
  return rc;
}
