"""walferry_sync() and walferry_wait() speak of the caller's own commits, or say why they cannot.

An answer without an error means: each replicated database of this connection has this connection's
last commit at each of its replicas.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import apsw
import pytest

from harness import (EXTENSION, DirectoryReplica, HostError, assert_restores, clean_environment,
                     file_uri, restore, rows, stop)
from test_fork import program  # noqa: F401  a fixture
from test_processes import until

TABLE = "CREATE TABLE IF NOT EXISTS t (x)"
# A shipper that sends nothing by itself: what has arrived was asked for.
IDLE = {"WALFERRY_SYNC_INTERVAL": "1h"}
# Asks long enough for a commit to arrive, and is short where none can.
SYNC = "SELECT walferry_sync(5000)"


def begin(host, database, conn="main", **uri):
    host.open(database, conn, **uri)
    host.sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t VALUES ('first')", conn=conn)
    host.sync(conn)
    return host


def content(replica, folder):
    """What the table has at the replica now."""
    output = restore(replica, folder / "arrived.db")
    got = [x for x, in rows(output, "SELECT x FROM t ORDER BY rowid")]
    output.unlink()
    return got


def refuses(host, why, conn="main"):
    """None of the functions that speak of this connection's commits says that all is well."""
    for function in ("sync(5000)", "wait(5000)", "lag()"):
        with pytest.raises(HostError, match=why):
            host.value("SELECT walferry_%s" % function, conn)


# ---- the file is not the one that is replicated ----------------------------------------------


def rename(database, folder):
    os.rename(database, folder / "elsewhere.db")


def replace(database, folder):
    shutil.copy(database, folder / "other.db")
    os.rename(folder / "other.db", database)


def delete(database, folder):
    os.unlink(database)


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "at once"])
@pytest.mark.parametrize("what", [rename, replace, delete])
def test_a_file_that_is_gone_is_an_error(what, noticed, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host("system", replica), database)
    what(database, tmp_path)
    if noticed:
        until(lambda: host.status(database)["state"] == "error", "walferry notices")
    host.sql("INSERT INTO t VALUES ('lost')")
    refuses(host, "deleted, renamed or replaced")


def test_the_pool_has_a_connection_to_the_file_before(new_host, replica, tmp_path):
    """One connection of a pool has the old file, and another one the file that took its place."""
    database = tmp_path / "app.db"
    host = begin(new_host("apsw", replica), database, "old")
    replace(database, tmp_path)
    for end in ("-wal", "-shm"):
        os.unlink(str(database) + end)
    host.open(database, "new")
    host.sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t VALUES ('new')", conn="new")
    host.sync("new")
    host.sql("INSERT INTO t VALUES ('old')", conn="old")
    refuses(host, "deleted, renamed or replaced", "old")
    host.sync("new")
    assert "old" not in content(replica, tmp_path)


@pytest.mark.parametrize("pool", [False, True], ids=["idle", "pool"])
@pytest.mark.parametrize("what", [replace, delete])
def test_who_keeps_the_old_file_open_is_not_in_the_way(what, pool, new_host, replica, tmp_path):
    """It ships nothing of the file that is there now: who has that open does."""
    database = tmp_path / "app.db"
    old = begin(new_host("system", replica), database, "old")
    what(database, tmp_path)
    for end in ("-wal", "-shm"):
        os.unlink(str(database) + end)
    new = new_host("apsw", replica).open(database)
    new.sql("PRAGMA journal_mode=WAL", TABLE)
    for number in range(3):
        if pool:
            old.open(database, "passing")
            old.sql("SELECT count(*) FROM t", conn="passing")
            old.close("passing")
        new.sql("INSERT INTO t VALUES (%d)" % number)
        assert new.value("SELECT walferry_lag()") != 0 or content(replica, tmp_path)[-1] == number
        new.sync()
        assert content(replica, tmp_path)[-1] == number
    old.sql("INSERT INTO t VALUES ('old')", conn="old")
    refuses(old, "deleted, renamed or replaced", "old")


