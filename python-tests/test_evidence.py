"""What others did while the process that ships was not looking: in the moments in which its pin is
down, behind its back in exclusive mode, beside a fork. Nothing committed may be missing from the
replica afterwards, and nobody may be told that it is there while it is not."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from harness import EXTENSION, HostError, S3Replica, clean_environment, file_uri, restore, rows, stop
from sidecar import generation, synced
from test_fork import PRELUDE
from test_outages import misfortune, misfortune_library  # noqa: F401 (fixtures)
from test_processes import shipper_of, until, wal

TABLE = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)"
# The hosts whose SQLite is 3.40.1 and 3.54.1.
OLD_AND_NEW = ("system", "apsw")
SESSIONS = 50
FINE = (1, 0, "no-state")  # of a database that was new: one image, no comparison


def opened(host, database, *connections):
    for conn in connections or ("main",):
        host.open(database, conn)
    return host


def filled(new_host, replica, database, kind="system", count=100, **env):
    """A host whose database is on the replica as a whole."""
    host = opened(new_host(kind, replica, env=env), database)
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    add(host, count)
    host.sync()
    return host


def add(host, count):
    """Rows of which about three fill a page, in one transaction."""
    host.sql("INSERT INTO t (x) WITH n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)"
             " SELECT printf('%%01200d', i) FROM n" % count)


def ended(host):
    """Its only connection is closed, and then the process ends."""
    host.close()
    assert host.finish() == 0


def shell(database, *statements):
    """A sqlite3 shell that has never heard of walferry, in a process of its own."""
    done = subprocess.run(["sqlite3", "-bail", "-cmd", ".timeout 1000", str(database)], text=True,
                          input=";\n".join(statements) + ";\n", capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def plain_host(new_host, database, kind="system"):
    """A process that has never heard of walferry."""
    return opened(new_host(kind, load=False), database)


def assert_same_rows(replica, database, folder):
    """The newest state of the replica has the rows of the database, no more and no others."""
    output = restore(replica, folder / "newest.db")
    got = dict(rows(output, "SELECT id, x FROM t"))
    output.unlink()
    source = sqlite3.connect(database, timeout=20)
    expected = dict(source.execute("SELECT id, x FROM t"))
    source.close()
    missing = sorted(expected.keys() - got.keys())
    extra = sorted(got.keys() - expected.keys())
    stale = sorted(n for n in got.keys() & expected.keys() if got[n] != expected[n])
    assert not (missing or extra or stale), (
        "of %d rows %d are missing (%s), %d are of no state (%s), %d are as they were before (%s)" % (
            len(expected), len(missing), missing[:5], len(extra), extra[:5], len(stale), stale[:5]))


# ---- a connection is closed ------------------------------------------------------------------


def two_processes(new_host, replica, database):
    """The one that ships, with two connections, and another."""
    ships = filled(new_host, replica, database)
    opened(ships, database, "second").sql("SELECT count(*) FROM t", conn="second")
    other = opened(new_host("system", replica), database, "main", "second")
    other.sql("SELECT count(*) FROM t", conn="second")
    other.sync()
    assert shipper_of(database) == ships.process.pid
    return ships, other


def commit_many(host, count=3000):
    host.sql("PRAGMA synchronous=OFF")
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=100, times=count, seed=1)


def test_shipper_that_closed_one_connection_captures_other_process(new_host, replica, tmp_path):
    """And is idle: it has no commit of its own by which it could notice."""
    database = tmp_path / "app.db"
    ships, other = two_processes(new_host, replica, database)
    ships.close("second")
    commit_many(other)
    other.value("SELECT walferry_sync(8000)")
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("closes", ["both", "the other", "neither"])
def test_sync_of_other_process_beside_stopped_shipper_is_an_error(closes, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    ships, other = two_processes(new_host, replica, database)
    if closes == "both":
        ships.close("second")
    if closes != "neither":
        other.close("second")
    stop(ships.process)
    try:
        commit_many(other, 300)
        with pytest.raises(HostError, match="not replicated in time"):
            other.value("SELECT walferry_sync(3000)")
    finally:
        ships.process.send_signal(signal.SIGCONT)
    other.value("SELECT walferry_sync(8000)")
    assert_same_rows(replica, database, tmp_path)


def test_clean_start_after_one_close_takes_no_later_generation_for_the_first(
        new_host, replica, tmp_path):
    """The log goes on with any generation's first frame where the file was complete without a WAL; what
    was checkpointed before that generation is in no WAL any more."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database))
    host = opened(new_host("system", replica), database, "main", "second")
    host.sql("SELECT count(*) FROM t", conn="second")
    host.close("second")
    shell(database, "UPDATE t SET x = 'outside' WHERE id <= 20", "PRAGMA wal_checkpoint(TRUNCATE)",
          "UPDATE t SET x = 'last' WHERE id = 99")
    host.sql("INSERT INTO t (x) VALUES ('own')")
    host.sync()
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("mode", ["RESTART", "TRUNCATE"])
def test_own_checkpoint_that_begins_nothing_vouches_for_no_later_beginning(
        mode, new_host, replica, tmp_path):
    """What it was let through for was a beginning of this process. Others begin twice instead, once
    the pin is down."""
    database = tmp_path / "app.db"
    host = filled(new_host, replica, database)
    opened(host, database, "second").sql("SELECT count(*) FROM t", conn="second")
    assert host.value("PRAGMA wal_checkpoint(%s)" % mode) == 0
    host.close("second")
    for round_ in range(2):
        shell(database, "UPDATE t SET x = 'outside' WHERE id %% 10 = %d" % round_,
              "PRAGMA wal_checkpoint(TRUNCATE)")
    shell(database, "UPDATE t SET x = 'last' WHERE id = 99")
    host.sql("INSERT INTO t (x) VALUES ('own')")
    host.sync()
    assert_same_rows(replica, database, tmp_path)


