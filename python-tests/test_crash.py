"""SIGKILL at any moment: nothing acknowledged is lost, nothing is sent twice, no state is torn."""

import itertools
import sqlite3
import subprocess
import time
from pathlib import Path

import pytest

from harness import (HOSTS, LOG_TABLE, SEED, HostError, S3Replica, assert_log_state, assert_restores,
                     full_images, journal, restore, txids)

# Where a process is killed: a call on a file whose path has this in it.
POINTS = [
    ("write", "spool/next.tmp"), ("pwrite", "spool/next.tmp"), ("rename", "spool/open-"),
    ("rename", "spool/0"), ("unlink", "spool/open-"), ("unlink", "spool/0"),
    ("write", "-walferry/state"), ("rename", "-walferry/state"), ("write", "-walferry/lock"),
    ("pwrite", "app.db-wal"), ("fdatasync", "app.db-wal"), ("ftruncate", "app.db-wal"),
    ("unlink", "app.db-wal"), ("pwrite", "app.db"), ("fdatasync", "app.db"), ("write", "bell"),
]
# What the store does meanwhile, each to some of the requests.
FAULTS = [
    ("latency", {"ms": 150}), ("status", {"code": 503}), ("status", {"code": 500}),
    ("lost_response", {}), ("reset", {}), ("blackhole", {"where": "response", "count": 1}),
]


def assert_history(host, replica, database, tmp_path, rng):
    """Everything is shipped, with one image, and every TXID restores to a state that was committed,
    none before the one before it. The last commit and the last TXID."""
    host.open(database)
    last = int(host.sync(), 16)
    assert_restores(replica, database, tmp_path)
    assert len(full_images(replica)) == 1, full_images(replica)
    # However many there are, each restores; a long run looks at a random part of the middle.
    every = txids(replica)
    assert every == list(range(1, last + 1))
    chosen = every if len(every) <= 150 else sorted({*every[:20], *every[-20:], *rng.sample(every, 150)})
    reached = 0
    for txid in chosen:
        got = assert_log_state(restore(replica, tmp_path / "at.db", txid), str(SEED))
        assert got >= reached, "TXID %d goes back to commit %d" % (txid, got)
        reached = got
        (tmp_path / "at.db").unlink()
    assert reached == host.value("SELECT max(n) FROM log")
    return reached, last


def test_sigkill_at_random_moments(request, new_host, new_replica, rng, tmp_path):
    """`make crash ROUNDS=200` runs it longer."""
    rounds = request.config.getoption("--crash-rounds")
    replica, database = new_replica(rng.choice(("file", "s3"))), tmp_path / "app.db"
    notes, seed, committed = tmp_path / "journal", str(SEED), 0
    notes.touch()
    for round_ in range(rounds):
        host = new_host(rng.choice(HOSTS), replica,
                        env={"WALFERRY_SYNC_INTERVAL": rng.choice(("0", "5ms", "50ms"))})
        host.open(database)
        host.sql("PRAGMA journal_mode=WAL", LOG_TABLE.replace("TABLE", "TABLE IF NOT EXISTS"),
                 "PRAGMA wal_autocheckpoint=%d" % rng.choice((5, 100, 1000)),
                 "PRAGMA synchronous=%s" % rng.choice(("OFF", "NORMAL", "FULL")))
        # A process that dies after COMMIT and before its note has committed one more.
        start = (host.value("SELECT max(n) FROM log") or 0) + 1
        assert committed <= start - 1 <= committed + 1, "SQLite itself lost a commit"
        writing = host.ask("writer", args=[seed, str(notes), rng.choice((1, 3, 20)), start])
        size = notes.stat().st_size
        while notes.stat().st_size == size and not writing.done():
            time.sleep(0.001)
        time.sleep(rng.random() ** 3 * 0.8)  # the random moment
        assert not writing.done(), "the writer ended: %s" % writing.answers.queue
        host.kill()
        committed, acked = journal(notes)
        if acked or replica.keys():
            got = assert_log_state(restore(replica, tmp_path / "now.db"), seed)
            assert acked <= got <= committed + 1, "round %d: %d acked, %d restored, %d committed" % (
                round_, acked, got, committed)
            (tmp_path / "now.db").unlink()
    assert_history(new_host("system", replica), replica, database, tmp_path, rng)


@pytest.fixture
def crash_points(tmp_path_factory):
    """The library that kills at a named point."""
    library = tmp_path_factory.mktemp("points") / "crash_points.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library),
                    str(Path(__file__).with_name("crash_points.c")), "-ldl"], check=True)
    return library