def test_a_connection_around_walferry_is_an_error(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host("system", replica), database)
    host.open(database, "around", vfs="unix")
    host.close()
    host.sql("INSERT INTO t VALUES ('around')", conn="around")
    refuses(host, "not opened through walferry", "around")
    # Nor while another connection watches the file.
    host.open(database)
    host.sql("SELECT * FROM t")
    refuses(host, "not opened through walferry", "around")
    host.sync()
    assert content(replica, tmp_path) == ["first", "around"]


def test_an_inherited_connection_is_an_error(program):
    program("""
load()
db = connect()
write(db, "parent", 3)
sync(db)

def body():
    own = connect()
    write(own, "child", 3)
    sync(own)
    try:
        print(sync(db), flush=True)
    except sqlite3.OperationalError as error:
        assert "fork" in str(error), error
    else:
        raise SystemExit(3)

join(child(body))
""")


# ---- loaded once more ------------------------------------------------------------------------

LIVES = """
import ctypes, os, sys
sqlite = ctypes.CDLL("libsqlite3.so.0")
sqlite.sqlite3_errmsg.restype = ctypes.c_char_p
sqlite.sqlite3_column_text.restype = ctypes.c_char_p
sqlite.sqlite3_errmsg.argtypes = sqlite.sqlite3_close.argtypes = [ctypes.c_void_p]
sqlite.sqlite3_step.argtypes = sqlite.sqlite3_finalize.argtypes = [ctypes.c_void_p]
sqlite.sqlite3_column_text.argtypes = sqlite.sqlite3_enable_load_extension.argtypes = [
    ctypes.c_void_p, ctypes.c_int]
sqlite.sqlite3_open.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
sqlite.sqlite3_prepare_v2.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int,
                                      ctypes.c_void_p, ctypes.c_void_p]
sqlite.sqlite3_load_extension.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p,
                                          ctypes.c_void_p]

def connect(name):
    db = ctypes.c_void_p()
    assert sqlite.sqlite3_open(name.encode(), ctypes.byref(db)) == 0
    return db

def load():
    db = connect(":memory:")
    sqlite.sqlite3_enable_load_extension(db, 1)
    rc = sqlite.sqlite3_load_extension(db, os.environ["EXTENSION"].encode(), None, None)
    assert rc == 0, sqlite.sqlite3_errmsg(db)
    return db

def run(db, sql):
    statement = ctypes.c_void_p()
    rc = sqlite.sqlite3_prepare_v2(db, sql.encode(), -1, ctypes.byref(statement), None)
    assert rc == 0, sqlite.sqlite3_errmsg(db)
    got, rc = None, sqlite.sqlite3_step(statement)
    while rc == 100:
        got = got or sqlite.sqlite3_column_text(statement, 0)
        rc = sqlite.sqlite3_step(statement)
    assert rc == 101, sqlite.sqlite3_errmsg(db)
    sqlite.sqlite3_finalize(statement)
    return got and got.decode()

def life(row):
    loader = load()
    db = connect(os.environ["DATABASE"])
    run(db, "PRAGMA journal_mode=WAL")
    run(db, "CREATE TABLE IF NOT EXISTS t (x)")
    run(db, "INSERT INTO t VALUES ('%s')" % row)
    run(db, "SELECT walferry_sync(20000)")
    # Each connection may load it.
    second = load()
    assert sqlite.sqlite3_close(db) == sqlite.sqlite3_close(loader) == sqlite.sqlite3_close(second) == 0

"""


AGAIN = """
for row in ("one", "two", "three"):
    assert sqlite.sqlite3_initialize() == 0
    life(row)
    assert sqlite.sqlite3_shutdown() == 0
"""