class Pool:
    """Opens and closes a connection of a host every 10 ms, and reads with it, until the block ends."""

    def __init__(self, host, database, every=0.01):
        self.host, self.database, self.every = host, database, every
        self.over, self.failed, self.count = threading.Event(), [], 0
        self.thread = threading.Thread(target=self.run)

    def run(self):
        try:
            while not self.over.wait(self.every):
                self.host.open(self.database, "pool")
                self.host.sql("SELECT count(*) FROM sqlite_master", conn="pool")
                self.host.close("pool")
                self.count += 1
        except HostError as error:
            self.failed.append(error)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        assert not self.failed, self.failed


@pytest.mark.parametrize("kind", OLD_AND_NEW)
def test_pool_beside_its_own_writer_needs_no_comparison(kind, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = filled(new_host, replica, database, kind)
    host.sql("PRAGMA wal_autocheckpoint=5")
    with Pool(host, database) as pool:
        host.call("churn", args=[100, "pool", 8])
    assert pool.count >= 30
    host.sync()
    state = host.status(database)
    assert (state["images"], state["resyncs"], state["found"]) == FINE, state
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
def test_plain_writer_beside_a_pool_arrives(kind, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = filled(new_host, replica, database, kind)
    plain = plain_host(new_host, database, kind)
    plain.sql("PRAGMA wal_autocheckpoint=10")
    for round_ in range(3):
        with Pool(host, database) as pool:
            beside = plain.ask("churn", args=[100, "beside %d" % round_, 2.5])
            until(lambda: pool.count >= 100, "it opened and closed so often")
        beside.result()  # the writer goes on when the pool does not
        host.value("SELECT walferry_sync(8000)")
        assert_same_rows(replica, database, tmp_path)


# ---- exclusive mode --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OLD_AND_NEW)
def test_exclusive_mode_after_checkpoint_that_began_nothing_loses_no_generation(
        kind, new_host, replica, tmp_path):
    """At the pace of the default sync interval: the WAL is begun anew twice between two files."""
    database = tmp_path / "app.db"
    host = filled(new_host, replica, database, kind, 4000, WALFERRY_SYNC_INTERVAL="1s")
    time.sleep(1.3)  # so long that the next commit is sent at once, and the one after it is not
    host.sql("UPDATE t SET x = 'first' WHERE id = 1")
    time.sleep(0.02)
    assert host.value("PRAGMA wal_checkpoint(RESTART)") == 0
    host.sql("PRAGMA locking_mode=EXCLUSIVE")
    host.sql(*["UPDATE t SET x = 'late %d' WHERE id = %d" % (n, 2 * n) for n in range(1, 1501)])
    host.sync()
    host.close()
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("when", ["before", "after"])
def test_clean_exclusive_sessions_need_no_comparison(when, kind, new_host, replica, tmp_path):
    """And are told of no lock that plain SQLite would not tell them of: nobody else is there. Nothing
    waits for the threads that replicate, neither at the beginning nor before the end."""
    database, found = tmp_path / "app.db", []
    ended(filled(new_host, replica, database, kind))
    for session in range(SESSIONS):
        host = new_host(kind, replica)
        host.call("open", "main", name=str(database), busy=0)
        if when == "after":
            host.sql("SELECT count(*) FROM t")
        try:
            host.sql("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA synchronous=OFF")
            host.sql(*["UPDATE t SET x = 'session %d' WHERE id = %d" % (session, 1 + n % 100)
                       for n in range(200)])
            state = host.status(database)
            if (state["images"], state["resyncs"], state["found"]) != (0, 0, None):
                found.append((session, state["found"]))
        except HostError as error:
            found.append((session, str(error)))
        ended(host)
    host = opened(new_host(kind, replica), database)
    host.sync()
    assert_same_rows(replica, database, tmp_path)
    assert not found, "%d of %d sessions: %s" % (len(found), SESSIONS, found)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
def test_exclusive_session_that_finds_a_wal_needs_no_comparison(kind, new_host, replica, tmp_path):
    """Its wal-index is in memory of its own, made from what a process has left that was killed."""
    database = tmp_path / "app.db"
    host = filled(new_host, replica, database, kind)
    host.sql("UPDATE t SET x = 'left' WHERE id = 1")
    host.sync()
    host.sql("UPDATE t SET x = 'left too' WHERE id = 2")
    host.kill()
    assert wal(database).stat().st_size > 0
    host = new_host(kind, replica)
    host.call("open", "main", name=str(database), busy=0)  # without a statement
    host.sql("PRAGMA locking_mode=EXCLUSIVE", *["UPDATE t SET x = 'own %d' WHERE id = %d" % (n, 1 + n % 90)
                                                for n in range(2000)])
    host.sync()
    state = host.status(database)
    assert (state["images"], state["resyncs"], state["found"]) == (0, 0, None)
    ended(host)
    host = opened(new_host(kind, replica), database)
    host.sync()
    assert host.status(database)["found"] is None
    assert_same_rows(replica, database, tmp_path)


LEFT = {
    "by a process with walferry": lambda new_host, replica, *at: opened(
        new_host(at[1], replica, env={"WALFERRY_SYNC_INTERVAL": "1h"}), at[0]),
    "by a process without": lambda new_host, replica, *at: plain_host(new_host, *at),
}


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "by itself"])
@pytest.mark.parametrize("left", LEFT)
def test_exclusive_session_that_only_reads_ships_the_wal_that_it_finds(
        left, asks, kind, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database, kind))
    killed = LEFT[left](new_host, replica, database, kind)
    for number in range(3):
        killed.sql("UPDATE t SET x = 'left %d' WHERE id = 1" % number)
    killed.kill()
    assert wal(database).stat().st_size > 0
    host = new_host(kind, replica)
    host.call("open", "main", name=str(database), busy=0)  # without a statement
    host.sql("PRAGMA locking_mode=EXCLUSIVE", "SELECT count(*) FROM t")

    def arrived():
        output = restore(replica, tmp_path / "arrived.db")
        got = rows(output, "SELECT x FROM t WHERE id = 1")
        output.unlink()
        return got == [("left 2",)]

    if asks:
        host.sync()
        assert arrived()
    else:
        until(arrived, "what was left")
    host.sql("UPDATE t SET x = 'own' WHERE id = 2")
    host.sync()
    ended(host)
    assert_same_rows(replica, database, tmp_path)


