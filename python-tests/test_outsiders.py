"""Whatever others do to the files, open or closed: the next file brings the replica to the
database's true content, under the name of what was found, or says why it cannot."""

import os
import shutil
import sqlite3
import subprocess
import time

import pytest

from harness import HostError, S3Replica, assert_restores, full_images, restore, rows, txids


def start(new_host, replica, database, kind="system", **env):
    host = new_host(kind, replica, env=env)
    host.open(database)
    host.database = database
    return host


def fill(host, seed=1, times=100):
    host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=2000, times=times, seed=seed)


def begin(new_host, replica, database, **env):
    host = start(new_host, replica, database, **env)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    fill(host)
    host.sync()
    return host


def found(host):
    return host.status(host.database)["found"]


def shell(database, *statements):
    """A sqlite3 shell that has never heard of walferry, in a process of its own."""
    done = subprocess.run(["sqlite3", "-bail", "-cmd", ".timeout 500", str(database)], text=True,
                          input=";\n".join(statements) + ";\n", capture_output=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def goes_on(host, replica, tmp_path, images=None, conn="main"):
    """After whatever happened: more commits, and the replica is the database."""
    host.sql("INSERT INTO t (x) VALUES ('and on')", conn=conn)
    host.sync(conn)
    assert_restores(replica, host.database, tmp_path)
    every = txids(replica)
    assert every == list(range(1, len(every) + 1))
    if images is not None:
        assert len(full_images(replica)) == images


# ---- while it is open ------------------------------------------------------------------------


def test_commits_of_an_outsider_arrive_by_themselves(new_host, replica, tmp_path):
    host = begin(new_host, replica, tmp_path / "app.db", WALFERRY_SYNC_INTERVAL="20ms")
    before = txids(replica)[-1]
    code, said = shell(host.database, "INSERT INTO t (x) VALUES ('from outside')")
    assert code == 0, said
    deadline = time.monotonic() + 60
    while txids(replica)[-1] == before:  # nobody asks for it
        assert time.monotonic() < deadline, host.status()
        time.sleep(0.05)
    restore(replica, tmp_path / "got.db")
    assert rows(tmp_path / "got.db", "SELECT count(*) FROM t WHERE x = 'from outside'") == [(1,)]
    goes_on(host, replica, tmp_path, images=1)


@pytest.mark.parametrize("what", [
    ["PRAGMA wal_checkpoint(PASSIVE)"], ["PRAGMA wal_checkpoint(FULL)"],
    ["PRAGMA wal_checkpoint(RESTART)"], ["PRAGMA wal_checkpoint(TRUNCATE)"],
    ["VACUUM"], ["PRAGMA journal_mode=DELETE"], ["PRAGMA journal_size_limit=0"],
    ["PRAGMA locking_mode=EXCLUSIVE", "INSERT INTO t (x) VALUES (1)"],
    ["PRAGMA wal_autocheckpoint=1"] + ["INSERT INTO t (x) VALUES (randomblob(9000))"] * 30,
], ids=lambda what: what[0].split("PRAGMA ")[-1])
def test_an_outsider_does_its_worst(what, new_host, replica, tmp_path):
    """What it may not do it is told; what it may do is replicated, without a comparison."""
    host = begin(new_host, replica, tmp_path / "app.db")
    for round_ in range(3):
        shell(host.database, *what)
        shell(host.database, "UPDATE t SET x = 'outside %d' WHERE id %% 7 = 0" % round_, *what)
        fill(host, seed=round_)
    host.sync()
    state = host.status(host.database)
    assert (state["images"], state["resyncs"], state["found"]) == (1, 0, "no-state"), state
    goes_on(host, replica, tmp_path, images=1)


@pytest.mark.parametrize("with_what", ["older copy", "other database", "new database"])
def test_replaced_while_open(with_what, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database)
    if with_what == "older copy":
        shell(database, "VACUUM INTO '%s'" % (tmp_path / "other.db"))
        fill(host, seed=2)
        host.sync()
    elif with_what == "other database":
        shell(tmp_path / "other.db", "CREATE TABLE u (y)", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
              *["INSERT INTO u VALUES (randomblob(3000))"] * 50)
    last = txids(replica)[-1]
    for end in ("", "-wal", "-shm"):
        os.unlink(str(database) + end)
    if with_what != "new database":
        os.rename(tmp_path / "other.db", database)
    host.sql("INSERT INTO t (x) VALUES ('into a file that no path names')")
    deadline = time.monotonic() + 60
    while with_what != "new database" and host.status(database)["state"] != "error":
        assert time.monotonic() < deadline, host.status()
        time.sleep(0.05)
    # The same process opens what is there now.
    host.open(database, "again")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)",
             conn="again")
    host.sql("INSERT INTO t (x) VALUES ('into the one before')")
    goes_on(host, replica, tmp_path, images=1, conn="again")
    host.close()
    goes_on(host, replica, tmp_path, images=1, conn="again")
    restore(replica, tmp_path / "before.db", last)
    assert rows(tmp_path / "before.db", "SELECT count(*) FROM t")[0][0] >= 100