def test_loaded_again_after_shutdown(replica, tmp_path):
    """sqlite3_shutdown() makes `unix` the default VFS again; the next load takes it back."""
    done = subprocess.run(
        ["/usr/bin/python3", "-c", LIVES + AGAIN], text=True, capture_output=True, timeout=120,
        env=dict(clean_environment(), EXTENSION=str(EXTENSION.with_suffix("")),
                 DATABASE=str(tmp_path / "app.db"), WALFERRY_REPLICA=replica.url))
    assert done.returncode == 0, done.stderr
    assert content(replica, tmp_path) == ["one", "two", "three"]


OTHER_DEFAULT = """
sqlite.sqlite3_vfs_find.restype = ctypes.c_void_p
sqlite.sqlite3_vfs_register.argtypes = [ctypes.c_void_p, ctypes.c_int]
assert sqlite.sqlite3_initialize() == 0
assert sqlite.sqlite3_vfs_register(sqlite.sqlite3_vfs_find(b"unix-excl"), 1) == 0
life("one")
assert sqlite.sqlite3_shutdown() == 0
assert sqlite.sqlite3_initialize() == 0
for _ in range(2):
    assert sqlite.sqlite3_close(load()) == 0
"""


def test_default_vfs_after_shutdown_is_another_one_than_before(replica, tmp_path):
    log = tmp_path / "log"
    subprocess.run(
        ["/usr/bin/python3", "-c", LIVES + OTHER_DEFAULT], check=True, timeout=120,
        env=dict(clean_environment(), EXTENSION=str(EXTENSION.with_suffix("")), WALFERRY_LOG_FILE=str(log),
                 DATABASE=str(tmp_path / "app.db"), WALFERRY_REPLICA=replica.url))
    assert log.read_text().count("not the default VFS again") == 1, log.read_text()


# ---- several databases of one connection -----------------------------------------------------


class Two:
    """A connection with a main database and an attached one, each with a replica of its own."""

    def __init__(self, new_host, new_replica, folder, main=True):
        self.main, self.other = folder / "main.db", folder / "other.db"
        self.replicas = new_replica(), new_replica()
        self.host = new_host("apsw", env=IDLE)
        self.host.open(self.main if main else "file::memory:",
                       **({"replica": self.replicas[0].url} if main else {}))
        self.host.sql("PRAGMA journal_mode=WAL", TABLE)
        self.attach(self.other, "o\"ther", self.replicas[1].url)
        self.host.sql('PRAGMA "o""ther".journal_mode=WAL', 'CREATE TABLE "o""ther".u (x)')

    def attach(self, path, name, url):
        uri = file_uri(path, replica=url) if url else str(path)
        self.host.sql("ATTACH '%s' AS \"%s\"" % (uri, name.replace('"', '""')))

    def commit(self, value):
        self.host.sql("BEGIN", "INSERT INTO t VALUES ('%s')" % value,
                      "INSERT INTO u VALUES ('%s')" % value, "COMMIT")


