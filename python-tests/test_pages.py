"""Whatever SQLite does to a database in WAL mode, the replica is that database, page for page."""

import json

import pytest

from harness import (HOSTS, DirectoryReplica, HostError, assert_restores, restore, rows,
                     sha256, walferry)

TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, x BLOB)"


@pytest.fixture(params=HOSTS)
def host(request, new_host, replica):
    return new_host(request.param, replica)


@pytest.fixture
def app(host, tmp_path):
    """A replicated database with one table, open in each kind of host."""
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", TABLE)
    host.database = tmp_path / "app.db"
    return host


def check(host, replica, tmp_path, conn="main"):
    host.sync(conn)
    assert_restores(replica, host.database, tmp_path)


@pytest.mark.parametrize("vacuum", ["NONE", "FULL", "INCREMENTAL"])
@pytest.mark.parametrize("page_size", [512, 1024, 4096, 65536])
def test_page_sizes_growing_and_shrinking(new_host, replica, tmp_path, page_size, vacuum):
    host = new_host("system", replica)
    host.database = tmp_path / "app.db"
    host.open(host.database)
    host.sql("PRAGMA page_size=%d" % page_size, "PRAGMA auto_vacuum=" + vacuum,
             "PRAGMA journal_mode=WAL", TABLE)
    assert host.value("PRAGMA journal_mode") == "wal"
    check(host, replica, tmp_path)
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=700, times=300, seed=page_size)
    check(host, replica, tmp_path)
    host.sql("DELETE FROM t WHERE id % 3 > 0")
    check(host, replica, tmp_path)
    host.sql("PRAGMA incremental_vacuum(7)")
    check(host, replica, tmp_path)
    host.sql("VACUUM")
    check(host, replica, tmp_path)
    host.sql("DELETE FROM t", "VACUUM")
    check(host, replica, tmp_path)
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=20, seed=1)
    check(host, replica, tmp_path)
    assert host.value("PRAGMA page_size") == page_size
    host.close()
    # The last close did what SQLite's does, and the file on disk is what was sent.
    assert not (tmp_path / "app.db-wal").exists()
    restore(replica, tmp_path / "closed.db")
    assert sha256(tmp_path / "closed.db") == sha256(host.database)


def test_transactions_that_spill(app, replica, tmp_path):
    app.sql("PRAGMA cache_size=5", "PRAGMA cache_spill=2", "BEGIN")
    for round_ in range(4):
        app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=5000, times=50, seed=round_)
        app.sql("UPDATE t SET x = zeroblob(4000) WHERE id % 5 = 0")
    app.sql("COMMIT")
    check(app, replica, tmp_path)
    app.sql("BEGIN")
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=5000, times=100, seed=9)
    app.sql("ROLLBACK", "INSERT INTO t (x) VALUES ('after the rollback')")
    check(app, replica, tmp_path)


def test_savepoints(app, replica, tmp_path):
    app.sql("PRAGMA cache_size=5", "PRAGMA cache_spill=2", "BEGIN")
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=80, seed=1)
    app.sql("SAVEPOINT a")
    app.call("fill", sql="UPDATE t SET x = ? WHERE id % 2", size=2500, times=3, seed=2)
    app.sql("SAVEPOINT b", "DELETE FROM t WHERE id > 20", "ROLLBACK TO b", "RELEASE b")
    app.sql("ROLLBACK TO a", "INSERT INTO t (x) VALUES (1)", "RELEASE a", "COMMIT")
    check(app, replica, tmp_path)
    app.sql("SAVEPOINT outermost", "DELETE FROM t WHERE id % 7 = 0", "RELEASE outermost")
    check(app, replica, tmp_path)


def test_transactions_that_change_nothing(app, replica, tmp_path):
    before = app.sync()
    app.sql("BEGIN IMMEDIATE", "COMMIT", "UPDATE t SET x = 1 WHERE id = -1")
    assert app.sync() == before
    assert app.value("SELECT walferry_lag()") == 0
    check(app, replica, tmp_path)


def test_several_connections_and_threads(app, replica, tmp_path):
    names = ["writer%d" % n for n in range(4)]
    for name in names:
        app.open(app.database, name)
        app.sql("PRAGMA wal_autocheckpoint=20", conn=name)
    asked = [app.ask("fill", name, sql="INSERT INTO t (x) VALUES (?)", size=900, times=150, seed=n)
             for n, name in enumerate(names)]
    for pending in asked:
        pending.result()
    assert app.value("SELECT count(*) FROM t") == 600
    check(app, replica, tmp_path)


def test_attached_databases(app, new_host, tmp_path, new_replica):
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    host = new_host(app.kind, env={"WALFERRY_REPLICA": "file://%s/{name}" % (tmp_path / "all")})
    host.open(first)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "ATTACH '%s' AS b" % second,
             "PRAGMA b.journal_mode=WAL", "CREATE TABLE b.u (x)")
    for n in range(20):
        host.sql("BEGIN", "INSERT INTO t VALUES (%d)" % n, "INSERT INTO u VALUES (%d)" % n, "COMMIT")
    host.sync()
    host.open(second, "other")
    host.sync("other")
    for database in (first, second):
        assert_restores(DirectoryReplica(tmp_path / "all" / database.name), database, tmp_path)


