"""The shipper's place is given to a process that stands by, and what was left is shipped if that is gone.

All processes here ship nothing by themselves for an hour, unless they are told to: what is on the replica
was sent because a process ended in order, or because nobody took its place.
"""

import fcntl
import os
import signal
import subprocess
import time

import pytest

from harness import S3Replica, assert_restores, full_images, restore, rows, stop
from test_processes import shipper_of, until

IDLE = {"WALFERRY_SYNC_INTERVAL": "1h"}
QUICK = {"WALFERRY_SYNC_INTERVAL": "20ms"}
# Byte of the shared page that says when a process stood by last (src/local/shared.rs).
STANDBY = 4 * 8


def opened(host, database):
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, x)",
             "INSERT INTO t (x) VALUES ('%s')" % host.kind)
    host.sync()
    return host


def content(replica, folder):
    output = restore(replica, folder / "now.db")
    got = [row[0] for row in rows(output, "SELECT x FROM t ORDER BY id")]
    output.unlink()
    return got


def last_standby(database):
    with open(database.parent / (database.name + "-walferry") / "shm-3", "rb") as page:
        page.seek(STANDBY)
        return int.from_bytes(page.read(8), "little")


@pytest.fixture
def database(tmp_path):
    return tmp_path / "app.db"


@pytest.fixture
def pair(new_host, replica, database):
    """A process that ships, and one that stands by and has just said so."""
    ships = opened(new_host("system", replica, env=IDLE), database)
    stands = opened(new_host("apsw", replica, env=IDLE), database)
    until(lambda: stands.status(database)["state"] == "standby", "it stands by")
    ships.sql("INSERT INTO t (x) VALUES ('synced')")
    ships.sync()
    ships.sql("INSERT INTO t (x) VALUES ('last')")
    # The next sign of life is half a second away.
    before = last_standby(database)
    until(lambda: last_standby(database) > before, "it says once more that it stands by")
    return ships, stands


EVERYTHING = ["system", "apsw", "synced", "last"]


@pytest.mark.parametrize("how", ["killed", "stopped"])
@pytest.mark.parametrize("then", ["ends", "goes on"])
def test_standby_that_is_not_there_any_more(how, then, pair, replica, database, tmp_path):
    """It was there a moment ago, and does not take the place."""
    ships, stands = pair
    stop(stands.process) if how == "stopped" else stands.kill()
    try:
        ships.close()
        if then == "ends":
            assert ships.finish() == 0
            assert content(replica, tmp_path) == EVERYTHING
        else:
            until(lambda: content(replica, tmp_path) == EVERYTHING, "what was left is shipped")
            until(lambda: ships.status(conn="loader") == [], "it owes nothing")
    finally:
        stands.process.send_signal(signal.SIGCONT)
    assert len(full_images(replica)) == 1


def test_word_of_an_earlier_boot_is_no_standby(new_host, replica, database, tmp_path):
    """Its clock was far ahead of this boot's."""
    host = opened(new_host("system", replica, env=IDLE), database)
    ahead = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000) + 5 * 86400 * 1000
    with open(tmp_path / "app.db-walferry" / "shm-3", "r+b") as page:
        page.seek(STANDBY)
        page.write(ahead.to_bytes(8, "little"))
    host.sql("INSERT INTO t (x) VALUES ('last')")
    host.close()
    assert host.finish() == 0
    assert content(replica, tmp_path) == ["system", "last"]


def test_who_has_but_the_lock_does_not_ship_what_is_left(new_host, replica, database, tmp_path):
    """It may be one that cannot read the state, or that looks at it and goes."""
    host = opened(new_host("system", replica, env=IDLE), database)
    host.sql("INSERT INTO t (x) VALUES ('last')")
    state = tmp_path / "app.db-walferry"
    with open(state / "shm-3", "r+b") as page, open(state / "lock", "r+b") as lock:
        def have_lock():
            page.seek(STANDBY)
            page.write(int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000).to_bytes(8, "little"))
            page.flush()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                return False

        closing = host.ask("close")
        until(have_lock, "the place is left")
        closing.result()
        host.process.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            host.process.wait(2)
    assert host.process.wait(60) == 0
    assert content(replica, tmp_path) == ["system", "last"]


def test_process_that_took_over_does_not_wait_for_itself(pair, replica, database, tmp_path):
    """The last that stood by was this process."""
    ships, stands = pair
    ships.kill()
    until(lambda: shipper_of(database) == stands.process.pid, "it has the lock")
    stands.sync()
    stands.sql("INSERT INTO t (x) VALUES ('more')")
    stands.close()
    assert stands.finish() == 0
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_that_close_at_once(order, new_host, new_replica, tmp_path):
    """Whoever is last ships what is left, whatever one knows of the other."""
    for round_ in range(8):
        replica, database = new_replica(), tmp_path / ("round%d.db" % round_)
        hosts = [opened(new_host(kind, replica, env=QUICK), database) for kind in ("system", "apsw")]
        until(lambda: hosts[1].status(database)["state"] == "standby", "it stands by")
        for host in hosts:
            host.sql("INSERT INTO t (x) VALUES ('last')")
        closing = [hosts[at].ask("close") for at in order]
        for one in closing:
            one.result()
        for at in order:
            hosts[at].process.stdin.close()
        assert [host.process.wait(60) for host in hosts] == [0, 0]
        assert_restores(replica, database, tmp_path)


def test_commit_after_the_shipper_has_closed(new_host, proxy, s3, database, tmp_path):
    """The shipper waits for the store and cannot capture any more; the other process is closed too."""
    replica = S3Replica(s3, "closed-%d" % os.getpid(), proxy.endpoint)
    ships = opened(new_host("system", replica, env=QUICK), database)
    stands = opened(new_host("apsw", replica, env=QUICK), database)
    until(lambda: stands.status(database)["state"] == "standby", "it stands by")
    held = proxy.rule("hold", method="PUT", path=proxy.LOG)
    ships.sql("INSERT INTO t (x) VALUES ('held')")
    proxy.wait(held)
    ships.close()
    stands.sql("INSERT INTO t (x) VALUES ('late')")
    stands.close()
    proxy.heal()
    proxy.ask("POST", "/release")
    assert (stands.finish(), ships.finish()) == (0, 0)
    assert_restores(replica, database, tmp_path)