def test_state_deleted_while_open(new_host, replica, tmp_path):
    host = begin(new_host, replica, tmp_path / "app.db", WALFERRY_SYNC_INTERVAL="20ms")
    shutil.rmtree(tmp_path / "app.db-walferry")
    deadline = time.monotonic() + 60
    while found(host) != "state-deleted":
        assert time.monotonic() < deadline, host.status()
        fill(host, times=1)
        time.sleep(0.05)
    goes_on(host, replica, tmp_path, images=2)
    host.kill()
    host = start(new_host, replica, tmp_path / "app.db")
    goes_on(host, replica, tmp_path, images=2)


# ---- while it is closed ----------------------------------------------------------------------


def closed(host):
    host.close()
    host.finish()


def put(source, database):
    for end in ("-wal", "-shm"):
        if os.path.exists(str(database) + end):
            os.unlink(str(database) + end)
    os.replace(source, database)


def plain_writes(tmp_path, database):
    shell(database, "UPDATE t SET x = 'changed' WHERE id % 20 = 0", "DELETE FROM t WHERE id > 90")


def write_and_die(tmp_path, database, statements):
    """A plain SQLite commits each statement, and leaves database and WAL as a killed process does."""
    other = sqlite3.connect(database)
    other.execute("PRAGMA wal_autocheckpoint=0")
    for sql in statements:
        other.execute(sql)
        other.commit()
    for end in ("", "-wal"):
        shutil.copy(str(database) + end, str(tmp_path / "aside") + end)
    other.close()
    for end in ("", "-wal"):
        shutil.copyfile(str(tmp_path / "aside") + end, str(database) + end)


def plain_leaves_a_wal(tmp_path, database):
    """As if it had been killed: its frames are in a WAL of its own making."""
    write_and_die(tmp_path, database, ["UPDATE t SET x = 'changed' WHERE id % 20 = 0"])


def plain_other_mode(tmp_path, database):
    shell(database, "PRAGMA journal_mode=DELETE", "UPDATE t SET x = 'changed' WHERE id % 9 = 0")


def plain_page_size(tmp_path, database):
    shell(database, "PRAGMA journal_mode=DELETE", "PRAGMA page_size=8192", "VACUUM")


def older_copy(tmp_path, database):
    put(tmp_path / "older.db", database)


def other_database(tmp_path, database):
    shell(tmp_path / "other.db", "CREATE TABLE u (y)", "CREATE TABLE t (id INTEGER PRIMARY KEY, x)",
          *["INSERT INTO u VALUES (randomblob(3000))"] * 50)
    put(tmp_path / "other.db", database)


def created_anew(tmp_path, database):
    os.unlink(database)
    shell(database, "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")


def touched(tmp_path, database):
    os.utime(database)


def state_gone(tmp_path, database):
    shutil.rmtree(str(database) + "-walferry")


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


def state_damaged(tmp_path, database):
    flip(str(database) + "-walferry/state", 40)


def table_damaged(tmp_path, database):
    flip(str(database) + "-walferry/pages", 80)


def shared_page_damaged(tmp_path, database):
    with open(str(database) + "-walferry/shm-3", "r+b") as file:
        file.write(os.urandom(4096))


