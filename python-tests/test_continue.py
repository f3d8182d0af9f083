"""History goes on where it was: after a restore, a restart, an outsider's change."""

import os
import shutil

from harness import assert_restores, full_images, restore, rows, txids


def numbers(host):
    return host.status(host.database)


def start(new_host, replica, database, **env):
    host = new_host("system", replica, env=env)
    host.open(database)
    host.database = database
    return host


def test_goes_on_after_a_restore(new_host, replica, tmp_path):
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=200, seed=1)
    before = int(host.sync(), 16)
    host.kill()
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    restore(replica, fresh / "app.db")
    host = start(new_host, replica, fresh / "app.db")
    host.sql("INSERT INTO t (x) VALUES ('after the restore')")
    assert int(host.sync(), 16) > before
    state = numbers(host)
    assert (state["images"], state["resyncs"], state["state"]) == (0, 0, "streaming"), state
    assert_restores(replica, fresh / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def test_goes_on_after_a_restart(new_host, replica, tmp_path):
    last = 0
    for round_ in range(4):
        host = start(new_host, replica, tmp_path / "app.db")
        host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (x)",
                 "INSERT INTO t VALUES (%d)" % round_)
        now = int(host.sync(), 16)
        assert now > last
        last = now
        assert numbers(host)["images"] == (1 if round_ == 0 else 0)
        assert numbers(host)["resyncs"] == 0
        assert_restores(replica, tmp_path / "app.db", tmp_path)
        if round_ % 2:
            host.close()
            assert host.finish() == 0
        else:
            host.kill()
    assert txids(replica) == list(range(1, last + 1))


def test_a_restart_without_changes_ships_nothing(new_host, replica, tmp_path):
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    last = host.sync()
    host.close()
    host.finish()
    host = start(new_host, replica, tmp_path / "app.db")
    assert host.value("SELECT count(*) FROM t") == 0
    assert host.sync() == last
    assert host.value("SELECT walferry_txid()") == last


def test_local_state_lost(new_host, replica, tmp_path):
    """Without its folder walferry cannot know what the replica lacks: one more image, no gap."""
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    before = int(host.sync(), 16)
    host.close()
    host.finish()
    shutil.rmtree(tmp_path / "app.db-walferry")
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("INSERT INTO t VALUES (2)")
    assert int(host.sync(), 16) > before
    assert numbers(host)["images"] == 1
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    restore(replica, tmp_path / "before.db", before)
    assert rows(tmp_path / "before.db", "SELECT count(*) FROM t") == [(1,)]


def test_changed_behind_our_back(new_host, replica, tmp_path):
    """While no process of ours ran, a plain one wrote, checkpointed and removed the WAL."""
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=3000, times=200, seed=1)
    before = int(host.sync(), 16)
    host.close()
    host.finish()
    plain = new_host(load=False)
    plain.open(tmp_path / "app.db")
    plain.sql("UPDATE t SET x = 'changed' WHERE id % 20 = 0", "DELETE FROM t WHERE id > 190")
    plain.close()
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("INSERT INTO t (x) VALUES (2)")
    assert int(host.sync(), 16) > before
    assert numbers(host)["resyncs"] == 1 and numbers(host)["images"] == 0
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


def test_an_older_copy_put_back(new_host, replica, tmp_path):
    """History stays one line: the old state comes again under a new TXID."""
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)", "INSERT INTO t VALUES (1)")
    host.sync()
    host.close()
    shutil.copy(tmp_path / "app.db", tmp_path / "older.db")
    host.open(tmp_path / "app.db")
    host.sql("INSERT INTO t VALUES (2)")
    newer = int(host.sync(), 16)
    host.close()
    host.finish()
    os.replace(tmp_path / "older.db", tmp_path / "app.db")
    host = start(new_host, replica, tmp_path / "app.db")
    host.sql("INSERT INTO t VALUES (3)")
    assert int(host.sync(), 16) > newer
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    restore(replica, tmp_path / "newer.db", newer)
    assert rows(tmp_path / "newer.db", "SELECT x FROM t") == [(1,), (2,)]


def test_waiting_and_lag(new_host, replica, tmp_path):
    """walferry_sync seals at once; walferry_wait keeps to the interval."""
    host = start(new_host, replica, tmp_path / "app.db", WALFERRY_SYNC_INTERVAL="30ms")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    for n in range(5):
        host.sql("INSERT INTO t VALUES (%d)" % n)
        acked = host.value("SELECT walferry_wait(60000)")
        assert acked == host.value("SELECT walferry_txid()")
        assert host.value("SELECT walferry_lag()") == 0
        assert numbers(host)["acked"] == acked == "%016x" % txids(replica)[-1]