def test_exclusive_locking_mode(app, replica, tmp_path):
    app.sql("INSERT INTO t (x) VALUES (1)", "PRAGMA locking_mode=EXCLUSIVE")
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=50, seed=1)
    app.sync()
    app.sql("INSERT INTO t (x) VALUES ('the last')", "PRAGMA locking_mode=NORMAL", "SELECT * FROM t")
    check(app, replica, tmp_path)


def test_exclusive_from_the_start(host, replica, tmp_path):
    """SQLite then has no shared memory and takes no WAL locks at all."""
    database = tmp_path / "app.db"
    host.open(database)
    host.sql("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", TABLE)
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=50, seed=1)
    host.sync()
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=50, seed=2)
    host.close()
    host.open(database)
    host.sync()
    assert host.value("SELECT count(*) FROM t") == 100
    assert_restores(replica, database, tmp_path)


def test_memory_mapping(app, replica, tmp_path):
    app.sql("PRAGMA mmap_size=268435456")
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=200, seed=1)
    app.sql("PRAGMA wal_checkpoint(FULL)", "UPDATE t SET x = zeroblob(100) WHERE id % 2",
            "SELECT sum(length(x)) FROM t")
    check(app, replica, tmp_path)


def test_journal_mode_and_back(app, replica, tmp_path):
    """Between the switches SQLite writes the main file itself, and no frame tells of it."""
    app.sql("INSERT INTO t (x) VALUES (randomblob(5000))")
    app.sync()
    assert app.value("PRAGMA journal_mode=DELETE") == "delete"
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=20, seed=1)
    assert app.value("PRAGMA journal_mode=WAL") == "wal"
    app.sql("INSERT INTO t (x) VALUES ('in the WAL again')")
    check(app, replica, tmp_path)


@pytest.mark.parametrize("mode", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_checkpoints(app, replica, tmp_path, mode):
    app.sync()  # as long as the first image is made, the WAL stays
    for round_ in range(6):
        app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=2000, times=10, seed=round_)
        busy, _, _ = app.sql("PRAGMA wal_checkpoint(%s)" % mode)[0]
        assert busy == 0 or mode == "PASSIVE"
    check(app, replica, tmp_path)


def test_journal_size_limit(app, replica, tmp_path):
    app.sql("PRAGMA journal_size_limit=0", "PRAGMA wal_autocheckpoint=5")
    for round_ in range(10):
        app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=9000, times=5, seed=round_)
        app.sql("DELETE FROM t WHERE id % 3 = 0")
    check(app, replica, tmp_path)


def test_synchronous_full_and_off(app, replica, tmp_path):
    for level in ("FULL", "OFF", "EXTRA"):
        app.sql("PRAGMA synchronous=" + level)
        app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=20, seed=1)
    check(app, replica, tmp_path)


def test_a_reader_keeps_its_snapshot(app, replica, tmp_path):
    """A long read holds the WAL; walferry neither breaks nor needs it."""
    app.sql("INSERT INTO t (x) VALUES (1)")
    app.open(app.database, "reader")
    app.sql("BEGIN", "SELECT count(*) FROM t", conn="reader")
    app.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=100, seed=1)
    app.sync()
    assert app.value("SELECT count(*) FROM t", "reader") == 1
    app.sql("COMMIT", conn="reader")
    check(app, replica, tmp_path)


def test_a_database_that_was_there_before(new_host, replica, tmp_path):
    plain = new_host(load=False)
    plain.open(tmp_path / "app.db")
    plain.sql("PRAGMA journal_mode=WAL", TABLE)
    plain.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=300, seed=1)
    plain.kill()  # leaves a WAL behind
    host = new_host("apsw", replica)
    host.database = tmp_path / "app.db"
    host.open(host.database)
    host.sql("INSERT INTO t (x) VALUES (1)")
    check(host, replica, tmp_path)
    assert host.status(host.database)["images"] == 1


def test_a_database_outside_wal_mode_is_reported(new_host, replica, tmp_path):
    plain = new_host(load=False)
    plain.open(tmp_path / "app.db")
    plain.sql("PRAGMA journal_mode=DELETE", TABLE, "INSERT INTO t (x) VALUES (1)")
    plain.close()
    host = new_host(replica=replica)
    host.database = tmp_path / "app.db"
    host.open(host.database)
    host.sql("INSERT INTO t (x) VALUES (2)")
    if host.value("PRAGMA journal_mode") != "wal":
        assert host.status(host.database)["state"] == "not-wal"
        with pytest.raises(HostError):  # not an acknowledgement of what nobody has
            host.sync()
        host.sql("PRAGMA journal_mode=WAL")
    host.sql("INSERT INTO t (x) VALUES (3)")
    check(host, replica, tmp_path)