def test_campaign(request, new_host, s3, proxy, rng, crash_points, tmp_path):
    """One to eight processes on one database, a store with faults, kills at random moments and at
    named points. `make crash ROUNDS=1000` runs it longer."""
    rounds = request.config.getoption("--crash-rounds")
    replica = S3Replica(s3, "campaign/%s-%d" % (tmp_path.name, SEED), proxy.endpoint)
    database, seed, numbers = tmp_path / "app.db", str(SEED), itertools.count()
    running, journals, killed = {}, [], 0

    def new_writer(crash_at):
        env = {"WALFERRY_SYNC_INTERVAL": rng.choice(("0", "20ms", "200ms"))}
        if crash_at:
            env.update(LD_PRELOAD=str(crash_points), CRASH_AT=crash_at)
        notes = tmp_path / ("journal%d" % next(numbers))
        notes.touch()
        try:
            host = new_host(rng.choice(HOSTS), replica, env=env)
            host.open(database)
            host.sql("PRAGMA journal_mode=WAL", LOG_TABLE.replace("TABLE", "TABLE IF NOT EXISTS"),
                     "PRAGMA wal_autocheckpoint=%d" % rng.choice((5, 100, 1000)),
                     "PRAGMA synchronous=%s" % rng.choice(("OFF", "NORMAL", "FULL")))
            running[host] = host.ask("writer", args=[seed, str(notes), rng.choice((1, 5, 20)), 0])
            journals.append(notes)
        except HostError:
            host.process.wait(60)  # it met its point before it could begin
            assert crash_at, "%s ended by itself" % host

    def committed():
        # Read-only, so that its close leaves the WAL to those who come next.
        plain = sqlite3.connect("file:%s?mode=ro" % database, uri=True, timeout=20)
        try:
            return plain.execute("SELECT max(n) FROM log").fetchone()[0] or 0
        except sqlite3.OperationalError as error:
            assert "no such table" in str(error) or "unable to open" in str(error), error
            return 0
        finally:
            plain.close()

    for round_ in range(rounds):
        proxy.heal()
        for kind, what in rng.sample(FAULTS, rng.choice((0, 0, 1, 2))):
            proxy.rule(kind, rate=rng.choice((0.1, 0.5)), seed=rng.randrange(1 << 30), **what)
        wanted = rng.choice((1, 1, 2, 2, 3, 4, 6, 8))
        while len(running) < wanted:
            point = rng.choice(POINTS) if rng.random() < 0.5 else None
            when = rng.choice(("before", "after"))
            new_writer(point and "%s:%s:%d:%s" % (*point, rng.randint(1, 30), when))
            if round_ and rng.random() < 0.2:
                break
        time.sleep(rng.random() ** 3)  # the random moment
        for host in rng.sample(list(running), rng.randint(0, len(running))):
            host.kill()
        for host in [host for host in running if host.process.poll() is not None]:
            killed += 1
            del running[host]
        for host, writing in running.items():
            assert not writing.done(), "%s: %s" % (host, writing.answers.queue)
        acked = max((journal(notes)[1] for notes in journals), default=0)
        if acked:
            got = assert_log_state(restore(replica, tmp_path / "now.db"), seed)
            assert acked <= got, "round %d: %d acked, %d restored" % (round_, acked, got)
            (tmp_path / "now.db").unlink()
            assert got <= committed(), "round %d: more than was committed" % round_
    for host in running:
        host.kill()
    proxy.heal()
    done = max(journal(notes)[0] for notes in journals)
    assert committed() >= done, "SQLite itself lost a commit"
    host = new_host("system", replica)
    reached, last = assert_history(host, replica, database, tmp_path, rng)
    print("%d rounds, %d processes killed, %d commits, %d files" % (rounds, killed, reached, last))


def test_process_exit_without_close(new_host, replica, tmp_path):
    """A program that just ends: what was committed is there when the next one opens the file."""
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    host.sync()
    host.sql("INSERT INTO t VALUES (randomblob(10000))")
    assert host.finish() == 0
    host = new_host("apsw", replica)
    host.open(tmp_path / "app.db")
    host.sync()
    assert_restores(replica, tmp_path / "app.db", tmp_path)
    assert len(full_images(replica)) == 1


@pytest.mark.parametrize("closes", [True, False], ids=["closed", "left open"])
def test_the_end_of_the_process_ships_what_is_left(closes, new_host, replica, tmp_path):
    host = new_host("system", replica, env={"WALFERRY_SYNC_INTERVAL": "1h"})
    host.open(tmp_path / "app.db")
    host.sql("PRAGMA journal_mode=WAL", "CREATE TABLE t (x)")
    for n in range(5):
        host.sql("INSERT INTO t VALUES (%d)" % n)
    if closes:
        host.close()
    assert host.finish() == 0
    assert_restores(replica, tmp_path / "app.db", tmp_path)