def test_exclusive_session_whose_wal_cannot_be_looked_at_never_says_yes(
        misfortune, new_host, replica, tmp_path):  # noqa: F811
    """SQLite has the WAL open, and there is no descriptor left with which to read it once more."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database, "system"))
    killed = opened(new_host("system", load=False), database)
    killed.sql("UPDATE t SET x = 'left' WHERE id = 1")
    killed.kill()
    host = new_host("system", replica, env=misfortune.env)
    host.call("open", "main", name=str(database), busy=0)
    misfortune.set("shut", wal(database))
    host.sql("PRAGMA locking_mode=EXCLUSIVE")
    assert host.value("SELECT x FROM t WHERE id = 1") == "left"
    with pytest.raises(HostError, match="not replicated"):
        host.value("SELECT walferry_sync(3000)")
    misfortune.over("shut")
    host.sql("UPDATE t SET x = 'own' WHERE id = 2")
    host.sync()
    ended(host)
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("asks", [True, False], ids=["asked for", "by itself"])
def test_exclusive_session_that_only_reads_ships_a_database_that_is_new_to_it(
        asks, kind, new_host, replica, tmp_path):
    """In WAL mode, without a WAL."""
    database = tmp_path / "app.db"
    shell(database, "PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES ('before')")
    host = new_host(kind, replica)
    host.call("open", "main", name=str(database), busy=0)
    host.sql("PRAGMA locking_mode=EXCLUSIVE", "SELECT count(*) FROM t")
    if asks:
        host.sync()
    else:
        until(lambda: replica.folder.exists() and replica.keys(), "an image")
    host.sql("UPDATE t SET x = 'own' WHERE id = 1")
    host.sync()
    ended(host)
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("wrote", [True, False], ids=["killed", "closed"])
def test_exclusive_session_that_was_open_before_walferry_says_true_or_fails(wrote, new_host, replica, tmp_path):
    """What it writes to the WAL is not seen."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database))
    if wrote:
        killed = plain_host(new_host, database)
        killed.sql("UPDATE t SET x = 'left' WHERE id = 1")
        killed.kill()
        assert wal(database).stat().st_size > 0
    done = subprocess.run(
        ["sqlite3", "-bail", database, "PRAGMA locking_mode=EXCLUSIVE", ".load %s" % EXTENSION,
         "UPDATE t SET x = 'own' WHERE id = 2", "SELECT walferry_sync(5000)"], text=True, capture_output=True, timeout=60,
        env=dict(clean_environment(), WALFERRY_REPLICA=replica.url, WALFERRY_LOG_FILE=str(tmp_path / "log")))
    if done.returncode == 0:
        assert_same_rows(replica, database, tmp_path)
    else:
        assert "not replicated" in done.stderr, done


