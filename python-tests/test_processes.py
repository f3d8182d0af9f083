"""Several processes on one database, and two copies of SQLite in one process.

One of them ships for all. What holds whatever they do: nothing committed is lost, the database is
sent as a whole once, and the WAL stays small.
"""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from harness import (EXTENSION, HOSTS, HostError, S3Replica, assert_restores, clean_environment,
                     full_images, journal, restore, rows, txids, stop)

TABLE = "CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, w TEXT, n INTEGER, x)"
# Byte of the shared page that is not 0 while the shipper lets the WAL be begun anew (src/local/shared.rs).
RELEASED = (16 + 7) * 8
INSERT = "INSERT INTO t (w, x) VALUES ('fill', ?)"


def until(condition, what, seconds=60):
    """Waits for something that other processes do by themselves; what it was, when it came."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, "not in %d s: %s" % (seconds, what)
        time.sleep(0.01)


def shipper_of(database):
    """The process that has the shipper's place, by the file that it locks."""
    try:
        return int((database.parent / (database.name + "-walferry") / "lock").read_text())
    except (FileNotFoundError, ValueError):  # not there yet, or just being written
        return None


def wal(database):
    return database.parent / (database.name + "-wal")


def generation(database):
    """How often the WAL was begun anew: SQLite counts its first salt up each time."""
    with open(wal(database), "rb") as file:
        return int.from_bytes(file.read(20)[16:20], "big")


def opened(host, database, checkpoint=20):
    host.open(database)
    host.sql("PRAGMA journal_mode=WAL", "PRAGMA wal_autocheckpoint=%d" % checkpoint, TABLE)
    return host


def assert_arrived(replica, folder, notes):
    """Every row that a writer noted is on the replica, as it was written; none twice."""
    output = restore(replica, folder / "arrived.db")
    got = {}
    for name, number in rows(output, "SELECT w, n FROM t WHERE n IS NOT NULL ORDER BY id"):
        got.setdefault(name, []).append(number)
    output.unlink()
    for name, note in notes.items():
        done, _ = journal(note)
        numbers = got.get(name, [])
        assert numbers == list(range(1, len(numbers) + 1)), "%s: rows %s" % (name, numbers[:20])
        # One that was killed after its COMMIT and before its note has committed one more.
        assert done <= len(numbers) <= done + 1, "%s: %d noted, %d on the replica" % (
            name, done, len(numbers))


# ---- many writers ----------------------------------------------------------------------------


def write_all(hosts, folder, label, count):
    """All write at once. The notes."""
    notes = {"%s%d" % (label, at): folder / ("%s%d.notes" % (label, at)) for at in range(len(hosts))}
    at_work = [host.ask("inserter", args=[name, str(note), count])
               for host, (name, note) in zip(hosts, notes.items())]
    for one in at_work:
        one.result()
    return notes