@pytest.mark.parametrize("function", ["sync", "wait"])
def test_one_commit_to_two_databases_is_at_both_replicas(function, new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    for number in range(5):
        two.commit(str(number))
        if function == "wait":
            # Waiting leaves the moment to the interval: the first commit after a pause goes at once.
            two.host.sync()
        two.host.value("SELECT walferry_%s(20000)" % function)
        for replica, database in zip(two.replicas, (two.main, two.other)):
            assert_restores(replica, database, tmp_path)
    assert two.host.value("SELECT walferry_lag()") == 0


def test_the_store_of_an_attached_database_is_down(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    two.commit("both")
    two.host.sync()
    shutil.rmtree(two.replicas[1].folder)
    two.commit("one")
    for function in ("sync", "wait"):
        with pytest.raises(HostError, match="not replicated in time: .*other.db"):
            two.host.value("SELECT walferry_%s(3000)" % function)
    assert two.host.value("SELECT walferry_lag()") > 0
    assert_restores(two.replicas[0], two.main, tmp_path)


def test_an_attached_file_that_is_gone_is_an_error(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    two.commit("both")
    two.host.sync()
    rename(two.other, tmp_path)
    two.commit("one")
    refuses(two.host, "deleted, renamed or replaced.*other.db")


def test_main_in_memory_and_a_replicated_one_attached(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path, main=False)
    two.commit("x")
    two.host.sync()
    assert_restores(two.replicas[1], two.other, tmp_path)
    assert two.host.value("SELECT walferry_lag()") == 0


def test_what_has_no_replica_is_passed_over_and_told(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    two.attach(tmp_path / "plain.db", "plain", None)
    two.host.sql("CREATE TABLE plain.p (x)", "CREATE TEMP TABLE q (x)", "ATTACH ':memory:' AS m",
                 "CREATE TABLE m.r (x)")
    two.commit("x")
    two.host.sync()
    status = two.host.status()
    told = [one for one in status if one["state"] == "not-replicated"]
    assert [(one["schema"], one["database"]) for one in told] == [("plain", str(tmp_path / "plain.db"))]
    assert told[0]["lag_ms"] is None and told[0]["replica"] is None
    assert len(status) == 3 and not any("schema" in one for one in status if one not in told)
    # The main database is the one that is meant: without a replica it is no success.
    two.host.call("open", "plain", name=file_uri(tmp_path / "plain.db"))
    two.host.sql("ATTACH '%s' AS other" % file_uri(two.other, replica=two.replicas[1].url), conn="plain")
    with pytest.raises(HostError, match="not replicated"):
        two.host.value(SYNC, "plain")


def test_attached_databases_without_a_commit_of_this_connection(new_host, new_replica, tmp_path):
    """One that was never written to, and one that can only be read, whatever becomes of its file."""
    two = Two(new_host, new_replica, tmp_path)
    two.attach(tmp_path / "new.db", "new", new_replica().url)
    read_only = file_uri(tmp_path / "read.db", mode="ro", replica=new_replica().url)
    with apsw.Connection(str(tmp_path / "read.db")) as plain:
        plain.execute("CREATE TABLE v (x)")
    plain.close()
    two.host.sql("ATTACH '%s' AS readable" % read_only, "SELECT * FROM readable.v")
    two.commit("x")
    two.host.sync()
    os.unlink(tmp_path / "read.db")
    two.host.sync()
    # Written to, it counts.
    two.host.sql("CREATE TABLE new.w (x)")
    os.unlink(tmp_path / "new.db")
    refuses(two.host, "deleted, renamed or replaced.*new.db")


def test_a_rollback_journal_is_an_error(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    two.host.sql('PRAGMA "o""ther".journal_mode=DELETE')
    two.commit("x")
    with pytest.raises(HostError, match="only WAL mode is replicated.*other.db"):
        two.host.value(SYNC)


def test_an_attached_database_whose_replica_is_refused(new_host, new_replica, tmp_path):
    two = Two(new_host, new_replica, tmp_path)
    two.attach(tmp_path / "same.db", "same", two.replicas[0].url)
    two.host.sql("CREATE TABLE same.v (x)")
    two.commit("x")
    with pytest.raises(HostError, match="have the same replica"):
        two.host.value(SYNC)


def test_attached_to_a_connection_that_was_open_before(new_host, tmp_path):
    """Its attached databases do not go through walferry, though a replica is named for all."""
    host = new_host("apsw", load=False, env={"WALFERRY_REPLICA": "file://%s/{name}" % (tmp_path / "all")})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.call("load", path=str(EXTENSION.with_suffix("")))
    host.sync()
    host.sql("ATTACH '%s' AS other" % (tmp_path / "other.db"), "PRAGMA other.journal_mode=WAL",
             "CREATE TABLE other.u (x)")
    with pytest.raises(HostError, match="not opened through walferry"):
        host.value(SYNC)
    host.sql("DETACH other")
    host.sync()


# ---- a process that stands by ----------------------------------------------------------------


@pytest.fixture
def standby(new_host, replica, tmp_path):
    """(what ships, what stands by without protection of the WAL, database)

    On SQLite up to 3.40.1 a connection of a pool that closes leaves a lock by which the standby's
    own file object cannot take one.
    """
    database = tmp_path / "app.db"
    ships = begin(new_host("system", replica, env=IDLE), database)
    stands = new_host("system", replica, env=IDLE)
    for conn in ("main", "pool"):
        stands.open(database, conn)
        stands.sql("SELECT * FROM t", conn=conn)
    until(lambda: stands.status(database)["state"] == "standby", "it stands by")
    stands.close("pool")
    return ships, stands, database


def test_a_stopped_shipper_is_no_success(standby, replica, tmp_path):
    ships, stands, database = standby
    stands.sync()
    stop(ships.process)
    try:
        stands.sql("INSERT INTO t VALUES ('waits')")
        for function in ("sync", "wait"):
            with pytest.raises(HostError, match="not replicated in time"):
                stands.value("SELECT walferry_%s(1500)" % function)
        assert stands.value("SELECT walferry_lag()") > 0
        assert content(replica, tmp_path) == ["first"]
    finally:
        ships.process.send_signal(signal.SIGCONT)
    stands.sync()
    assert content(replica, tmp_path) == ["first", "waits"]


def test_what_a_standby_syncs_is_there(standby, replica, tmp_path):
    _, stands, _ = standby
    for number in range(10):
        stands.sql("INSERT INTO t VALUES (%d)" % number)
        stands.sync()
        assert content(replica, tmp_path)[-1] == number


def test_a_standby_without_a_shipper_knows_no_lag(standby):
    """Nothing that this process committed is late: but whether all is shipped nobody says."""
    ships, stands, database = standby
    stands.sync()
    assert stands.value("SELECT walferry_lag()") == 0
    stop(ships.process)
    try:
        until(lambda: stands.value("SELECT walferry_lag()") is None, "the lag is not known", 20)
        assert stands.status(database)["lag_ms"] is None
    finally:
        ships.process.send_signal(signal.SIGCONT)
    until(lambda: stands.value("SELECT walferry_lag()") == 0, "the shipper is heard of again")


# ---- what is replicated, by whatever name ----------------------------------------------------


def test_other_names_of_the_file(new_host, replica, tmp_path, monkeypatch):
    database = tmp_path / "app.db"
    host = begin(new_host("apsw", replica, env=IDLE), database)
    (tmp_path / "link.db").symlink_to(database)
    (tmp_path / "folder").symlink_to(tmp_path)
    names = [tmp_path / "link.db", tmp_path / "folder" / "app.db",
             os.path.relpath(database, os.getcwd())]
    for number, name in enumerate(names):
        host.open(name, str(number))
        host.sql("INSERT INTO t VALUES (%d)" % number, conn=str(number))
        host.sync(str(number))
        assert content(replica, tmp_path)[-1] == number


def test_adopted(new_host, replica, tmp_path):
    host = new_host("apsw", replica, load=False, env=IDLE)
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.call("load", path=str(EXTENSION.with_suffix("")))
    for number in range(3):
        host.sql("INSERT INTO t VALUES (%d)" % number)
        host.sync()
        assert content(replica, tmp_path)[-1] == number
    rename(tmp_path / "app.db", tmp_path)
    host.sql("INSERT INTO t VALUES ('lost')")
    refuses(host, "deleted, renamed or replaced")


@pytest.mark.parametrize("early", [True, False], ids=["from the start", "later"])
def test_exclusive(early, new_host, replica, tmp_path):
    host = new_host("apsw", replica, env=IDLE)
    host.open(tmp_path / "app.db")
    exclusive, wal = "PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL"
    host.sql(*([exclusive, wal, TABLE] if early else [wal, TABLE, exclusive]))
    for number in range(3):
        host.sql("INSERT INTO t VALUES (%d)" % number)
        host.sync()
        output = restore(replica, tmp_path / "arrived.db")
        assert rows(output, "SELECT max(x) FROM t") == [(number,)]
        output.unlink()


def test_after_a_checkpoint_that_empties_the_wal(new_host, replica, tmp_path):
    host = begin(new_host("system", replica, env=IDLE), tmp_path / "app.db")
    for number in range(3):
        host.sql("INSERT INTO t VALUES (%d)" % number)
        host.sql("PRAGMA wal_checkpoint(TRUNCATE)")
        host.sync()
        assert content(replica, tmp_path)[-1] == number


def test_status_is_json_where_nothing_is_replicated(new_host, tmp_path):
    host = new_host()
    host.open(tmp_path / "plain.db")
    assert json.loads(host.value("SELECT walferry_status()")) == []


def test_connection_that_names_another_replica_is_told_that_it_is_not_used(new_host, new_replica, tmp_path):
    """While the database is open, it stays with the replicas that it was opened with."""
    first, second, database = new_replica(), new_replica(), tmp_path / "app.db"
    host = new_host("system")
    host.open(database, "first", replica=first.url)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", conn="first")
    host.sync(conn="first")
    host.open(database, "again", replica=first.url)
    host.open(database, "second", replica=second.url)
    host.sql("INSERT INTO t VALUES (1)", conn="second")
    for function in "walferry_sync()", "walferry_wait()", "walferry_lag()", "walferry_txid()":
        with pytest.raises(HostError, match=re.escape(second.url)):
            host.value("SELECT " + function, "second")
    reports = json.loads(host.value("SELECT walferry_status()", "second"))
    assert [second.url in (report["last_error"] or "") for report in reports] == [False, True], reports
    host.sync(conn="first")
    host.sync(conn="again")
    for conn in "first", "again", "second":
        host.close(conn)
    host.open(":memory:", "other")
    until(lambda: host.value("SELECT walferry_status()", "other") == "[]", "the database is forgotten")
    host.open(database, "second", replica=second.url)
    host.sync(conn="second")
    assert_restores(second, database, tmp_path)


INTERRUPTED = """
import sqlite3, sys, threading
m = sqlite3.connect(":memory:")
m.enable_load_extension(True)
m.load_extension(sys.argv[1])
db = sqlite3.connect(sys.argv[2], isolation_level=None, check_same_thread=False)
db.execute("CREATE TABLE IF NOT EXISTS t (x)")
db.execute("INSERT INTO t VALUES (1)")
ended = threading.Event()
def interrupt():
    while not ended.wait(0.05):
        db.interrupt()
def write():
    other = sqlite3.connect(sys.argv[2], isolation_level=None, timeout=60)
    while not ended.is_set():
        other.execute("INSERT INTO t VALUES (2)")
    other.close()
threads = [threading.Thread(target=what) for what in (interrupt, write)[:1 + (sys.argv[4] == "busy")]]
for thread in threads:
    thread.start()
try:
    db.execute("SELECT %s(3600000)" % sys.argv[3]).fetchall()
except sqlite3.OperationalError as error:
    print(error, getattr(error, "sqlite_errorname", "SQLITE_INTERRUPT"))
ended.set()
for thread in threads:
    thread.join()
print(db.execute("SELECT count(*) > 0 FROM t").fetchall())
"""


@pytest.mark.parametrize("function", ["walferry_sync", "walferry_wait"])
@pytest.mark.parametrize("role", ["ships", "stands by", "busy"])
def test_a_wait_can_be_interrupted(role, function, new_host, tmp_path):
    """As each statement of SQLite's can, also while there is news all the time."""
    env = {"WALFERRY_REPLICA": "s3://nowhere/app", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
           "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1",
           "WALFERRY_SHUTDOWN_TIMEOUT": "0"}
    if role == "stands by":
        new_host(env=env).open(tmp_path / "app.db").sql("PRAGMA journal_mode=WAL", TABLE)
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, EXTENSION, tmp_path / "app.db", function, role],
                          capture_output=True, text=True, timeout=120, env=dict(clean_environment(), **env))
    assert done.stdout.splitlines() == ["interrupted SQLITE_INTERRUPT", "[(1,)]"], done