@pytest.mark.parametrize("what, name, images", [
    (plain_writes, "changed-while-closed", 1),
    (plain_leaves_a_wal, "wal-restarted", 1),
    (plain_other_mode, "changed-while-closed", 1),
    (plain_page_size, "page-size-changed", 2),
    (older_copy, "changed-while-closed", 1),
    (other_database, "changed-while-closed", 1),
    (created_anew, "changed-while-closed", 1),
    (touched, "changed-while-closed", 1),
    (state_gone, "no-state", 2),
    (state_damaged, "state-damaged", 2),
    (table_damaged, "table-disproved", 2),
    (shared_page_damaged, None, 1),
], ids=lambda value: getattr(value, "__name__", None))
def test_closed_and_changed(what, name, images, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    host = begin(new_host, replica, database)
    shell(database, "VACUUM INTO '%s'" % (tmp_path / "older.db"))
    fill(host, seed=2)
    last = int(host.sync(), 16)
    before = restore(replica, tmp_path / "before.db").read_bytes()
    closed(host)
    what(tmp_path, database)
    host = start(new_host, replica, database, kind="apsw")
    host.sync()
    assert found(host) == name, host.status()
    goes_on(host, replica, tmp_path, images)
    # What was there is there still, under its own TXID.
    assert restore(replica, tmp_path / "still.db", last).read_bytes() == before
    # And it was a comparison if it was not an image: only what differs was sent.
    state = host.status(database)
    assert (state["images"], state["resyncs"]) == (images - 1, int(images == 1 and name is not None))


def test_a_wal_where_the_log_ends_without_one(new_host, replica, tmp_path):
    """A restored file that somebody else wrote to before walferry saw it."""
    closed(begin(new_host, replica, tmp_path / "app.db"))
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    restore(replica, fresh / "app.db")
    plain_leaves_a_wal(tmp_path, fresh / "app.db")
    host = start(new_host, replica, fresh / "app.db")
    host.sync()
    assert found(host) == "unknown-wal", host.status()
    goes_on(host, replica, tmp_path, images=1)


def test_another_replica(new_host, new_replica, tmp_path):
    first, second = new_replica("file"), new_replica("file")
    closed(begin(new_host, first, tmp_path / "app.db"))
    host = start(new_host, second, tmp_path / "app.db")
    host.sync()
    assert found(host) == "other-replica"
    goes_on(host, second, tmp_path, images=1)


def test_a_spool_file_is_damaged(new_host, s3, proxy, tmp_path):
    """Killed with files in the spool, one of which does not survive."""
    replica = S3Replica(s3, "outsiders/%s" % tmp_path.name, proxy.endpoint)
    host = begin(new_host, replica, tmp_path / "app.db", WALFERRY_SYNC_INTERVAL="0")
    rule = proxy.rule("blackhole", method="PUT")
    fill(host, seed=2)
    proxy.wait(rule)
    fill(host, seed=3)
    host.kill()
    proxy.heal()
    spool = sorted((tmp_path / "app.db-walferry" / "spool").glob("*.ltx"))
    assert spool
    flip(spool[0], spool[0].stat().st_size // 2)
    host = start(new_host, replica, tmp_path / "app.db")
    host.sync()
    assert found(host) in ("spool-damaged", "table-disproved"), host.status()
    goes_on(host, replica, tmp_path)


# ---- power loss ------------------------------------------------------------------------------


def killed_with_a_wal(new_host, replica, database):
    host = begin(new_host, replica, database)
    host.sql("PRAGMA wal_autocheckpoint=0")
    fill(host, seed=2, times=20)
    host.sync()
    return host


def test_frames_that_were_shipped_are_lost(new_host, replica, tmp_path):
    """What the disk lost stays restorable at its TXID; history goes on with what is left."""
    database = tmp_path / "app.db"
    host = killed_with_a_wal(new_host, replica, database)
    host.sql("UPDATE t SET x = 'shipped, then lost'")
    lost = int(host.sync(), 16)
    host.kill()
    wal = tmp_path / "app.db-wal"
    with open(wal, "r+b") as file:
        file.truncate(wal.stat().st_size - 5 * 4120)
    os.unlink(tmp_path / "app.db-shm")
    host = start(new_host, replica, database)
    host.sync()
    assert found(host) == "wal-cut-short", host.status()
    assert host.value("SELECT count(*) FROM t WHERE x = 'shipped, then lost'") == 0
    goes_on(host, replica, tmp_path, images=1)
    restore(replica, tmp_path / "lost.db", lost)
    assert rows(tmp_path / "lost.db", "SELECT DISTINCT x FROM t") == [("shipped, then lost",)]


def test_the_same_generation_with_other_frames(new_host, replica, tmp_path):
    """An older copy of database and WAL is put back and written to: the salts are the same."""
    database = tmp_path / "app.db"
    host = killed_with_a_wal(new_host, replica, database)
    for end in ("", "-wal"):
        shutil.copy(str(database) + end, str(tmp_path / "older") + end)
    fill(host, seed=3, times=20)
    host.sync()
    host.kill()
    os.unlink(tmp_path / "app.db-shm")
    for end in ("", "-wal"):
        shutil.copyfile(str(tmp_path / "older") + end, str(database) + end)
    write_and_die(tmp_path, database, ["UPDATE t SET x = 'another history %d'" % n for n in range(60)])
    host = start(new_host, replica, database)
    host.sync()
    assert found(host) == "other-frames", host.status()
    goes_on(host, replica, tmp_path, images=1)


def test_an_outsider_is_told_that_the_wal_is_in_use(new_host, replica, tmp_path):
    host = begin(new_host, replica, tmp_path / "app.db")
    host.sql("INSERT INTO t (x) VALUES (1)")
    _code, said = shell(host.database, "PRAGMA journal_mode=DELETE")
    assert "locked" in said, said
    try:
        host.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    except HostError as error:
        raise AssertionError("our own truncation is hindered") from error
    goes_on(host, replica, tmp_path, images=1)