WAL, DELETE, EXCLUSIVE = "PRAGMA journal_mode=WAL", "PRAGMA journal_mode=DELETE", "PRAGMA locking_mode=EXCLUSIVE"
CREATE, INSERT, READ = "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)", "SELECT count(*) FROM t"
# Ways into exclusive mode: what a program without walferry did before, and what this one does.
EXCLUSIVE_WAYS = {
    "rollback mode": ([CREATE], [EXCLUSIVE, INSERT]),
    "rollback mode, read": ([CREATE], [READ, EXCLUSIVE, INSERT]),
    "rollback mode, read later": ([CREATE], [EXCLUSIVE, READ, INSERT]),
    "rollback mode, written": ([CREATE], [INSERT, EXCLUSIVE, INSERT]),
    "WAL mode": ([WAL, CREATE], [EXCLUSIVE, INSERT]),
    "WAL mode, read": ([WAL, CREATE], [READ, EXCLUSIVE, INSERT]),
    "new": ([], [CREATE, EXCLUSIVE, INSERT]),
    "new, before": ([], [EXCLUSIVE, CREATE, INSERT]),
    "new, before, WAL": ([], [EXCLUSIVE, CREATE, WAL, INSERT]),
    "new, WAL": ([], [WAL, EXCLUSIVE, CREATE, INSERT]),
    "by way of delete": ([], [WAL, EXCLUSIVE, CREATE, DELETE, INSERT, WAL, INSERT]),
    "by way of delete, nothing written": ([], [WAL, CREATE, EXCLUSIVE, INSERT, DELETE, WAL, INSERT]),
    "by way of delete, in WAL mode before": ([WAL, CREATE], [EXCLUSIVE, INSERT, DELETE, INSERT, WAL, INSERT]),
    "and back": ([CREATE], [EXCLUSIVE, INSERT, "PRAGMA locking_mode=NORMAL", INSERT, EXCLUSIVE, INSERT]),
}


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("way", EXCLUSIVE_WAYS)
def test_sync_in_exclusive_mode_ships_every_commit_or_fails(way, kind, new_host, replica, tmp_path):
    before, after = EXCLUSIVE_WAYS[way]
    database = tmp_path / "app.db"
    if before:
        shell(database, *before)
    host = opened(new_host(kind, replica), database)
    for statement in after:
        host.sql(statement)
    for _ in range(3):
        try:
            host.sync()
        except HostError as error:
            # The newest commits are in no WAL: nothing can be shipped, and that is what is said.
            assert "WAL mode" in str(error), error
            break
        local = host.value("SELECT count(*) FROM t")
        assert rows(restore(replica, tmp_path / "restored.db"), "SELECT count(*) FROM t") == [(local,)]
        os.remove(tmp_path / "restored.db")
        host.sql(*[INSERT] * 700, "PRAGMA wal_checkpoint", *[INSERT] * 700)
    else:
        assert host.status(database)["state"] == "streaming"


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("wish", ["exclusive", "delete"])
def test_connection_that_was_only_opened_is_in_nobodys_way(wish, kind, new_host, replica, tmp_path):
    """As one of a pool that has no work: SQLite gives another one the database to itself."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database, kind))
    host = new_host(kind, replica)
    for conn in "idle", "main":
        host.call("open", conn, name=str(database), busy=0)  # without a statement
    if wish == "exclusive":
        host.sql("PRAGMA locking_mode=EXCLUSIVE", "UPDATE t SET x = 'own' WHERE id = 9")
    else:
        assert host.value("PRAGMA journal_mode=DELETE") == "delete"
        host.sql("UPDATE t SET x = 'own' WHERE id = 9")
        assert host.value("PRAGMA journal_mode=WAL") == "wal"
    host.sync()
    host.close()
    assert host.value("SELECT x FROM t WHERE id = 9", conn="idle") == "own"
    host.close("idle")
    assert_same_rows(replica, database, tmp_path)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
def test_exclusive_mode_while_a_comparison_is_made_meets_no_lock(kind, new_host, replica, tmp_path):
    """Nobody else has the database: plain SQLite would give it to the connection at once."""
    database, told = tmp_path / "app.db", []
    ended(filled(new_host, replica, database, kind, 30000))
    for round_ in range(5):
        shell(database, "UPDATE t SET x = 'outside %d' WHERE id %% 7 = 0" % round_)
        host = new_host(kind, replica)
        host.call("open", "main", name=str(database), busy=0)
        host.sql("SELECT count(*) FROM t")
        until(lambda: host.status(database)["found"], "a comparison is due")
        try:
            host.sql("PRAGMA locking_mode=EXCLUSIVE", "UPDATE t SET x = 'own' WHERE id = 9")
        except HostError as error:
            told.append((round_, str(error)))
        ended(host)
    host = opened(new_host(kind, replica), database)
    host.sync()
    assert_same_rows(replica, database, tmp_path)
    assert not told, told


# ---- beside a fork ---------------------------------------------------------------------------

# So much memory, in small pages, takes a fork some ten milliseconds, in which the pin is down.
FORKS = """
import mmap
memory = mmap.mmap(-1, 1 << 30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for page in range(0, len(memory), mmap.PAGESIZE):
    memory[page] = 1

def fork():
    before = time.monotonic()
    pid = child(int)
    took = time.monotonic() - before
    join(pid)
    return took
"""


class Program:
    """A program that does what it is told, a word a line, and answers each."""

    def __init__(self, folder, replica, text, **env):
        path = folder / "program.py"
        path.write_text(PRELUDE + text)
        settings = {"WALFERRY_SYNC_INTERVAL": "20ms", "DATABASE": str(folder / "app.db"),
                    "WALFERRY_REPLICA": replica.url, "EXTENSION": str(EXTENSION.with_suffix("")),
                    "WALFERRY_LOG_FILE": str(folder / "walferry.log")}
        settings.update(env)
        with open(folder / "program.err", "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(path)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, env=dict(clean_environment(), **settings))
        self.errors = folder / "program.err"

    def tell(self, word):
        try:
            self.process.stdin.write(word + "\n")
            self.process.stdin.flush()
        except OSError:
            pass
        answer = self.process.stdout.readline()
        assert answer, self.errors.read_text()
        return json.loads(answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()

    def end(self):
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def test_fork_after_own_beginning_beside_plain_writer_loses_no_commit(new_host, replica, tmp_path):
    """What the gate let through was the beginning before the last commit; the other process begins the
    WAL once more while the process forks."""
    database = tmp_path / "app.db"
    with Program(tmp_path, replica, FORKS + """
load()
db = connect()
write(db, "first", 100)
sync(db)

def first_salt():
    with open(DATABASE + "-wal", "rb") as file:
        return file.read(20)[16:]

for word in sys.stdin:
    answer = None
    if word.strip() == "fork":
        before, count = first_salt(), 0
        while first_salt() == before:
            write(db, "own", 1)
            count += 1
        answer = fork(), count
    elif word.strip() == "sync":
        answer = sync(db)
    print(json.dumps(answer), flush=True)
""", WALFERRY_SYNC_INTERVAL="1s") as forking:
        forking.tell("ready")
        plain = plain_host(new_host, database)
        plain.sql("PRAGMA wal_autocheckpoint=5", "PRAGMA synchronous=OFF")
        for round_ in range(12):
            beside = plain.ask("churn", args=[100, "beside %d" % round_, 0.3])
            forking.tell("fork")
            beside.result()
            forking.tell("sync")
            assert_same_rows(replica, database, tmp_path)


def test_fork_of_master_with_clean_start_beside_plain_writer_loses_no_commit(
        new_host, replica, tmp_path):
    """Behind a clean start the log goes on with any generation's first frame. The other process has
    filled one under the pin, and begins the next while the master forks."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database))
    plain = new_host(load=False)
    for round_ in range(4):
        with Program(tmp_path, replica, FORKS + """
load()
for word in sys.stdin:
    answer = None
    if word.strip() == "open":
        db = sqlite3.connect(DATABASE, timeout=60, isolation_level=None)
        answer = db.execute("SELECT count(*) FROM t").fetchone()
    elif word.strip() == "fork":
        answer = fork()
    elif word.strip() == "sync":
        answer = sync(db)
    print(json.dumps(answer), flush=True)
""") as master:
            master.tell("ready")
            master.tell("open")
            opened(plain, database)
            plain.sql("PRAGMA wal_autocheckpoint=5", "PRAGMA synchronous=OFF")
            # All rows but the last ones once, and then only these.
            plain.sql(*["UPDATE t SET x = 'round %d' WHERE id BETWEEN %d AND %d" % (round_, n, n + 8)
                        for n in range(11, 100, 9)])
            beside = plain.ask("churn", args=[9, "beside %d" % round_, 0.3])
            master.tell("fork")
            beside.result()
            master.tell("sync")
            assert_same_rows(replica, database, tmp_path)
            plain.close()


# ---- copies of a commit's last frame up to a sector boundary ----------------------------------

# What another process does while the pin is down for a fork: two commits that are copied to the database
# and overwritten, and two that fill the WAL anew.
BEHIND_THE_PIN = """
import ctypes
BESIDE = '''
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], uri=True, isolation_level=None)
db.execute("PRAGMA synchronous=FULL")
db.execute("PRAGMA wal_autocheckpoint=0")
db.execute("SELECT count(*) FROM t").fetchall()
print("ready", flush=True)
sys.stdin.readline()
db.execute("UPDATE t SET x = 'one' WHERE id = 1")
db.execute("UPDATE t SET x = 'two' WHERE id = 1")
print(db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone(), flush=True)
db.execute("INSERT INTO u VALUES (200, zeroblob(24000))")
db.execute("INSERT INTO u VALUES (201, zeroblob(24000))")
print("done", flush=True)
sys.stdin.read()
'''
beside = None

def go():
    if beside:
        beside.stdin.write("go\\n")
        beside.stdin.flush()
        beside.stdout.readline()
        assert beside.stdout.readline() == "done\\n"

# The last that is registered runs first: at this one's turn the extension has given up its pin.
prepare = ctypes.CFUNCTYPE(None)(go)
ctypes.CDLL(None).__register_atfork(prepare, None, None, None)
load()
db = sqlite3.connect(DATABASE, timeout=60, isolation_level=None)
for text in ("journal_mode=WAL", "wal_autocheckpoint=0", "synchronous=NORMAL"):
    db.execute("PRAGMA " + text).fetchall()
db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
db.execute("INSERT INTO t VALUES (1, 'before')")
# What comes after the commits that may be lost is in pages of its own.
db.execute("CREATE TABLE u (id INTEGER PRIMARY KEY, x)")
for number in range(60):
    db.execute("INSERT OR REPLACE INTO u VALUES (1, zeroblob(?))", (20000 + number,))
sync(db)
assert db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0] == 0
db.execute("INSERT INTO u VALUES (100, 1)")
db.execute("INSERT INTO u VALUES (101, 1)")
sync(db)
for word in sys.stdin:
    beside = subprocess.Popen([sys.executable, "-c", BESIDE, "file:%s?psow=%s" % (DATABASE, word.strip())],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    beside.stdout.readline()
    join(child(int))
    sync(db)
    print("true", flush=True)
    beside.communicate()
"""


@pytest.mark.parametrize("psow", [0, 1])
def test_copies_of_commit_frames_make_up_for_no_commit_that_was_overwritten(psow, replica, tmp_path):
    """With psow=0 and synchronous=FULL a commit leaves two frames with a commit mark, and counts once."""
    with Program(tmp_path, replica, BEHIND_THE_PIN, WALFERRY_AUDIT_INTERVAL="off") as program:
        program.tell(str(psow))
        assert_same_rows(replica, tmp_path / "app.db", tmp_path)


@pytest.mark.parametrize("kind", OLD_AND_NEW)
@pytest.mark.parametrize("mode", ["NORMAL", "EXCLUSIVE"])
def test_copies_of_commit_frames_need_no_comparison(mode, kind, new_host, replica, tmp_path):
    """A database that is opened again and again, whose commits are taken in after the first of them."""
    database, found = tmp_path / "app.db", []
    ended(filled(new_host, replica, database, kind))
    host = new_host(kind, replica)
    for session in range(6):
        host.call("open", "main", name=file_uri(database, psow=0), busy=0)  # without a statement
        host.sql("PRAGMA locking_mode=%s" % mode, "PRAGMA synchronous=FULL",
                 *["UPDATE t SET x = 'session %d' WHERE id = %d" % (session, n) for n in range(1, 20)])
        host.sync()
        state = host.status(database)
        if (state["images"], state["resyncs"], state["found"]) != (0, 0, None):
            found.append((session, state["found"], state["resyncs"]))
        host.close()
    assert host.finish() == 0
    assert_same_rows(replica, database, tmp_path)
    assert not found, found


@pytest.mark.parametrize("psow", [0, 1])
def test_copies_of_commit_frames_beside_the_sidecar_need_no_comparison(psow, new_host, new_sidecar, replica, tmp_path):
    """The WAL is begun anew between two looks of the sidecar's."""
    database = tmp_path / "app.db"
    beside = new_host(load=False)
    beside.open(database, psow=psow)
    beside.sql("PRAGMA journal_mode=WAL", TABLE, "PRAGMA synchronous=FULL")
    add(beside, 100)
    sidecar = new_sidecar(database, replica)
    begun = set()

    def goes_on():
        beside.call("churn", args=[100, "generation %d" % len(begun), 0.3])
        begun.add(generation(database))
        return len(begun) > 5

    until(goes_on, "the WAL is begun anew")
    synced(database, replica)
    assert sidecar.end() == 0
    assert_same_rows(replica, database, tmp_path)
    compared = sidecar.said().count("comparing it")
    # Among copies it is not known whether what is left of a generation ends with a transaction that is none.
    assert compared < len(begun) if psow == 0 else compared == 0, sidecar.said()


# ---- no descriptor is left -------------------------------------------------------------------


def read_slots_held(pid, database):
    """The read slots of the wal-index on which a process has a SHARED lock: 0 to 4."""
    inode, first = os.stat(str(database) + "-shm").st_ino, 120 + 3
    held = set()
    with open("/proc/locks") as locks:
        for line in locks:
            words = line.split()
            if words[1] != "->" and words[3] == "READ" and int(words[4]) == pid \
                    and int(words[5].split(":")[2]) == inode:
                held.update(range(int(words[6]) - first, int(words[7]) - first + 1))
    return held & set(range(5))


# Opens the database with so few descriptors left that those of SQLite are there, and no other one.
SCARCE = """
import resource
load()
connect().close()  # with it the threads begin

def opened():
    for name in os.listdir("/proc/self/fd"):
        try:
            yield os.readlink("/proc/self/fd/" + name)
        except FileNotFoundError:  # just closed
            pass

while any(path.startswith(DATABASE) for path in opened()):
    time.sleep(0.01)  # they still have something to write down

soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def take_all():
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    taken = []
    try:
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return taken

def give_back(taken):
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for fd in taken:
        os.close(fd)

def open_scarcely():
    taken = take_all()
    for free in range(1, 20):
        db = None
        os.close(taken.pop())
        try:
            db = sqlite3.connect(DATABASE, timeout=60, isolation_level=None)
            db.execute("SELECT count(*) FROM t").fetchone()
            break
        except sqlite3.OperationalError:
            if db:
                db.close()
    give_back(taken)
    return db, free

def state(db, database):
    reports = json.loads(db.execute("SELECT walferry_status()").fetchone()[0])
    return next(report for report in reports if report["database"] == database)

def wait_for(db, database, text):
    deadline = time.monotonic() + 20
    while text not in (state(db, database)["last_error"] or state(db, database)["state"]):
        assert time.monotonic() < deadline, state(db, database)
        time.sleep(0.01)

def open_the_last():
    taken, opened = take_all(), []
    for _ in range(11):
        os.close(taken.pop())
    for database in ["%s.%d" % (DATABASE, number) for number in range(3)]:
        db = sqlite3.connect(database, timeout=60, isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE t (x)")
        wait_for(db, database, "the 200 that the process may have open")
        opened.append((db, database))
    give_back(taken)
    for db, database in opened:
        wait_for(db, database, "streaming")
        sync(db)
    return len(opened)

for word in sys.stdin:
    answer = None
    if word.strip() == "open":
        db, answer = open_scarcely()
    elif word.strip() == "open the last":
        answer = open_the_last()
    elif word.strip() == "write":
        db.execute("INSERT INTO t (x) VALUES ('own')")
    elif word.strip() == "sync":
        answer = sync(db)
    print(json.dumps(answer), flush=True)
"""


def opened_scarcely(replica, database, folder):
    """The last descriptors are the application's: it needs no more of them than without walferry."""
    scarce = Program(folder, replica, SCARCE)
    scarce.tell("ready")
    assert scarce.tell("open") == 3, "the database, its WAL and its wal-index"
    return scarce


def test_the_last_descriptors_are_the_applications(replica, tmp_path):
    """Three for each database, as without walferry: replication waits, says so, and goes on by itself."""
    with Program(tmp_path, replica, SCARCE, WALFERRY_REPLICA=replica.url + "/{name}") as scarce:
        assert scarce.tell("open the last") == 3


def test_pin_without_descriptor_loses_no_commit(new_host, replica, tmp_path):
    """Several times: threads that cannot open their files either begin with a comparison."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database))
    for round_ in range(10):
        with opened_scarcely(replica, database, tmp_path) as scarce:
            shell(database, "UPDATE t SET x = 'outside %d' WHERE id <= 20" % round_,
                  "PRAGMA wal_checkpoint(TRUNCATE)",
                  "UPDATE t SET x = 'last %d' WHERE id = 99" % round_)
            scarce.tell("write")
            scarce.tell("sync")
            assert_same_rows(replica, database, tmp_path)


def test_pin_without_descriptor_is_taken_when_there_is_one(new_host, replica, tmp_path):
    """Without a word from the application, and what is committed elsewhere is seen again."""
    database = tmp_path / "app.db"
    ended(filled(new_host, replica, database))
    with opened_scarcely(replica, database, tmp_path) as scarce:
        until(lambda: all(read_slots_held(scarce.process.pid, database) for _ in range(50)),
              "it holds a read slot, and not only in passing", 10)
        shell(database, "UPDATE t SET x = 'outside' WHERE id <= 20")
        scarce.tell("sync")
        assert_same_rows(replica, database, tmp_path)


# ---- what SQLite before 3.50.2 loses ---------------------------------------------------------


def commit_with_zero_salts(host, database):
    """A transaction whose frames this SQLite writes without salts and checksum: live readers see them,
    recovery does not. What follows in this WAL is lost with them."""
    host.sql("PRAGMA cache_size=5", "BEGIN", "UPDATE t SET x = 'lost' WHERE id = 1", "SAVEPOINT s",
             "UPDATE t SET x = printf('%01200d', -id) WHERE id > 100",
             "UPDATE t SET x = printf('%01201d', id) WHERE id > 150", "ROLLBACK TO s",
             "UPDATE t SET x = 'lost' WHERE id BETWEEN 2 AND 30", "COMMIT")
    with open(str(database) + "-wal", "rb") as file:
        wal = file.read()
    frames = [wal[at:at + 24] for at in range(32, len(wal), 24 + 4096)]
    if not any(frame[8:16] == bytes(8) for frame in frames):
        pytest.skip("the system's SQLite %s does not write such frames" % host.facts()["sqlite"])


def test_recovery_that_drops_zero_salts_and_writes_on_is_found(new_host, replica, tmp_path):
    """The WAL is shorter after it, has the same salts, and is longer than before by the time that it
    is looked at."""
    database, shm = tmp_path / "app.db", str(tmp_path / "app.db-shm")
    host = filled(new_host, replica, database, count=300)
    plain = plain_host(new_host, database)
    plain.sql("PRAGMA wal_autocheckpoint=0", "UPDATE t SET x = 'kept' WHERE id = 300")
    commit_with_zero_salts(plain, database)
    plain.sql(*["UPDATE t SET x = 'lost too' WHERE id = %d" % n for n in range(30, 60)])
    host.sync()
    # Killed between the two copies of the header.
    with open(shm, "r+b") as index:
        before = index.read(48)
        plain.sql("UPDATE t SET x = 'never' WHERE id = 299")
        plain.kill()
        index.seek(0)
        index.write(before)
    shell(database, "PRAGMA wal_autocheckpoint=0", "PRAGMA synchronous=OFF",
          *["UPDATE t SET x = 'after' WHERE id = %d" % n for n in range(100, 250)])
    lost = host.value("SELECT count(*) FROM t WHERE x LIKE 'lost%' OR x = 'never'")
    assert lost == 0, "nothing was lost in the recovery"
    host.sync()
    assert_same_rows(replica, database, tmp_path)


# ---- commits and checkpoints of a program with several statements under way --------------------

PROGRAM = """
import os, sqlite3, sys, threading
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(os.environ["EXTENSION"])

def connect(timeout=60):
    db = sqlite3.connect(os.environ["DATABASE"], timeout=timeout, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    return db
"""


def program(text, replica, database, **env):
    env = dict(clean_environment(), **replica.env, WALFERRY_REPLICA=replica.url, DATABASE=str(database),
               EXTENSION=str(EXTENSION.with_suffix("")), **env)
    return subprocess.Popen([sys.executable, "-c", PROGRAM + text], env=env, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)


def test_read_transaction_that_outlives_exclusive_mode_hides_no_commit(new_replica, tmp_path):
    replica, database = new_replica("file"), tmp_path / "app.db"
    running = program("""
db = connect()
db.execute("CREATE TABLE t (x)")
db.execute("INSERT INTO t VALUES (1)")
db.execute("SELECT walferry_sync(60000)")
db.execute("PRAGMA locking_mode=EXCLUSIVE")
db.execute("INSERT INTO t VALUES (2)")
db.execute("PRAGMA locking_mode=NORMAL")
rows = db.execute("SELECT x FROM t")
rows.fetchone()
db.execute("INSERT INTO t VALUES (3)")
db.execute("INSERT INTO t VALUES (4)")
print("done", flush=True)
sys.stdin.read()
""", replica, database, WALFERRY_SYNC_INTERVAL="10ms")
    assert running.stdout.readline() == "done\n"
    deadline = time.monotonic() + 30
    while (found := rows(restore(replica, tmp_path / "out.db"), "SELECT max(x) FROM t")) != [(4,)]:
        assert time.monotonic() < deadline, "%s, and the connection is idle" % found
        (tmp_path / "out.db").unlink()
    running.communicate()


SESSION = """
db = connect()
db.execute("CREATE TABLE t (x)")
db.execute("CREATE TABLE u (x)")
db.execute("INSERT INTO t VALUES (1)")
db.execute("SELECT walferry_sync(60000)").fetchall()
db.close()
"""
BY_OTHER_MEANS = {
    "another journal mode": "PRAGMA journal_mode=DELETE; INSERT INTO u VALUES ('outside the WAL'); PRAGMA journal_mode=WAL",
    "VACUUM in another journal mode": "PRAGMA journal_mode=DELETE; DROP TABLE u; VACUUM; PRAGMA journal_mode=WAL",
    "a TRUNCATE checkpoint": "PRAGMA wal_checkpoint(TRUNCATE)",
    "a PASSIVE checkpoint": "PRAGMA wal_checkpoint(PASSIVE)",
}


@pytest.mark.parametrize("how", sorted(BY_OTHER_MEANS))
def test_database_that_an_exclusive_session_writes_before_its_first_commit(how, new_replica, tmp_path):
    """The file is written under the EXCLUSIVE lock, by a checkpoint or outside the WAL. The first commit to the
    WAL comes after that, and its sync ships both."""
    replica, database = new_replica("file"), tmp_path / "app.db"
    assert program(SESSION, replica, database).wait(60) == 0
    if "checkpoint" in how:
        left_by_a_dead_process(database, "INSERT INTO u VALUES ('in the WAL')")
    running = program("""
db = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)
db.execute("PRAGMA locking_mode=EXCLUSIVE")
db.execute("SELECT x FROM t").fetchall()
db.executescript(os.environ["HOW"])
db.execute("INSERT INTO t VALUES (2)")
db.execute("SELECT walferry_sync(60000)").fetchall()
print("shipped", flush=True)
sys.stdin.read()
""", replica, database, HOW=BY_OTHER_MEANS[how])
    assert running.stdout.readline() == "shipped\n"
    restored = restore(replica, tmp_path / "out.db")
    running.communicate()
    assert dump(restored) == dump(database)


def left_by_a_dead_process(database, sql):
    """A commit in the WAL, by a process without walferry that is killed."""
    text = "import os, sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2]); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", text, database, sql])


def dump(database):
    db = sqlite3.connect(database)
    text = list(db.iterdump())
    db.close()
    return text


def test_truncate_in_exclusive_mode_ends_no_replication(new_replica, tmp_path):
    """The connection has its wal-index in memory, and the WAL has no header until the next commit."""
    replica, database = new_replica("file"), tmp_path / "app.db"
    assert program(SESSION, replica, database).wait(60) == 0
    running = program("""
db = sqlite3.connect(os.environ["DATABASE"], isolation_level=None)
db.execute("PRAGMA locking_mode=EXCLUSIVE")
db.execute("INSERT INTO t VALUES (2)")
db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
for _ in range(2):
    db.execute("SELECT walferry_sync(60000)").fetchall()
    print(db.execute("SELECT walferry_status()").fetchone()[0], flush=True)
    sys.stdin.readline()
    db.execute("INSERT INTO t VALUES (3)")
""", replica, database, WALFERRY_SYNC_INTERVAL="10ms")
    for rows_there in (2, 3):
        state, = json.loads(running.stdout.readline())
        assert (state["state"], state["found"], state["lag_ms"]) == ("streaming", None, 0), state
        assert rows(restore(replica, tmp_path / "out.db"), "SELECT count(*) FROM t") == [(rows_there,)]
        (tmp_path / "out.db").unlink()
        running.stdin.write("\n")
        running.stdin.flush()
    running.communicate()


def test_truncate_while_an_image_is_sent_locks_no_writer_out(new_host, s3, proxy, tmp_path):
    replica, database = S3Replica(s3, "truncate/%s" % tmp_path.name, proxy.endpoint), tmp_path / "app.db"
    rule = proxy.rule("hold", method="PUT", where="request")
    running = program("""
db, other = connect(), connect(timeout=3)
db.execute("CREATE TABLE t (x)")
print("begun", flush=True)
sys.stdin.readline()
db.execute("PRAGMA wal_autocheckpoint=0")
for _ in range(1500):
    db.execute("INSERT INTO t VALUES (randomblob(5000))")
writer = connect(timeout=0)
writer.execute("PRAGMA wal_autocheckpoint=0")
truncate = threading.Thread(target=lambda: other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
truncate.start()
written = refused = 0
while truncate.is_alive():
    try:
        writer.execute("INSERT INTO t VALUES (1)")
        written += 1
    except sqlite3.OperationalError:
        refused += 1
print(written, refused, flush=True)
sys.stdin.read()
""", replica, database)
    assert running.stdout.readline() == "begun\n"
    proxy.wait(rule)
    running.stdin.write("\n")
    running.stdin.flush()
    written, refused = map(int, running.stdout.readline().split())
    proxy.heal()
    running.communicate()
    assert written > 20 and written > refused, (written, refused)
