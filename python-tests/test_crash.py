"""SIGKILL at any moment: nothing acknowledged is lost, nothing is sent twice, no state is torn."""

import time

import pytest

from harness import (HOSTS, LOG_TABLE, SEED, assert_log_state, assert_restores, full_images, journal,
                     restore, txids)


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
    host = new_host("system", replica)
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
        got = assert_log_state(restore(replica, tmp_path / "at.db", txid), seed)
        assert got >= reached, "TXID %d goes back to commit %d" % (txid, got)
        reached = got
        (tmp_path / "at.db").unlink()
    assert reached == host.value("SELECT max(n) FROM log")


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
