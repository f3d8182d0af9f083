"""In programs that treat SQLite in ways of their own: nothing of theirs is harmed, and what cannot be
replicated is said to be so."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys

import pytest

from harness import EXTENSION, DirectoryReplica, clean_environment, restore, rows
from test_outages import misfortune, misfortune_library  # noqa: F401  (fixtures)

HERE = os.path.dirname(__file__)
PHP = """
$memory = new SQLite3(':memory:');
$memory->loadExtension('walferry.so');
%s
echo "done";
"""
WORK = {
    "SQLite3": "$db = new SQLite3('%(db)s'); $db->exec(\"CREATE TABLE t (x); INSERT INTO t VALUES ('end')\");",
    "PDO": "$db = new PDO('sqlite:%(db)s'); $db->exec(\"CREATE TABLE t (x); INSERT INTO t VALUES ('end')\");",
}

SQLCIPHER = """
import sys
import sqlcipher3

def said(db):
    try:
        return db.execute("SELECT walferry_sync(5000)").fetchone()[0]
    except sqlcipher3.Error as error:
        return str(error)

def new(name, key=None):
    db = sqlcipher3.connect(name, isolation_level=None)
    if key:
        db.execute("PRAGMA key='%s'" % key)
        if sys.argv[2:] == ["plain-header"]:
            db.execute("PRAGMA cipher_plaintext_header_size=32")
            db.execute('''PRAGMA cipher_salt="x'%s'"''' % ("5a" * 16))
    return db

memory = sqlcipher3.connect(":memory:")
memory.enable_load_extension(True)
memory.load_extension(sys.argv[1])
secret = new("secret.db", "key")
secret.execute("CREATE TABLE t (x)")
assert secret.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
secret.execute("INSERT INTO t VALUES ('secret')")
print(said(secret))
secret.close()
secret = new("secret.db", "key")
secret.execute("INSERT INTO t VALUES ('secret')")
print(said(secret))
assert len(secret.execute("SELECT * FROM t").fetchall()) == 2
plain = new("plain.db")
plain.execute("CREATE TABLE t (x)")
print(said(plain))
"""
LOAD = """
import os, sqlite3, sys
memory = sqlite3.connect(":memory:")
memory.enable_load_extension(True)
memory.load_extension(sys.argv[1])
"""
FAILED_OPEN = LOAD + """
os.makedirs("a"), os.makedirs("b")
for name in "file:a/app.db?mode=rw", "file:none/app.db":
    try:
        sqlite3.connect(name, uri=True)
    except sqlite3.OperationalError as error:
        print(error)
db = sqlite3.connect("b/app.db", isolation_level=None)
db.execute("CREATE TABLE t (x)")
print(db.execute("SELECT walferry_sync(60000)").fetchone()[0])
print(db.execute("SELECT json_array_length(walferry_status())").fetchone()[0])
"""
NEVER_READ = LOAD + """
sqlite3.connect("a/app.db").close()
db = sqlite3.connect("b/app.db", isolation_level=None)
db.execute("CREATE TABLE t (x)")
print(db.execute("SELECT walferry_sync(60000)").fetchone()[0])
print(db.execute("SELECT json_array_length(walferry_status())").fetchone()[0])
"""
SHARED_CACHE = """
import os, sqlite3, sys
sqlite3.enable_shared_cache(True)
db = sqlite3.connect("app.db", isolation_level=None)
db.execute("PRAGMA journal_mode=WAL").fetchall()
db.execute("CREATE TABLE t (x)")
db.execute("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 60)"
           " INSERT INTO t SELECT zeroblob(1000000) FROM n")
db.enable_load_extension(True)
db.load_extension(sys.argv[1])
for made in range(60):
    db.execute("CREATE TABLE made%d (x)" % made)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
db.execute("SELECT walferry_sync(60000)").fetchall()
print("end")
"""
# Those whose subject is a VFS or a file, without the long ones.
OF_APSW = "VFS VFSFcntlPragma VFSWithWAL WAL BlobIO URIFilenames AutovacuumPages Closing"
LOADED = """
import runpy, sys, unittest, apsw

# "testrand" asks which call seeds SQLite's random numbers: it may be one of a thread that replicates.
whole = unittest.TestCase.assertRaises
def assert_raises(self, error, *called, **named):
    if getattr(next(iter(called), None), "__name__", "") != "testrand":
        return whole(self, error, *called, **named)