@pytest.mark.parametrize("mode", ["delete", "truncate", "persist", "memory", "off"])
@pytest.mark.parametrize("locking", ["normal", "exclusive"])
def test_wal_mode_is_left(mode, locking, new_host, replica, tmp_path):
    """What is committed from then on is late, to all who ask, until there is a WAL again."""
    host, database = new_host("apsw", replica), tmp_path / "app.db"
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", TABLE, "INSERT INTO t (x) VALUES (1)")
    host.sync()
    host.sql("PRAGMA locking_mode=%s" % locking)
    for _ in range(3):
        host.sql("INSERT INTO t (x) VALUES ('in WAL mode')")
    assert host.sql("PRAGMA journal_mode=%s" % mode) == [[mode]]
    # What was committed before arrives.
    while len(rows(restore(replica, tmp_path / "now.db"), "SELECT * FROM t")) < 4:
        (tmp_path / "now.db").unlink()
    for _ in range(3):
        host.sql("INSERT INTO t (x) VALUES (2)")
    while not host.value("SELECT walferry_lag()"):  # less than a millisecond
        pass
    said = json.loads(walferry("status", "--json", database).stdout)[0]
    for state in (host.status(database), said):
        assert state["state"] == "not-wal" and state["lag_ms"] > 0, state
        assert "only WAL mode" in state["last_error"], state
    with pytest.raises(HostError, match="only WAL mode"):
        host.value("SELECT walferry_wait(100)")
    host.sql("PRAGMA locking_mode=normal", "PRAGMA journal_mode=WAL", "INSERT INTO t (x) VALUES (3)")
    host.sync()
    state = host.status(database)
    assert (state["state"], state["lag_ms"], state["last_error"]) == ("streaming", 0, None), state
    host.database = database
    check(host, replica, tmp_path)


def test_a_reader_keeps_a_database_from_wal_mode(new_host, replica, tmp_path):
    """As long as it reads; then the next write brings it."""
    plain, database = new_host(load=False), tmp_path / "app.db"
    plain.open(database)
    plain.sql("PRAGMA journal_mode=DELETE", TABLE, "INSERT INTO t (x) VALUES (1)", "BEGIN",
              "SELECT * FROM t")
    host = new_host("apsw", replica)
    host.database = database
    host.open(database)
    assert host.value("SELECT count(*) FROM t") == 1
    state = host.status(database)
    assert (state["state"], state["lag_ms"]) == ("not-wal", None), state
    assert host.value("SELECT walferry_lag()") is None
    plain.sql("COMMIT")
    host.sql("INSERT INTO t (x) VALUES (2)", "SELECT * FROM t")
    assert host.value("PRAGMA journal_mode") == "wal"
    check(host, replica, tmp_path)


def test_a_connection_that_cannot_look(new_host, replica, tmp_path):
    """Somebody has the database to himself: that says nothing of its journal mode."""
    host, database = new_host("apsw", replica), tmp_path / "app.db"
    host.database = database
    host.open(database)
    host.sql("PRAGMA locking_mode=EXCLUSIVE", "PRAGMA journal_mode=WAL", TABLE)
    host.sync()
    # Its first statement finds the database locked, at once.
    host.call("open", "second", name="file:%s?vfs=walferry" % database, busy=0)
    with pytest.raises(HostError, match="locked"):
        host.sql("SELECT * FROM t", conn="second")
    host.sql("INSERT INTO t (x) VALUES (1)")
    host.sync()
    state = host.status(database)
    assert (state["state"], state["lag_ms"]) == ("streaming", 0), state
    host.close("second")
    host.close()
    host.open(database).sql("INSERT INTO t (x) VALUES (2)")
    check(host, replica, tmp_path)


def test_more_than_a_gibibyte(new_host, replica, tmp_path):
    """Past 1 GiB there is a page that SQLite uses for locks and never for data."""
    host = new_host("system", replica)
    database = tmp_path / "app.db"
    host.open(database)
    host.sql("PRAGMA page_size=65536", "PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "BEGIN")
    for _ in range(21):
        host.sql("INSERT INTO t VALUES (zeroblob(52000000))")
    host.sql("COMMIT", "UPDATE t SET x = randomblob(100000) WHERE rowid IN (1, 21)",
             "INSERT INTO t VALUES (randomblob(3000000))")
    host.sync()
    assert host.value("PRAGMA page_count") > 1 << 14
    host.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    host.close()
    output = restore(replica, tmp_path / "restored.db")
    assert sha256(output) == sha256(database)
    output.unlink()


def test_rows_written_by_another_program(app, new_host, replica, tmp_path):
    """A program that does not load walferry: its commits are not missed."""
    app.sql("INSERT INTO t (x) VALUES (1)")
    app.sync()
    plain = new_host(load=False)
    plain.open(app.database)
    plain.sql("PRAGMA wal_autocheckpoint=3")
    plain.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=40, seed=1)
    app.sql("INSERT INTO t (x) VALUES (2)")
    check(app, replica, tmp_path)
    plain.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=40, seed=2)
    plain.close()
    app.sql("INSERT INTO t (x) VALUES (3)")
    check(app, replica, tmp_path)