@pytest.mark.parametrize("writers", [2, 4, 6])
def test_writers_at_once(writers, new_host, replica, tmp_path):
    """Without a pause, each with its own checkpoints; the WAL begins anew when chance lets one of these
    end between two commits, as it does without walferry."""
    database = tmp_path / "app.db"
    hosts = [opened(new_host(HOSTS[at % 3], replica), database) for at in range(writers)]
    hosts[0].sync()
    first, notes, deadline = generation(database), {}, time.monotonic() + 60
    while not notes or generation(database) - first < 3:
        assert time.monotonic() < deadline, "the WAL does not begin anew"
        notes.update(write_all(hosts, tmp_path, "w%d-" % len(notes), 4000 // writers))
    for host in hosts:
        host.sync()
    assert_arrived(replica, tmp_path, notes)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    assert [host.status(database)["resyncs"] for host in hosts] == [0] * writers


def test_sync_in_a_standby_covers_its_own_commits(new_host, replica, tmp_path):
    """The shipper itself would take an hour; what a sync returned for is there at once."""
    slow = {"WALFERRY_SYNC_INTERVAL": "1h"}
    database = tmp_path / "app.db"
    ships = opened(new_host("system", replica, env=slow), database)
    ships.sync()
    standby = opened(new_host("apsw", replica, env=slow), database)
    busy = ships.ask("inserter", args=["busy", str(tmp_path / "busy.notes")])
    for number in range(15):
        standby.sql("INSERT INTO t (w, n) VALUES ('mine', %d)" % number)
        standby.sync()
        output = restore(replica, tmp_path / "now.db")
        got = rows(output, "SELECT count(*) FROM t WHERE w = 'mine'")
        assert got == [(number + 1,)], "sync %d returned too early" % number
        output.unlink()
        assert standby.status(database)["state"] == "standby"
    ships.call("stop")
    busy.result()
    standby.sync()
    assert_restores(replica, database, tmp_path)


def test_status_of_a_standby_is_the_shippers_truth(new_host, proxy, s3, tmp_path):
    replica = S3Replica(s3, "standby-%d" % os.getpid(), proxy.endpoint)
    database = tmp_path / "app.db"
    ships = opened(new_host("system", replica), database)
    ships.sync()
    standby = opened(new_host("pysqlite3", replica), database)
    standby.sync()
    status = standby.status(database)
    assert (status["state"], status["shipper"]) == ("standby", ships.process.pid)
    assert status["lag_ms"] == 0 and status["last_error"] is None
    assert status["txid"] == status["acked"] == ships.status(database)["txid"]

    proxy.rule("status", code=503)
    standby.sql("INSERT INTO t (w) VALUES ('late')")

    def both_say_why():
        one, other = ships.status(database), standby.status(database)
        assert one["state"] != "standby" and other["shipper"] == ships.process.pid
        return one["last_error"] and other["last_error"] == one["last_error"]

    until(both_say_why, "both tell the store's error")
    first, lag, last = (host.value("SELECT walferry_lag()") for host in (ships, standby, ships))
    assert 0 < first <= lag <= last, "the standby's lag is not the shipper's"
    with pytest.raises(HostError, match="not replicated in time"):
        standby.value("SELECT walferry_sync(300)")
    proxy.heal()
    standby.sync()
    assert standby.value("SELECT walferry_lag()") == 0
    assert_restores(replica, database, tmp_path)


def test_commit_before_it_is_known_who_ships(new_host, replica, tmp_path):
    """The first statement commits before the lock was asked for; the shipper is stopped and cannot hear."""
    database = tmp_path / "app.db"
    ships = opened(new_host("system", replica), database)
    ships.sync()
    for _ in range(5):
        other = new_host("apsw", replica)
        stop(ships.process)
        try:
            other.open(database)
            other.sql("INSERT INTO t (w) VALUES ('first')")
            until(lambda: other.status(database)["state"] == "standby", "it stands by")
            assert other.value("SELECT walferry_lag()") != 0
            assert other.status(database)["lag_ms"] != 0
        finally:
            ships.process.send_signal(signal.SIGCONT)
        other.sync()
        assert other.value("SELECT walferry_lag()") == 0
        assert other.finish() == 0


def test_lag_while_a_large_transaction_is_packed(new_host, replica, tmp_path):
    """The shipper has heard of the commit, and has it in no file yet."""
    database = tmp_path / "app.db"
    hosts = [opened(new_host(kind, replica), database) for kind in ("system", "apsw")]
    for host in hosts:
        host.sync()
        host.open(database, "looks")
        host.sql("SELECT count(*) FROM t", conn="looks")

    def lags():
        return {str(host): host.value("SELECT walferry_lag()", "looks") for host in hosts}

    hosts[1].sql("PRAGMA cache_size=-400000", "PRAGMA wal_autocheckpoint=0")
    for _ in range(3):
        hosts[1].sync()
        before = replica.keys()
        hosts[1].sql("INSERT INTO t (x) WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c "
                     "WHERE n < 20) SELECT randomblob(2000000) FROM c")
        late = lags()
        while replica.keys() == before:
            assert 0 not in late.values(), late
            late = lags()


# ---- the shipper goes ------------------------------------------------------------------------


def go(host, how):
    if how == "killed":
        host.kill()
    elif how == "terminated":
        host.process.send_signal(signal.SIGTERM)
        host.process.wait()
    elif how == "ended":
        assert host.finish() == 0
    else:
        host.close()


WAYS = ("killed", "terminated", "ended", "closed")


@pytest.mark.parametrize("how", WAYS)
def test_a_standby_takes_over_by_itself(how, new_host, replica, tmp_path):
    """Nobody says a word to the process that stands by."""
    database = tmp_path / "app.db"
    # What it commits stays behind, in whatever way it goes.
    ships = opened(new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"}), database)
    ships.sync()
    standby = opened(new_host("apsw", replica), database)
    standby.sync()
    standby.call("fill", sql=INSERT, size=900, times=30, seed=1)
    ships.call("fill", sql=INSERT, size=900, times=30, seed=2)
    assert shipper_of(database) == ships.process.pid
    go(ships, how)
    until(lambda: shipper_of(database) == standby.process.pid, "the standby has the lock")

    def all_there():
        output = restore(replica, tmp_path / "now.db")
        got = rows(output, "SELECT count(*) FROM t")
        output.unlink()
        return got == [(60,)]

    until(all_there, "all rows are on the replica")
    assert standby.status(database)["state"] != "standby"
    standby.sync()
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    if how in ("ended", "closed"):
        # One that was killed may have let the WAL be begun anew without writing down what for.
        assert standby.status(database)["resyncs"] == 0


def test_random_roles(new_host, replica, tmp_path, rng):
    """Three write; again and again one of them goes, in whatever way, and a new one comes."""
    database, notes, count = tmp_path / "app.db", {}, 0
    running = []

    def begin():
        nonlocal count
        host = opened(new_host(rng.choice(HOSTS), replica), database, rng.choice((2, 20, 200)))
        name = "w%d" % count
        count += 1
        notes[name] = tmp_path / (name + ".notes")
        notes[name].touch()  # it may be killed before it writes a word
        running.append((host, host.ask("inserter", args=[name, str(notes[name])])))

    for _ in range(3):
        begin()
    for round_ in range(12):
        time.sleep(rng.random() * 0.4)  # the random moment
        host, writing = running.pop(rng.randrange(len(running)))
        how = rng.choice(WAYS)
        if how in ("killed", "terminated"):
            assert not writing.done(), writing.answers.queue
        else:
            host.call("stop")
            writing.result()
        go(host, how)
        begin()
    for host, writing in running:
        host.call("stop")
        writing.result()
    for host, _ in running:
        host.sync()
    assert_arrived(replica, tmp_path, notes)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    assert txids(replica) == list(range(1, txids(replica)[-1] + 1))


# ---- the shipper stops -----------------------------------------------------------------------


@pytest.mark.parametrize("then", ["continued", "killed"])
def test_a_stopped_shipper_hinders_nobody(then, new_host, replica, tmp_path):
    database = tmp_path / "app.db"
    ships = opened(new_host("system", replica), database)
    ships.sync()
    writers = [opened(new_host(kind, replica), database) for kind in ("apsw", "pysqlite3")]
    for host in writers:
        host.sync()
    stop(ships.process)
    notes = {}
    try:
        for round_ in range(3):
            at_work = []
            for at, host in enumerate(writers):
                name = "stopped%d-%d" % (round_, at)
                notes[name] = tmp_path / (name + ".notes")
                at_work.append(host.ask("inserter", args=[name, str(notes[name]), 100]))
            for one in at_work:
                one.result()  # without an error

        def said():
            error = writers[0].status(database)["last_error"]
            return error and re.search(r"process %d .*not heard of" % ships.process.pid, error)

        until(said, "the status tells of a silent shipper")
        with pytest.raises(HostError, match="not replicated in time"):
            writers[1].value("SELECT walferry_sync(500)")
        assert writers[0].value("SELECT walferry_lag()") > 0
    finally:
        # A stopped process can be killed, and only that.
        ships.process.send_signal(signal.SIGCONT if then == "continued" else signal.SIGKILL)
    if then == "killed":
        ships.process.wait()
        until(lambda: shipper_of(database) in [host.process.pid for host in writers],
              "one of the others has the lock")
    for host in writers:
        host.sync()
        assert host.status(database)["last_error"] is None
    assert_arrived(replica, tmp_path, notes)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1
    # The WAL can be begun anew again.
    before = generation(database)
    for host in writers:
        host.call("fill", sql=INSERT, size=900, times=60, seed=3)
    assert generation(database) > before
    writers[0].sync()
    assert_restores(replica, database, tmp_path)


# ---- a standby dies in the middle of a new beginning -----------------------------------------


def test_a_shipper_that_hears_late_of_a_new_wal_compares_nothing(new_host, replica, tmp_path):
    """The writer waits with its first frame until the shipper has seen the WAL that it let go begin anew."""
    database = tmp_path / "app.db"
    ships = opened(new_host("apsw", replica), database)
    ships.sync()
    writer = opened(new_host("pysqlite3", replica), database)
    writer.sync()
    page = os.open(tmp_path / "app.db-walferry" / "shm-3", os.O_RDONLY)
    try:
        for round_ in range(10):
            at_work = writer.ask("fill", sql=INSERT, size=2000, times=300, seed=round_)
            deadline = time.monotonic() + 10
            while os.pread(page, 8, RELEASED) == bytes(8) and time.monotonic() < deadline:
                pass
            # Here it has answered, and most often not yet heard what came of it.
            ships.process.send_signal(signal.SIGSTOP)
            time.sleep(0.2)
            ships.process.send_signal(signal.SIGCONT)
            at_work.result()
    finally:
        os.close(page)
    writer.sync()
    assert ships.status(database)["resyncs"] == 0
    assert_restores(replica, database, tmp_path)


def test_a_standby_killed_while_it_begins_the_wal_anew(new_host, replica, tmp_path, rng):
    """A checkpoint after every commit, so that a new beginning is always close."""
    database, notes = tmp_path / "app.db", {}
    ships = opened(new_host("system", replica), database)
    ships.sync()
    # One that is killed before its first frame leaves the next writer random salts: they cannot be subtracted.
    generations = set()
    for round_ in range(25):
        name = "killed%d" % round_
        notes[name] = tmp_path / (name + ".notes")
        notes[name].touch()
        host = opened(new_host(rng.choice(HOSTS), replica), database, checkpoint=1)
        host.sql("PRAGMA synchronous=OFF")
        writing = host.ask("inserter", args=[name, str(notes[name])])
        until(lambda: notes[name].stat().st_size, "its first commit")
        time.sleep(rng.random() ** 2 * 0.2)  # the random moment
        assert not writing.done(), writing.answers.queue
        host.kill()
        ships.sql("INSERT INTO t (w) VALUES ('after')")
        generations.add(generation(database))
        if round_ % 5 == 0:
            ships.sync()
            assert_arrived(replica, tmp_path, notes)
    assert len(generations) >= 12, "the WAL was not begun anew"
    ships.sync()
    assert ships.status(database)["shipper"] is None
    assert_arrived(replica, tmp_path, notes)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1


def test_the_shipper_leaves_wal_mode(new_host, replica, tmp_path):
    """And does nothing more. The next process that opens the database puts it back, and ships it."""
    database = tmp_path / "app.db"
    first = opened(new_host("system", replica), database)
    first.sync()
    assert first.value("PRAGMA journal_mode=DELETE") == "delete"
    first.sql("INSERT INTO t (w) VALUES ('outside')")
    assert shipper_of(database) == first.process.pid
    second = opened(new_host("apsw", replica), database)
    second.sql("INSERT INTO t (w) VALUES ('back')")
    second.sync()
    assert shipper_of(database) == second.process.pid
    assert_restores(replica, database, tmp_path)
    first.sql("INSERT INTO t (w) VALUES ('again')")
    first.sync()
    state = first.status(database)
    assert (state["state"], state["lag_ms"]) == ("standby", 0), state
    assert_restores(replica, database, tmp_path)


def test_new_beginnings_that_fail(new_host, replica, tmp_path):
    """Each commit of the process that ships would begin the WAL anew, and readers are in the way, while
    its other thread looks for the commits of another process all the time."""
    database = tmp_path / "app.db"
    ships = opened(new_host("system", replica), database, checkpoint=1)
    ships.sql("PRAGMA synchronous=OFF")
    for n in range(3):
        ships.open(database, "reader%d" % n)
    ships.sync()
    standby = opened(new_host("apsw", replica), database, checkpoint=1)
    standby.sql("PRAGMA synchronous=OFF")
    standby.sync()
    notes = {name: tmp_path / (name + ".notes") for name in ("ships", "stands by")}
    at_work = [host.ask("inserter", args=[name, str(notes[name]), 1500])
               for name, host in zip(notes, (ships, standby))]
    while not all(one.done() for one in at_work):
        reading = [ships.ask("exec", "reader%d" % n, sql=["SELECT count(*) FROM t"]) for n in range(3)]
        for one in reading:
            one.result()
    for one in at_work:
        one.result()
    standby.sync()
    assert_arrived(replica, tmp_path, notes)
    assert_restores(replica, database, tmp_path)


# ---- two copies of SQLite --------------------------------------------------------------------


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