unittest.TestCase.assertRaises = assert_raises

memory = apsw.Connection(":memory:")
memory.enable_load_extension(True)
memory.load_extension(sys.argv.pop(1))
memory.close()
runpy.run_module("apsw.tests", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    for name, libraries in ("guest", ["-lsqlite3", "-lpthread", "-ldl"]), ("unload", ["-ldl"]):
        subprocess.run(["cc", "-O1", "-Wall", "-o", folder / name, os.path.join(HERE, name + ".c"), *libraries],
                       check=True)
    return folder


@pytest.fixture
def run(programs, tmp_path):
    """Runs one of the programs with a replica for its databases; what it says."""

    def run_one(name, *arguments, shipping=True, **env):
        replica = {"WALFERRY_REPLICA": "file://%s" % (tmp_path / "replica")} if shipping else {}
        done = subprocess.run(
            [programs / name, *map(str, arguments)], text=True, capture_output=True, timeout=120,
            env=dict(clean_environment(), WALFERRY_LOG_FILE=str(tmp_path / "log"), **replica, **env))
        assert done.returncode == 0, "%d: %s%s" % (done.returncode, done.stdout, done.stderr)
        return done.stdout.strip()

    return run_one


def newest(tmp_path):
    output = restore(DirectoryReplica(tmp_path / "replica"), tmp_path / "restored.db")
    return rows(output, "SELECT count(*), max(x) FILTER (WHERE x = 'end') FROM t")


@pytest.mark.parametrize("closes", [[], ["close"]], ids=["open", "closed"])
def test_host_unloads_sqlite(closes, run, tmp_path):
    for number in range(5):
        database = tmp_path / ("%d.db" % number)
        env = {"WALFERRY_REPLICA": "file://%s" % (tmp_path / "replica" / str(number))}
        assert run("unload", EXTENSION, database, *closes, shipping=False, **env) == "unloaded"
        output = restore(DirectoryReplica(tmp_path / "replica" / str(number)), tmp_path / "restored.db")
        assert rows(output, "SELECT x FROM t") == [("end",)]
        output.unlink()


@pytest.mark.parametrize("closes", [False, True], ids=["open", "closed"])
@pytest.mark.parametrize("how", sorted(WORK))
def test_php(how, closes, tmp_path):
    """PHP unloads its modules, and SQLite with them, before the process exits."""
    database, script = tmp_path / "app.db", WORK[how]
    if closes:
        # The one that loaded walferry too: the host has no connection left.
        script += " $db = null; $memory->close(); $memory = null; gc_collect_cycles();"
    done = subprocess.run(
        ["php", "-d", "sqlite3.extension_dir=%s" % EXTENSION.parent, "-r", PHP % (script % {"db": database})],
        text=True, capture_output=True, timeout=60,
        env=dict(clean_environment(), WALFERRY_REPLICA="file://%s" % (tmp_path / "replica")))
    assert (done.returncode, done.stdout) == (0, "done"), done
    assert newest(tmp_path) == [(1, "end")]


def test_threads_are_turned_off(run):
    assert "SQLITE_CONFIG_SINGLETHREAD" in run("guest", "single", EXTENSION)


def test_vfs_above_gives_names_of_its_own(run, tmp_path):
    """Of the WAL, the journals and temporary files."""
    status = run("guest", "above", EXTENSION, tmp_path / "app.db")
    assert '"state":"streaming"' in status
    assert newest(tmp_path) == [(200, "end")]


def test_vfs_above_changes_what_is_written(run, tmp_path):
    """As one that encrypts does. The database is new, so that its first page is no sign yet."""
    status = run("guest", "codec", EXTENSION, tmp_path / "app.db")
    assert '"state":"error"' in status and "encrypted" in status
    assert not (tmp_path / "replica").exists()
    log = (tmp_path / "log").read_text()
    assert log.count("encrypted") == 1 and "not a database" not in log, log


def test_vfs_above_that_only_some_connections_name(run, tmp_path):
    """It keeps a sum in each page: a connection of walferry's own would write past it."""
    run("guest", "sums", EXTENSION, tmp_path / "app.db")
    assert "it is not put into WAL mode, since a VFS was registered" in (tmp_path / "log").read_text()


def test_vfs_without_shared_memory_has_no_wal_mode(run, tmp_path):
    """SQLite refuses WAL mode there, and so it does with walferry: such a database could not be read again."""
    assert run("guest", "dotfile", EXTENSION, tmp_path / "app.db") == "delete end"


def test_vfs_below_changes_what_is_written(run, tmp_path):
    """As one that encrypts does: nothing of it is replicated, and nothing is harmed."""
    status = run("guest", "below", EXTENSION, tmp_path / "app.db")
    assert '"state":"error"' in status and "the VFS below" in status
    assert not (tmp_path / "replica").exists() and not (tmp_path / "app.db-walferry").exists()
    assert run("guest", "read", tmp_path / "app.db", shipping=False) == "200"
    assert (tmp_path / "log").read_text().count("the VFS below") == 1


def test_vfs_of_the_connection_that_loads_changes_what_is_written(run, tmp_path):
    """The default VFS, which walferry stands on, does not."""
    status = run("guest", "loads", EXTENSION, tmp_path / "app.db")
    assert '"state":"error"' in status and "the VFS below" in status
    assert not (tmp_path / "replica").exists() and not (tmp_path / "app.db-walferry").exists()
    assert run("guest", "read", tmp_path / "app.db", shipping=False) == "200"


@pytest.mark.parametrize("how", [[], ["alone"]], ids=["normal", "exclusive"])
def test_vfs_below_has_a_name_of_sqlites_own(how, run, tmp_path):
    status = run("guest", "named", EXTENSION, tmp_path / "app.db", *how)
    assert '"state":"error"' in status and "gives other bytes for page 1" in status
    assert not (tmp_path / "replica").exists()
    assert run("guest", "read", tmp_path / "app.db", shipping=False) == "200"
    assert (tmp_path / "log").read_text().count("gives other bytes") == 1


def test_memory_that_is_not_to_be_had_while_the_extension_is_loaded(run, tmp_path):
    """After an error nothing is left behind. SQLite closes the library then."""
    env = {"WALFERRY_REPLICA": "file://%s/replica/{name}" % tmp_path}
    assert run("guest", "memory", EXTENSION, tmp_path / "app.db", shipping=False, **env) == "end"


def test_sqlite_is_shut_down_while_a_full_image_is_due(run, tmp_path):
    """Nothing initializes SQLite again behind the application's back. Once that opens the database, it goes on."""
    (tmp_path / "replica").write_text("in the way")
    said = run("guest", "shutdown", EXTENSION, tmp_path / "app.db", tmp_path / "replica", tmp_path / "log")
    assert said == "shut down, 0 calls"
    assert newest(tmp_path) == [(200, "end")]


def test_sqlite_is_shut_down_while_a_full_image_is_read(run, tmp_path):
    with sqlite3.connect(tmp_path / "app.db") as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (x)")
        db.execute("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)"
                   " INSERT INTO t SELECT hex(randomblob(1000)) FROM n")
        db.execute("INSERT INTO t VALUES ('end')")
    db.close()
    (tmp_path / "replica").touch()
    said = run("guest", "shutdown", EXTENSION, tmp_path / "app.db", tmp_path / "replica", tmp_path / "log", "reads")
    assert said == "shut down, 0 calls"
    assert newest(tmp_path) == [(2001, "end")]


def test_writer_that_waits_for_the_read_slots_is_in_no_other_connections_way(run, tmp_path):
    assert run("guest", "waits", EXTENSION, tmp_path / "app.db") == "in time"
    assert newest(tmp_path) == [(201, "end")]


def python(tmp_path, program, *arguments, **env):
    done = subprocess.run(
        [sys.executable, "-c", program, EXTENSION, *arguments], text=True, capture_output=True, timeout=120,
        cwd=tmp_path, env=dict(clean_environment(), WALFERRY_REPLICA="file://%s/{name}" % (tmp_path / "replica"),
                               WALFERRY_LOG_FILE=str(tmp_path / "log"), **env))
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_open_that_fails_keeps_the_replica_from_no_other_database(tmp_path):
    """A program that tries several places in turn."""
    *failed, txid, number = python(tmp_path, FAILED_OPEN).stdout.splitlines()
    assert len(failed) == 2 and all("unable to open" in line for line in failed)
    assert (txid, number) == ("0000000000000001", "1")


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_database_that_was_never_read_keeps_its_replica_from_no_other(journal, tmp_path):
    """A program that opens a file, reads nothing of it and closes it."""
    for folder in "a", "b":
        (tmp_path / folder).mkdir()
    if journal == "wal":
        with sqlite3.connect(tmp_path / "a" / "app.db") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE t (x)")
        db.close()
    assert python(tmp_path, NEVER_READ).stdout == "0000000000000001\n1\n"


def test_extension_is_loaded_again_by_a_statement(tmp_path):
    """As by a pool, which does so for each connection."""
    said = shell(tmp_path, *["SELECT load_extension('%s')" % EXTENSION] * 2, "SELECT walferry_version()")
    assert re.match(r"\d+\.\d+", said.strip()), said


def test_shared_cache_is_not_shared_with_walferry(tmp_path):
    """The first image is read while the application makes tables and forks."""
    assert python(tmp_path, SHARED_CACHE).stdout == "end\n"


@pytest.mark.parametrize("header", [[], ["plain-header"]], ids=["", "plain-header"])
def test_sqlcipher(header, tmp_path):
    """Each connection to an encrypted database is told why. A plain database beside it is replicated."""
    new, again, plain = python(tmp_path, SQLCIPHER, *header).stdout.splitlines()
    assert "it is encrypted" in new and new == again
    assert plain == "0000000000000001"
    assert [entry.name for entry in (tmp_path / "replica").iterdir()] == ["plain.db"]
    assert (tmp_path / "log").read_text().count("is not replicated: it is encrypted") == 1


@pytest.mark.parametrize("mode", ["keep", "wal"])
def test_tests_of_apsw(mode, tmp_path):
    """The tests put VFSes of their own above walferry's, which call it as no VFS of SQLite's does."""
    names = ["APSW.test" + name for name in OF_APSW.split()]
    if mode == "wal":
        # It asks which call seeds SQLite's random numbers: that may be one of a thread that replicates.
        names.remove("APSW.testVFS")
    done = python(tmp_path, LOADED, *names, WALFERRY_JOURNAL_MODE=mode)
    assert "Ran %d tests" % len(names) in done.stderr and done.stderr.rstrip().endswith("OK"), done.stderr


def test_codec_in_the_pager(tmp_path):
    """A file that does not begin as SQLite's do is somebody's secret, or no database."""
    (tmp_path / "app.db").write_bytes(os.urandom(8192))
    said = shell(tmp_path, "SELECT walferry_status()", ".open %s" % (tmp_path / "app.db"), "SELECT walferry_status()")
    states = [json.loads(line)[0] for line in said.strip().splitlines()]
    assert [state["state"] for state in states] == ["error"] * 2 and "encrypted" in states[1]["last_error"], states
    assert (tmp_path / "log").read_text().count("encrypted") == 1
    (tmp_path / "app.db").unlink()
    shell(tmp_path, "CREATE TABLE t (x)", "INSERT INTO t VALUES ('end')")
    assert newest(tmp_path) == [(1, "end")]


def test_any_name_of_the_library(programs, tmp_path):
    copy = shutil.copy(EXTENSION, tmp_path / "w.so")
    done = subprocess.run(["sqlite3", "-bail", ":memory:", ".load %s" % copy, "SELECT walferry_version()"],
                          text=True, capture_output=True, env=clean_environment(), timeout=60)
    assert done.returncode == 0 and re.match(r"\d+\.\d+", done.stdout), done


@pytest.mark.parametrize("call", ["walferry_status()", "walferry_sync(1)", "walferry_wait(1)", "walferry_ping()"])
def test_view_of_a_foreign_file_calls_nothing(call, tmp_path):
    foreign = tmp_path / "foreign.db"
    sqlite3.connect(foreign).execute("CREATE VIEW v AS SELECT %s AS x" % call).connection.close()
    done = subprocess.run(["sqlite3", foreign, ".load %s" % EXTENSION, "SELECT x FROM v"], text=True,
                          capture_output=True, env=clean_environment(), timeout=60)
    assert "unsafe use of walferry" in done.stderr, done


def test_trigger_of_a_foreign_file_calls_nothing(tmp_path):
    """Of all functions: the version alone tells nothing and does nothing."""
    directonly = 0x80000
    asked = "SELECT DISTINCT name, flags & %d != 0 FROM pragma_function_list WHERE name LIKE 'walferry%%' ORDER BY 1"
    done = subprocess.run(["sqlite3", ":memory:", ".load %s" % EXTENSION, asked % directonly], text=True,
                          capture_output=True, env=clean_environment(), timeout=60)
    direct = dict(line.split("|") for line in done.stdout.split())
    assert direct.pop("walferry_version") == "0" and set(direct.values()) == {"1"}, direct
    for number, name in enumerate(sorted(direct)):
        foreign = tmp_path / ("%d.db" % number)
        with sqlite3.connect(foreign) as db:
            db.execute("CREATE TABLE t (x)")
            db.execute("CREATE TRIGGER r AFTER INSERT ON t BEGIN SELECT %s(); END" % name)
        done = subprocess.run(["sqlite3", foreign, ".load %s" % EXTENSION, "INSERT INTO t VALUES (1)"], text=True,
                              capture_output=True, env=clean_environment(), timeout=60)
        assert "unsafe use of %s" % name in done.stderr, done


def test_extension_loaded_on_the_connection_of_a_new_database(tmp_path):
    """As in the shell: WAL mode comes with the first transaction that writes."""
    database = tmp_path / "app.db"
    done = subprocess.run(
        ["sqlite3", "-bail", database, ".load %s" % EXTENSION, "PRAGMA journal_mode", "CREATE TABLE t (x)",
         "INSERT INTO t VALUES ('end')", "PRAGMA journal_mode", "SELECT walferry_sync(20000)"],
        text=True, capture_output=True, timeout=60,
        env=dict(clean_environment(), WALFERRY_REPLICA="file://%s" % (tmp_path / "replica")))
    assert done.returncode == 0, done
    assert done.stdout.split()[:2] == ["delete", "wal"]
    assert newest(tmp_path) == [(1, "end")]


@pytest.mark.parametrize("after", [[], ["SELECT walferry_status()"]], ids=["end", "status"])
def test_one_transaction_is_all_there_is(after, tmp_path):
    """It brings WAL mode, and is replicated though nothing is read or written after it."""
    done = subprocess.run(
        ["sqlite3", "-bail", ":memory:", ".load %s" % EXTENSION, ".open %s" % (tmp_path / "app.db"),
         "BEGIN; CREATE TABLE t (x); INSERT INTO t VALUES ('end'); COMMIT", *after],
        text=True, capture_output=True, timeout=60,
        env=dict(clean_environment(), WALFERRY_REPLICA="file://%s" % (tmp_path / "replica")))
    assert done.returncode == 0 and "not-wal" not in done.stdout, done
    assert newest(tmp_path) == [(1, "end")]


def shell(tmp_path, *statements, limits="true", fails=None, **env):
    """The sqlite3 shell with walferry, and a replica for what it opens; its standard output. It may fail
    with an error that says this."""
    env = dict(clean_environment(), WALFERRY_REPLICA="file://%s" % (tmp_path / "replica"),
               WALFERRY_LOG_FILE=str(tmp_path / "log"), **env)
    done = subprocess.run(
        ["bash", "-c", '%s; exec sqlite3 "$@"' % limits, "shell", ":memory:", ".load %s" % EXTENSION,
         ".open %s" % (tmp_path / "app.db"), *statements], text=True, capture_output=True, timeout=60, env=env)
    assert done.returncode == 0 or fails and re.search(fails, done.stderr), done
    return done.stdout


def test_no_thread_when_the_first_replica_opens(misfortune, tmp_path):
    """It is told, nothing is left running, and the next open tries again."""
    misfortune.set("threads", "sqlite3")
    said = shell(tmp_path, "CREATE TABLE t (x)", "SELECT walferry_status()",
                 ".shell rm %s" % (misfortune.folder / "threads"), ".open %s" % (tmp_path / "app.db"),
                 "INSERT INTO t VALUES ('end')", "SELECT walferry_sync(20000)", **misfortune.env)
    assert "cannot start the thread" in said
    assert newest(tmp_path) == [(1, "end")]


@pytest.mark.parametrize("descriptors", range(5, 36, 2))
def test_few_descriptors_when_the_first_replica_opens(descriptors, tmp_path):
    """Whatever comes of it is told: nothing waits for ever without an error."""
    said = shell(tmp_path, "CREATE TABLE t (x)", "SELECT walferry_sync(3000)",
                 # Where SQLite cannot open the WAL, the database stays without one.
                 fails=" open |not replicated: the database is in journal mode delete",
                 limits="ulimit -n %d" % descriptors, WALFERRY_SHUTDOWN_TIMEOUT="0s")
    assert not said or newest(tmp_path) == [(0, None)]
    assert not (tmp_path / "log").exists() or "internal error" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("before, statements, told", [
    ([], ["CREATE TABLE t (x)", "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (2)"], 1),
    ([], ["CREATE TABLE t (x)"], 1),
    (["CREATE TABLE t (x)"], ["INSERT INTO t VALUES (1)"], 1),
    (["CREATE TABLE t (x)"], ["SELECT * FROM t"], 0),
    ([], ["PRAGMA journal_mode=WAL", "CREATE TABLE t (x)"], 0),
], ids=["new, three", "new, one", "one", "read", "in WAL mode"])
def test_writes_outside_wal_mode_are_told(before, statements, told, tmp_path):
    log = tmp_path / "log"
    subprocess.run(["sqlite3", "-bail", tmp_path / "app.db", *before], check=True, timeout=60, stdin=subprocess.DEVNULL)
    env = dict(clean_environment(), WALFERRY_REPLICA="file://%s" % (tmp_path / "replica"),
               WALFERRY_JOURNAL_MODE="keep", WALFERRY_LOG_FILE=str(log))
    subprocess.run(["sqlite3", "-bail", ":memory:", ".load %s" % EXTENSION, ".open %s" % (tmp_path / "app.db"),
                    *statements], check=True, env=env, timeout=60)
    said = log.read_text() if log.exists() else ""
    assert said.count("another journal mode than WAL") == told, said


LEAVES_NOTHING = {
    "new": ([], ["CREATE TABLE t (x)"]),
    "new, read": ([], ["CREATE TABLE t (x)", "SELECT * FROM t"]),
    "only opened": (["CREATE TABLE t (x)"], []),
    "in WAL mode, only opened": (["PRAGMA journal_mode=WAL", "CREATE TABLE t (x)"], []),
    "exclusive": (["CREATE TABLE t (x)"], ["PRAGMA locking_mode=EXCLUSIVE", "INSERT INTO t VALUES (1)"]),
    "exclusive in WAL mode": (["PRAGMA journal_mode=WAL", "CREATE TABLE t (x)"],
                              ["PRAGMA locking_mode=EXCLUSIVE", "INSERT INTO t VALUES (1)"]),
    "attached": ([], ["ATTACH 'other.db' AS other", "CREATE TABLE other.t (x)", "DETACH other"]),
    "vacuumed into": (["CREATE TABLE t (x)"], ["VACUUM INTO 'other.db'"]),
    "backed up": (["CREATE TABLE t (x)"], [".backup other.db"]),
}


@pytest.mark.parametrize("what", LEAVES_NOTHING)
def test_last_close_leaves_neither_wal_nor_shm(what, tmp_path):
    before, after = LEAVES_NOTHING[what]
    env = dict(clean_environment(), WALFERRY_REPLICA="file://%s/replicas/{name}" % tmp_path)
    if before:
        subprocess.run(["sqlite3", "-bail", "app.db", *before], check=True, cwd=tmp_path, timeout=60,
                       stdout=subprocess.DEVNULL)
    for _ in range(10):
        subprocess.run(["sqlite3", "-bail", ":memory:", ".load %s" % EXTENSION, ".open app.db", *after], check=True,
                       cwd=tmp_path, env=env, timeout=60, stdout=subprocess.DEVNULL)
        left = sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(("-wal", "-shm")))
        assert left == []
        for database in tmp_path.glob("*.db"):
            if not before or database.name != "app.db":
                database.unlink()
                shutil.rmtree(str(database) + "-walferry", ignore_errors=True)
                shutil.rmtree(tmp_path / "replicas" / database.name, ignore_errors=True)
