"""Several processes on one database, and two copies of SQLite in one process."""

import subprocess
import sys
import time

from harness import EXTENSION, HostError, assert_restores, clean_environment, full_images


def rows_of(host, conn="main"):
    return host.value("SELECT count(*) FROM t", conn)


def until_ships(host):
    """Waits until this process has taken the shipper's place, by asking it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return host.sync()
        except HostError as error:
            assert "ships this database" in str(error), error
            assert time.monotonic() < deadline, "nobody took over"


def test_one_ships_for_both_and_the_other_takes_over(new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    first, second = new_host("system", replica), new_host("apsw", replica)
    first.open(database)
    first.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=50",
              "CREATE TABLE t (id INTEGER PRIMARY KEY, x)")
    first.sync()
    second.open(database)
    for round_ in range(10):
        for host in (first, second):
            host.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=30, seed=round_)
    first.sync()
    assert_restores(replica, database, tmp_path)
    # The holder's restarts are not hindered by the other process: the WAL stays small.
    assert (tmp_path / "app.db-wal").stat().st_size < 4 << 20
    first.kill()
    second.call("fill", sql="INSERT INTO t (x) VALUES (?)", size=900, times=30, seed=99)
    until_ships(second)
    assert rows_of(second) == 630
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


def test_a_second_copy_of_sqlite_is_refused():
    script = """
import sqlite3, apsw
path = %r
one = sqlite3.connect(":memory:")
one.enable_load_extension(True)
one.load_extension(path)
two = apsw.Connection(":memory:")
two.enable_load_extension(True)
try:
    two.load_extension(path)
except apsw.ExtensionLoadingError as error:
    print(error)
""" % str(EXTENSION.with_suffix(""))
    done = subprocess.run([sys.executable, "-c", script], text=True,
                          capture_output=True, timeout=60, env=clean_environment())
    assert done.returncode == 0, done.stderr
    assert "another copy of SQLite" in done.stdout
